"""Four pretended CPU devices, programs compiled in a hurry, a compile cache outside the repository, and rank promotion as an error."""

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Many small programs that run once each: compiling them without optimization saves a fifth of the time.
_FLAGS = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}"
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scoreflow"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE / "compiled-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Double precision inside one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory):
    """See `tests.normal.model`."""
    from tests import normal

    return normal.model(tmp_path_factory.mktemp("gaussian"))
