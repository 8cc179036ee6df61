"""How time and memory grow with the data set and with the number of prototypes.

    python benchmarks/bench_scaling.py
    python benchmarks/bench_scaling.py --repeats=15 --output=metrics.json

Sizes take turns within one run, so a busy machine slows all of them alike; ratios are formed turn by turn. Memory is
that of processes that run ever larger passes and nothing else: what a larger one takes more shows as a higher peak.
Images are one small PNG over and over, so that what is measured is the pass and not the decoding.
"""

import argparse
import functools
import json
import operator
import pathlib
import subprocess
import sys
import time

import cv2
import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp
from measure import PAUSE, machine, median_interval, peak_resident_mib, spread, take_turns

import distcam_jax
from distcam_jax.input_pipeline import make_eval_batches
from distcam_jax.models import create_model
from distcam_jax.models.convolution import compiler_options
from distcam_jax.prototypes import ClassSums, compute_prototypes

SIZES = (1024, 4096, 16384)  # images of a data set
CLASSES, CHANNELS, BATCH = 1000, 2048, 256
PIXELS = 16
CELLS = 7  # height and width of feature maps
PROTOTYPES = {"dist_cam": (10, 100, 1000), "nearest_prototype": (10, 100, 1000, 10_000)}
IMAGES = {"dist_cam": 8, "nearest_prototype": 64}


# ---- passes over a data set


class OneImage:
    """A source of equal images with labels of their own, which takes no memory however long it is."""

    def __init__(self, length):
        self._length = length
        pixels = np.random.default_rng(0).integers(0, 255, (PIXELS, PIXELS, 3), np.uint8)
        self._image = cv2.imencode(".png", pixels)[1].tobytes()

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        return {"image": self._image, "label": index * 7919 % CLASSES}


@functools.cache
def network():
    """Embeddings `[b, 512]` of a narrow ResNet-18."""
    model = create_model("resnet18", num_classes=1, head="none", stem="small", width=2, rngs=nnx.Rngs(0))
    model.eval()
    graph, state = nnx.split(model)
    forward = jax.jit(
        lambda images: nnx.merge(graph, state, copy=True)(images)[1]["embedding"], compiler_options=compiler_options()
    )
    return lambda images: forward(images.astype(np.float32))


@functools.cache
def cheap_embedding():
    """Embeddings `[b, 2048]` that cost next to nothing, so that what the pass adds to a network shows."""
    vectors = jax.device_put(np.random.default_rng(0).random((BATCH, CHANNELS), np.float32))
    return jax.jit(lambda images: vectors + jnp.mean(images))


def ready_batches(length):
    """Batches without images to read."""
    images = np.zeros((BATCH, 1, 1, 3), np.float32)
    for first in range(0, length, BATCH):
        index = np.arange(first, first + BATCH)
        yield {"image": images, "label": index * 7919 % CLASSES, "mask": index < length, "index": index}


def run_bare_pass(length):
    """The pass alone: embeddings come ready."""
    return compute_prototypes(cheap_embedding(), ready_batches(length), CLASSES)[0]


def run_whole_pass(length):
    """Reading, decoding, a small network, and the sums."""
    batches = make_eval_batches(OneImage(length), batch_size=BATCH, image_size=PIXELS)
    return compute_prototypes(network(), batches, CLASSES)[0]


PASSES = {"bare pass": run_bare_pass, "whole pass": run_whole_pass}


def time_passes(repeats):
    """Microseconds an image of each pass at each size; ratios to the smallest size."""
    result = {}
    for name, run in PASSES.items():
        run(SIZES[0])  # compiles
        times = {size: [] for size in SIZES}
        for turn in range(repeats):
            for size in SIZES[turn % len(SIZES) :] + SIZES[: turn % len(SIZES)]:
                time.sleep(PAUSE)
                start = time.perf_counter()
                run(size)
                times[size].append(1e6 * (time.perf_counter() - start) / size)
        result[name] = growth(times, expected=dict.fromkeys(SIZES, 1))
    return result


