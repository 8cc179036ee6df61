"""Two processes that train as one: python -m tests.cluster_run <folder> <changes> <port> [stop].

This process imports everything and starts nothing; the two are forks of it, of as many devices as XLA_FLAGS says. They
train in `<folder>/run`, with `changes` (JSON) to the configuration, and write to `<folder>/output0`, `errors0` and so
on. With "stop" the second one gets SIGTERM as soon as training has begun.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from distcam_jax import cluster, training
from tests.tiny_run import tiny_config


def start(number: int, folder: Path, changes: dict, port: str) -> int:
    """Starts a process that trains, and gives its number."""
    child = os.fork()
    if child == 0:
        for descriptor, name in ((1, "output"), (2, "errors")):
            os.dup2(os.open(folder / f"{name}{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        job = {"COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "NUM_PROCESSES": "2", "PROCESS_ID": str(number)}
        os.environ.update({f"JAX_{name}": value for name, value in job.items()})
        cluster.join_cluster()
        try:
            training.fit(tiny_config(**changes), folder / "run")
        except cluster.Stopped as stopped:
            print(stopped)
        sys.exit()  # the two end together, in what JAX does at an exit
    return child


def main(folder: Path, changes: dict, port: str, stop: bool) -> None:
    """Waits for both, and fails if one has failed."""
    children = [start(number, folder, changes, port) for number in range(2)]
    deadline = time.monotonic() + 120
    while stop and not list(folder.glob("run/tensorboard/*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    if stop:
        os.kill(children[1], signal.SIGTERM)
    codes = [os.waitpid(child, 0)[1] for child in children]
    sys.exit(any(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3], "stop" in sys.argv[4:])
