"""Training methods: what a run trains, each a function that returns a `training.Method`."""

from diffuse_jax.methods.denoising import denoising, flow_log_prob, objective, solver_draw

__all__ = ["denoising", "flow_log_prob", "objective", "solver_draw"]
