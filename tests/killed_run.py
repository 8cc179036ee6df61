"""Kills a training run again and again: python -m tests.killed_run <folder> <kills> <seed>.

This process imports everything and starts nothing. A fork of it trains in `<folder>/whole`, undisturbed. Then every
attempt is a fork that trains in `<folder>/killed` and is ended by SIGKILL at a random moment. Every second one is drawn
from the start of the process on, so that it may come before the first step; the others from the next finished
checkpoint on, so that the run gets somewhere.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import ml_collections

from distcam_jax import training
from tests.tiny_run import tiny_config


def killed_config(every_steps: int = 2) -> ml_collections.ConfigDict:
    """So many steps, and so many checkpoints, that the kills hit every kind of moment."""
    return tiny_config(**{"epochs": 37.5, "checkpoint.every_steps": every_steps, "average": 0.9})


def start(config: ml_collections.ConfigDict, workdir: Path) -> int:
    """Starts a process that trains, and gives its number."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        training.fit(config, workdir)
        os._exit(0)
    return child


def finish(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Lets a run go to its end."""
    code = os.waitstatus_to_exitcode(os.waitpid(start(config, workdir), 0)[1])
    if code:
        sys.exit(code)


def newest(workdir: Path) -> int:
    """The newest whole checkpoint's step, or 0."""
    return max((int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit()), default=0)


def main(folder: Path, kills: int, seed: int) -> None:
    """Trains undisturbed; trains and kills, printing the newest step after every kill, and lets that run end too."""
    undisturbed = killed_config(every_steps=148)  # step 148 and the last one, 150, are all that is kept at the end
    finish(undisturbed, folder / "whole")
    workdir, moments, usual = folder / "killed", random.Random(seed), 2.0
    for attempt in range(kills):
        before, begin, child = newest(workdir), time.monotonic(), start(killed_config(), workdir)
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
    finish(undisturbed, workdir)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