def growth(times, *, expected):
    """Times at each size, and their ratio to those at the size before, over the ratio that is expected of it."""
    sizes = list(times)
    rows = {}
    for before, size in zip([None, *sizes], sizes, strict=False):
        rows[size] = {"microseconds": spread(times[size])}
        if before is not None:
            factor = expected[size] / expected[before]
            ratios = [ratio / factor for ratio in map(operator.truediv, times[size], times[before])]
            rows[size]["ratio"] = {"median": spread(ratios)["median"], **median_interval(ratios)}
    return rows


# ---- adding up


def add_at(sums, embeddings, labels):
    """NumPy's unbuffered sum, number by number."""
    np.add.at(sums, labels, embeddings.astype(np.float64))


def sort_and_reduce(sums, embeddings, labels):
    """Rows in the order of their classes, then a sum over each run."""
    order = np.argsort(labels, kind="stable")
    classes, starts = np.unique(labels[order], return_index=True)
    sums[classes] += np.add.reduceat(embeddings[order], starts, axis=0, dtype=np.float64)


def one_hot_product(sums, embeddings, labels):
    """A product with the classes' indicators."""
    classes, rows = np.unique(labels, return_inverse=True)
    indicators = np.zeros((len(classes), len(labels)))
    indicators[rows, np.arange(len(labels))] = 1
    sums[classes] += indicators @ embeddings.astype(np.float64)


def time_adding_up(repeats):
    """Microseconds an image that the host takes to add up a batch, by the way it does it."""
    random = np.random.default_rng(0)
    embeddings, labels = random.random((BATCH, CHANNELS), np.float32), random.integers(0, CLASSES, BATCH)
    ours, sums = ClassSums(CLASSES), np.zeros((CLASSES, CHANNELS))
    alternatives = {"ClassSums.add": lambda: ours.add(embeddings, labels)}
    for way in (add_at, sort_and_reduce, one_hot_product):
        alternatives[way.__name__] = functools.partial(way, sums, embeddings, labels)
    seconds = take_turns(alternatives, repeats)
    return {name: spread([1e6 * t / BATCH for t in times]) for name, times in seconds.items()}


# ---- prototypes


def time_prototypes(repeats):
    """Microseconds an image of the functions that see every prototype; ratios to linear growth."""
    random = np.random.default_rng(0)
    maps = jax.device_put(random.random((IMAGES["dist_cam"], CELLS, CELLS, CHANNELS), np.float32))
    embeddings = jax.device_put(random.random((IMAGES["nearest_prototype"], CHANNELS), np.float32))
    result = {}
    for name, numbers in PROTOTYPES.items():
        function, argument = getattr(distcam_jax, name), maps if name == "dist_cam" else embeddings
        alternatives = {}
        for number in numbers:
            vectors = jax.device_put(random.random((number, CHANNELS), np.float32))
            alternatives[number] = functools.partial(function, argument, vectors)
        seconds = take_turns(alternatives, repeats)
        times = {number: [1e6 * t / IMAGES[name] for t in seconds[number]] for number in numbers}
        result[name] = growth(times, expected={number: number for number in numbers})
    return result


# ---- memory, in processes of their own


def run_maps(length):
    """Dist-CAM of that many images for all classes, a batch at a time."""
    random = np.random.default_rng(0)
    maps = jax.device_put(random.random((IMAGES["dist_cam"], CELLS, CELLS, CHANNELS), np.float32))
    vectors = jax.device_put(random.random((CLASSES, CHANNELS), np.float32))
    for _ in range(0, length, IMAGES["dist_cam"]):
        distcam_jax.dist_cam(maps, vectors).block_until_ready()


