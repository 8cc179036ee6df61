import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPT = """
import jax
from distcam_jax import scripts
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
scripts.run(lambda: print(jax.jit(lambda x: x * 41 + 1)(1)))
"""


def run_script(home, **environment):
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"} | environment
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=ROOT, env=environment | {"HOME": str(home)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_run_keeps_compiled_programs_in_the_users_cache(tmp_path):
    assert run_script(tmp_path) == "42"
    assert list((tmp_path / ".cache" / "distcam_jax" / "compiled").glob("jit_*"))


def test_run_keeps_compiled_programs_where_the_environment_says(tmp_path):
    assert run_script(tmp_path / "home", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "programs")) == "42"
    assert list((tmp_path / "programs").glob("jit_*"))
    assert not (tmp_path / "home").exists()


def test_run_works_where_nothing_can_be_kept(tmp_path):
    (tmp_path / ".cache").write_text("a file where the folder would be")
    assert run_script(tmp_path) == "42"
