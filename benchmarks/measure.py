"""What the benchmarks share: taking turns, spreads and intervals, the batch, the machine, and arguments.

JAX is imported where it is used, so that a process that shows PyTorch's memory alone can import this module.
"""

import argparse
import datetime
import os
import pathlib
import platform
import statistics
import sys
import time

import numpy as np

PAUSE = 0.03  # seconds before a turn: thread pools keep spinning for a while after work and would disturb the next
CLASSES = 1000
LEARNING_RATE = 1e-3  # small: the same batch is trained on again and again
MOMENTUM = 0.9


def turns(alternatives, repeats):
    """Names of the alternatives, each `repeats` times, the first to go another in every round; after a pause each."""
    names = list(alternatives)
    for turn in range(repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            time.sleep(PAUSE)
            yield name


def take_turns(alternatives, repeats):
    """Seconds of every alternative, `{name: [repeats]}`; each turn is one untimed call and one timed call."""
    import jax

    seconds = {name: [] for name in alternatives}
    for name in turns(alternatives, repeats):
        jax.block_until_ready(alternatives[name]())
        start = time.perf_counter()
        jax.block_until_ready(alternatives[name]())
        seconds[name].append(time.perf_counter() - start)
    return seconds


def alternate(alternatives, repeats):
    """Seconds of the clock and of the processor, `{name: [repeats]}` each, after one call that is not timed.

    A call takes seconds, so that every turn needs no such call of its own, as `take_turns` makes.
    """
    wall, processor = ({name: [] for name in alternatives} for _ in range(2))
    for alternative in alternatives.values():
        alternative()
    for name in turns(alternatives, repeats):
        start = time.perf_counter(), time.process_time()
        alternatives[name]()
        wall[name].append(time.perf_counter() - start[0])
        processor[name].append(time.process_time() - start[1])
    return wall, processor


def spread(values):
    """Median and range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def median_interval(values, *, seed=0, resamples=2000):
    """95 % percentile bootstrap interval of the median over the turns; one busy moment would move a mean too far."""
    values = np.asarray(values)
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(np.median(values[drawn], axis=1), [0.025, 0.975])
    return {"low": float(low), "high": float(high)}


def random_batch(*, batch, size, seed):
    """Normal images `[b, h, w, 3]` and labels `[b]` on the host, the same for every library."""
    generator = np.random.default_rng(seed)
    images = generator.standard_normal((batch, size, size, 3), np.float32)
    return images, generator.integers(CLASSES, size=batch, dtype=np.int32)


def peak_resident_mib(process):
    """Most memory in MiB that a running process has had resident so far; None where /proc does not tell.

    Not `ru_maxrss`: a child's starts at what its parent had resident.
    """
    status = pathlib.Path(f"/proc/{process}/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    kib = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return kib[0] / 2**10 if kib else None


def processor():
    """Name of the processor."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def machine():
    """What the figures were measured with, and when."""
    import jax

    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "back_end": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__},
    }


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message):
        """Ends with the line."""
        sys.exit(f"{self.prog}: {message}")


def whole_number(text, smallest=1):
    """A whole number that is not too small."""
    if not text.strip().isdecimal() or int(text) < smallest:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {smallest}, got {text!r}")
    return int(text)


def output_file(text):
    """A file in a folder that is there."""
    path = pathlib.Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file in a folder that exists, got {text!r}")
    return path
