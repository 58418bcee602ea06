"""python -m diffuse_jax: the same as the command diffuse-jax."""

import sys

from diffuse_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
