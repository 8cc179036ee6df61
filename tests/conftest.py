"""Shared settings: eight CPU devices, strict type promotion, no network; and what the whole test run shares."""

import atexit
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What is compiled once, no other test, no process that a test starts and no other worker compiles again: workers of
# pytest-xdist inherit the name of the folder. One that is given from outside lasts from run to run.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="distcam_jax_compiled_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import jaxtyping
import pytest

from tests.tiny_run import tiny_config

jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def without_type_checks():
    """Turns the run-time type checks off, so that a test meets the library's own error as a user would."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def common_folder(tmp_path_factory) -> Path:
    """One folder for the whole test run, the same for all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "common"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def prepared_data(common_folder, monkeypatch):
    """One folder of prepared data sets for the whole test run."""
    monkeypatch.setenv("DISTCAM_DATA_DIR", str(common_folder / "prepared"))


@pytest.fixture(scope="session")
def copy_run(common_folder) -> Callable[[str, Path], Path]:
    """Copies a trained run of `tiny_config(objective)` to a folder; the whole test run trains each objective once."""

    def copy(objective: str, folder: Path) -> Path:
        with _locked(common_folder / f"{objective}.lock"):
            if not (common_folder / objective).exists():
                _train(objective, common_folder)
        return shutil.copytree(common_folder / objective, folder)

    return copy


@pytest.fixture(scope="session")
def run_script() -> Iterator[Callable[..., tuple[int, str]]]:
    """Runs a script of the repository's folder with arguments and gives its return code and standard error."""
    command = [sys.executable, "-m", "tests.forked_scripts"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], **pipes) as forks:

        def run(*arguments: str) -> tuple[int, str]:
            print(json.dumps((arguments, dict(os.environ))), file=forks.stdin, flush=True)
            return tuple(json.loads(forks.stdout.readline()))

        yield run
        forks.stdin.close()


@contextlib.contextmanager
def _locked(path):
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _train(objective, common_folder):
    """Trains into a folder that gets its name at the end, so that what failed half way is never used."""
    from distcam_jax import training  # after pytest has put the run-time type checks in place

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir=common_folder) as unfinished:
        patch.setenv("DISTCAM_DATA_DIR", str(common_folder / "prepared"))
        training.fit(tiny_config(objective), Path(unfinished) / objective)
        (Path(unfinished) / objective).rename(common_folder / objective)
