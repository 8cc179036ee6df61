"""Shared settings: eight CPU devices, strict type promotion, no network."""

import atexit
import os
import shutil
import tempfile

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What one test compiles, others and the processes they start need not.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="distcam_jax_compiled_")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

import jax
import jaxtyping
import pytest

atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def without_type_checks():
    """Turns the run-time type checks off, so that a test meets the library's own error as a user would."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def prepared_data(tmp_path_factory, monkeypatch):
    """One folder of prepared data sets for the whole test run."""
    monkeypatch.setenv("DISTCAM_DATA_DIR", str(tmp_path_factory.getbasetemp() / "prepared"))
