"""What everything else is held against: data whose denoiser, density and flow are closed forms."""

from diffuse_jax.oracles.closed_forms import Gaussian, Mixture, PointMass, UniformBox
from diffuse_jax.oracles.orders import Order, moments, order_of

__all__ = ["Gaussian", "Mixture", "Order", "PointMass", "UniformBox", "moments", "order_of"]
