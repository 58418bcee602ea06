"""What everything else is held against: data whose denoiser, density and flow are closed forms."""

from diffuse_jax.oracles.closed_forms import Gaussian, Mixture, PointMass

__all__ = ["Gaussian", "Mixture", "PointMass"]
