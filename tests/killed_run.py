"""Kills a training run again and again: python -m tests.killed_run <workdir> <kills> <seed>.

This process imports everything and starts nothing; every attempt is a fork of it that trains in the folder and is ended
by SIGKILL at a random moment. Every second one is drawn from the start of the process on, so that it may come before
the first step; the others from the next finished checkpoint on, so that the run gets somewhere.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import ml_collections

from distcam_jax import training
from tests.tiny_run import tiny_config


def killed_config() -> ml_collections.ConfigDict:
    """So many steps, and so many checkpoints, that the kills hit every kind of moment."""
    return tiny_config(**{"epochs": 37.5, "checkpoint.every_steps": 2, "average": 0.9})


def start(workdir: str) -> int:
    """Starts a process that trains, and gives its number."""
    child = os.fork()
    if child == 0:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        training.fit(killed_config(), workdir)
        os._exit(0)
    return child


def newest(workdir: str) -> int:
    """The newest whole checkpoint's step, or 0."""
    return max((int(path.name) for path in Path(workdir, "checkpoints").glob("*") if path.name.isdigit()), default=0)


def main(workdir: str, kills: int, seed: int) -> None:
    """Prints the newest step after every kill, then lets the run go to its end."""
    moments, usual = random.Random(seed), 2.0
    for attempt in range(kills):
        before, begin, child = newest(workdir), time.monotonic(), start(workdir)
        if attempt % 2:
            time.sleep(moments.uniform(0.0, usual))
        else:
            while newest(workdir) == before and os.waitpid(child, os.WNOHANG) == (0, 0):
                time.sleep(0.002)
            usual = 1.3 * (time.monotonic() - begin)  # what this machine takes to the first checkpoint, and a little
            time.sleep(moments.uniform(0.0, 0.1))
        os.kill(child, signal.SIGKILL)  # fails where the run is at its end: then it was too short
        os.waitpid(child, 0)
        print(newest(workdir), flush=True)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(start(workdir), 0)[1]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
