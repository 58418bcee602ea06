"""python -m diffuse_jax: the same as the command diffuse-jax."""

from diffuse_jax.cli import run

if __name__ == "__main__":
    run()