MEMORY = {
    "bare pass": (run_bare_pass, (4096, 32_768, 262_144)),
    "whole pass": (run_whole_pass, (4096, 16_384)),
    "dist_cam": (run_maps, (256, 1024, 2048)),  # images whose maps of all classes are made, in batches
}


def child(name):
    """Passes of growing size; after each, a line that the reader answers once it has looked at our memory."""
    run, sizes = MEMORY[name]
    for size in sizes:
        run(size)
        print(size, flush=True)
        sys.stdin.readline()


def run_child(name):
    """Most memory in MiB that a process of its own had resident after each pass, by the pass's size."""
    peaks = {}
    command = [sys.executable, __file__, f"--child={name}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in process.stdout:
            peaks[int(line)] = peak_resident_mib(process.pid) or float("nan")  # where /proc does not tell
            process.stdin.write("\n")
            process.stdin.flush()
    if process.returncode or tuple(peaks) != MEMORY[name][1]:
        raise RuntimeError(f"a process of its own ended with status {process.returncode}: {name}")
    return peaks


def measure_memory(processes=2):
    """Peaks in MiB by what a process did and how long, and how many times the first peak the last one is."""
    result = {}
    for name, (_, sizes) in MEMORY.items():
        peaks = [run_child(name) for _ in range(processes)]
        result[name] = {
            "peak_mib": {size: spread([one[size] for one in peaks]) for size in sizes},
            "growth": spread([one[sizes[-1]] / one[sizes[0]] for one in peaks]),
        }
    return result


# ---- the script


def parse_arguments():
    """Reads how often to measure and where to write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=9, help="turns of each size")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file for the figures")
    parser.add_argument("--child", choices=MEMORY, help=argparse.SUPPRESS)
    return parser.parse_args()


def print_tables(metrics):
    """Prints the figures in Markdown."""
    about = metrics["machine"]
    print(f"{about['date']}  {about['processor']}, {about['cores']} cores, load {about['load']:.1f}")
    print(f"{about['back_end']} ({about['device']}), jax {about['versions']['jax']}, {metrics['arguments']}\n")
    print("| what | images or prototypes | µs an image | min..max | growth over expected | 95 % |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, rows in (metrics["passes"] | metrics["prototypes"]).items():
        for size, row in rows.items():
            times, ratio = row["microseconds"], row.get("ratio")
            line = f"| {name} | {size} | {times['median']:.2f} | {times['min']:.2f}..{times['max']:.2f} | "
            print(line + (f"{ratio['median']:.2f} | {ratio['low']:.2f}..{ratio['high']:.2f} |" if ratio else "| |"))
    print("\n| adding up | µs an image | min..max |\n|---|---:|---:|")
    for name, times in metrics["adding_up"].items():
        print(f"| {name} | {times['median']:.2f} | {times['min']:.2f}..{times['max']:.2f} |")
    print("\n| process | images: peak MiB | last over first | min..max |\n|---|---|---:|---:|")
    for name, row in metrics["peak_resident_mib"].items():
        peaks, ratio = row["peak_mib"].items(), row["growth"]
        line = f"| {name} | " + ", ".join(f"{size}: {peak['median']:.0f}" for size, peak in peaks)
        print(f"{line} | {ratio['median']:.3f} | {ratio['min']:.3f}..{ratio['max']:.3f} |")


def main():
    """Measures, prints and writes."""
    arguments = parse_arguments()
    if arguments.child:
        child(arguments.child)
        return
    metrics = {
        "arguments": {
            "repeats": arguments.repeats,
            "batch": BATCH,
            "classes": CLASSES,
            "channels": CHANNELS,
            "seed": 0,
        },
        "machine": machine(),
        "passes": time_passes(arguments.repeats),
        "prototypes": time_prototypes(arguments.repeats),
        "adding_up": time_adding_up(arguments.repeats),
        "peak_resident_mib": measure_memory(),
    }
    print_tables(metrics)
    if arguments.output:
        arguments.output.write_text(json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    main()
