"""Eight fake CPU devices for the sharding tests, quick compilation and a cache of it, and the fixtures' folder."""

import os
import pathlib
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "diffuse_jax_test_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Nearly everything here is compiled to run once.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import pytest

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_module():
    """Compiled programs are forgotten after each module: kept, they come to 5 GB a process."""
    yield
    jax.clear_caches()


@pytest.fixture
def fixtures() -> pathlib.Path:
    return FIXTURES
