"""Several processes that train together, and the signals that ask them to stop."""

import os
import signal
import threading
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils

# What a launcher tells every process of a job with several: its number of processes.
_PROCESS_COUNTS = ("JAX_NUM_PROCESSES", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


class Stopped(Exception):  # noqa: N818 (nothing went wrong)
    """Training was asked to stop, and saved its state first.

    Attributes:
      step: the last finished step, which the newest checkpoint holds.
      signal_number: of the signal that asked.
    """

    def __init__(self, step: int, signal_number: int):
        self.step, self.signal_number = step, signal_number
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name} after step {step}, which is saved; the same command goes on")


def join_cluster(*, force: bool = False) -> None:
    """Connects this process with the others of its job, if there are any; before anything else is asked of JAX.

    A job is seen by what its launcher says: Slurm (`srun` with several tasks), Open MPI, or the variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. A second call does nothing.

    Args:
      force: connects whatever the environment says; JAX then asks the machine, as a slice of TPUs wants it.

    Raises:
      ValueError: when the processes do not find each other; says what JAX answered.

    Examples:
      >>> join_cluster()
      >>> jax.process_count()
      1
    """
    job = any(os.environ.get(name, "1") != "1" for name in _PROCESS_COUNTS)
    if not (job or force) or jax.distributed.is_initialized():
        return
    try:
        # JAX itself reads only the address from the environment.
        count, number = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
        jax.distributed.initialize(
            num_processes=None if count is None else int(count), process_id=None if number is None else int(number)
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"the processes of this job do not find each other ({error}); set JAX_COORDINATOR_ADDRESS to a host and "
            "port that all reach, JAX_NUM_PROCESSES, and JAX_PROCESS_ID from 0 on"
        ) from error


def is_primary() -> bool:
    """Whether this process is the one that writes what is written once."""
    return jax.process_index() == 0


def agree(value: bool) -> bool:
    """Whether `value` holds on every process; all of them must ask."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.process_allgather(jax.numpy.asarray(value)).all())


class StopSignal:
    """Notices SIGTERM and SIGINT, so that a step is finished and saved before the process ends.

    A context manager. In a job of several processes JAX's own service listens to SIGTERM, and makes all processes stop
    after the same step. A second signal ends a single process at once.
    """

    def __init__(self):
        self.number: int | None = None
        self._before: dict[int, Callable | int | None] = {}

    def __enter__(self) -> "StopSignal":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, _frame) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def __exit__(self, *_) -> None:
        self._restore()

    def after(self, step: int) -> int | None:
        """The number of the signal to stop for after this step, if any; every process asks after each of its steps."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.number = signal.SIGTERM
        return self.number
