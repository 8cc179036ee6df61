"""Speed of the input pipeline beside torchvision's DataLoader with Pillow: images a second, ready for the network.

    python benchmarks/bench_input.py
    python benchmarks/bench_input.py --workers=8 --turns=11 --output=metrics.json

Both read the same JPEGs of 500 x 375 from one ArrayRecord file and give out normalised float32 batches on the host;
ours are normalised by NumPy here, which training leaves to the device. Every alternative has the same number of threads
or worker processes. They take turns within one run, so a busy machine slows all of them alike; ratios are formed turn
by turn. A turn times batches from the middle of a stream: what was prepared before it is thrown away first.
"""

import argparse
import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import io
import json
import operator
import os
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

import cv2
import numpy as np
from measure import machine, median_interval, output_file, spread, whole_number
from photographs import HEIGHT, WIDTH, PhotographSource, encode, photograph, write_photographs

from distcam_jax.augmentations import augment
from distcam_jax.decoding import decode_image
from distcam_jax.geometry import center_crop, resize_image
from distcam_jax.input_pipeline import make_eval_batches, make_train_iterator

HAS_TORCH = all(importlib.util.find_spec(name) is not None for name in ("torch", "torchvision"))
HAS_PILLOW = importlib.util.find_spec("PIL") is not None
GOAL = 2.0  # times torch's images a second
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
SIZE = 224
AHEAD = 2  # batches prepared ahead for each worker, torch's default; for all threads together
SETTLE = 0.3  # seconds after a turn, in which the workers fill their buffers and fall silent
NO_BOXES = np.zeros((0, 4), np.float32)
CROP = {"kind": "random_resized_crop", "scale": (0.08, 1.0), "flip": True}
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
RESIZES = {"evaluate, centre crop": "center_crop", "evaluate, straight resize": "straight"}
TASKS = ("train", *RESIZES)
STAGE_PHOTOGRAPHS, STAGE_REPEATS = 24, 5
FACTORS = (1.1, 1.2, 1.3, 1.5, 1.7, 2.0, 2.3, 2.8, 3.5, 5.0, 9.0)  # by which the resizes shrink


# ---- the alternatives: functions without arguments that give an iterator of normalised batches


def normalize(images):
    """Images in [0, 1] to the network's input, in place."""
    rows = images.reshape(*images.shape[:2], -1)  # a long innermost axis, over which NumPy is fast
    rows -= np.tile(MEAN, SIZE)
    rows *= np.tile(1 / STD, SIZE)
    return images


def ready(batches):
    """The normalised images of our batches."""
    for batch in batches:
        yield normalize(batch["image"])


def our_batches(task, source, arguments, *, processes):
    """Our pipeline in threads or worker processes."""
    options: dict = {"batch_size": arguments.batch, "image_size": SIZE, "prefetch": AHEAD}
    options |= {"num_workers": arguments.workers} if processes else {"num_threads": arguments.workers}
    if task == "train":
        endless = ready(make_train_iterator(source, seed=0, augmentation=CROP, **options))
        return lambda: endless
    batches = make_eval_batches(source, resize=RESIZES[task], **options)
    return lambda: ready(batches)


def torch_batches(task, source, arguments):
    """The pipeline of torchvision in worker processes."""
    options = {"size": SIZE, "batch_size": arguments.batch, "workers": arguments.workers}
    options |= {"mean": MEAN.tolist(), "std": STD.tolist()}
    loader = importlib.import_module("torch_input").make_loader(source, task, **options)
    return lambda: iter(loader)


def alternatives_of(task, source, arguments):
    """All of them, by name; worker processes of ours for the training alone, where they live on between turns."""
    alternatives = {"threads": our_batches(task, source, arguments, processes=False)}
    if task == "train":
        alternatives["workers"] = our_batches(task, source, arguments, processes=True)
    if HAS_TORCH:
        alternatives["torch"] = torch_batches(task, source, arguments)
    return alternatives


# ---- speed, in turns


def idle_batches(name, arguments):
    """How many batches may lie ready or be in work, and so are left out before and after the timed ones."""
    # Each worker process of ours fills two queues of `AHEAD` batches and holds one before either.
    each = {"threads": AHEAD, "workers": 2 * AHEAD + 3, "torch": AHEAD + 1}[name]
    return each * arguments.workers


def take_turn(name, make_iterator, arguments):
    """Images a second and processor milliseconds an image, of batches in the middle of a stream."""
    batches = make_iterator()
    for _ in range(idle_batches(name, arguments)):
        next(batches)
    start, processor_start = time.perf_counter(), processor_seconds()
    for _ in range(arguments.batches):
        next(batches)
    seconds, processor_end = time.perf_counter() - start, processor_seconds()
    for _ in range(idle_batches(name, arguments)):
        next(batches)
    time.sleep(SETTLE)
    images = arguments.batch * arguments.batches
    return images / seconds, 1e3 * (processor_end - processor_start) / images


def processor_seconds():
    """Processor time of this process and its children so far; of this process alone where /proc does not tell."""
    lists = pathlib.Path("/proc/self/task").glob("*/children")
    children = [pathlib.Path(f"/proc/{child}/stat") for path in lists for child in path.read_text().split()]
    ticks = 0
    for path in children:
        with contextlib.suppress(OSError):  # it has ended since
            ticks += sum(map(int, path.read_text().rsplit(")", 1)[1].split()[11:13]))
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def compare(alternatives, arguments):
    """Images a second of every alternative, and their ratios to torch's."""
    rates, processor = ({name: [] for name in alternatives} for _ in range(2))
    names = list(alternatives)
    for turn in range(-1, arguments.turns):  # the turn before the first starts the workers
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            rate, milliseconds = take_turn(name, alternatives[name], arguments)
            if turn >= 0:
                rates[name].append(rate)
                processor[name].append(milliseconds)
    figures = {
        "images_per_second": {name: spread(values) for name, values in rates.items()},
        "processor_milliseconds": {name: spread(values) for name, values in processor.items()},
        "over_torch": {},
        "torch_processor_time_over": {},
        "turns_images_per_second": rates,
    }
    for name in names[:-1] if HAS_TORCH else []:
        faster = list(map(operator.truediv, rates[name], rates["torch"]))
        figures["over_torch"][name] = spread(faster) | median_interval(faster)
        cheaper = list(map(operator.truediv, processor["torch"], processor[name]))
        figures["torch_processor_time_over"][name] = spread(cheaper) | median_interval(cheaper)
    return figures


# ---- where the time goes, and what the resize changes


def milliseconds(function, values):
    """Median over the repeats of the mean processor time of a call."""
    means = []
    for _ in range(STAGE_REPEATS):
        start = time.thread_time()
        for value in values:
            function(value)
        means.append(1e3 * (time.thread_time() - start) / len(values))
    return statistics.median(means)


def measure_stages():
    """Processor milliseconds of every stage for one image, in one thread."""
    images = [photograph(np.random.default_rng(i)) for i in range(STAGE_PHOTOGRAPHS)]
    files = [encode(image) for image in images]
    small = [resize_image(image, NO_BOXES, (SIZE, SIZE))[0] for image in images]
    generator = np.random.default_rng(0)

    def augmented(options, size):
        return lambda image: augment(image, NO_BOXES, generator, size, {**CROP, **options})

    def opencv(mode):
        return lambda file: cv2.imdecode(np.frombuffer(file, np.uint8), mode)

    shrink = functools.partial(cv2.resize, dsize=(SIZE, SIZE), interpolation=cv2.INTER_AREA)
    whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": False}
    stages = {
        "OpenCV's decoding alone": (opencv(cv2.IMREAD_COLOR), files),
        "the same at half the size": (opencv(cv2.IMREAD_REDUCED_COLOR_2), files),
        "`decode_image`": (decode_image, files),
        "random resized crop and flip": (augmented({}, (SIZE, SIZE)), images),
        "`center_crop`": (lambda image: center_crop(image, NO_BOXES, (SIZE, SIZE)), images),
        "`resize_image`": (lambda image: resize_image(image, NO_BOXES, (SIZE, SIZE)), images),
        "left out: `INTER_AREA`": (shrink, images),
        "uint8 to float32": (lambda image: np.divide(image, np.float32(255), dtype=np.float32), small),
        "colour jitter": (augmented({**whole, "color_jitter": JITTER}, (SIZE, SIZE)), small),
        "random erasing": (augmented({**whole, "random_erasing": {"probability": 1.0}}, (SIZE, SIZE)), small),
    }
    if HAS_PILLOW:
        pillow = importlib.import_module("PIL.Image")
        decode = functools.partial(_decode_with_pillow, pillow)
        stages["Pillow's decoding"] = (decode, files)
        resize = operator.methodcaller("resize", (SIZE, SIZE), pillow.Resampling.BILINEAR)
        stages["Pillow's bilinear resize"] = (resize, [pillow.fromarray(image) for image in images])
    return {name: milliseconds(function, values) for name, (function, values) in stages.items()}


def _decode_with_pillow(pillow, file):
    return pillow.open(io.BytesIO(file)).convert("RGB")


def measure_resize():
    """Root mean square distance in levels from Pillow's bilinear resize, for every factor."""
    pillow = importlib.import_module("PIL.Image")
    image = photograph(np.random.default_rng(0), height=1000, width=1000)
    table = {}
    for factor in FACTORS:
        side = round(len(image) / factor)
        oracle = np.float32(pillow.fromarray(image).resize((side, side), pillow.Resampling.BILINEAR))
        resized = {
            "resize_image": resize_image(image, NO_BOXES, (side, side))[0],
            "INTER_AREA": cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA),
            "INTER_LINEAR": cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR),
        }
        table[factor] = {name: float(np.sqrt(np.square(value - oracle).mean())) for name, value in resized.items()}
    return table


# ---- arguments, tables


def parse_arguments():
    """Reads what to measure and where to write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=whole_number, default=64, help="images in a batch")
    parser.add_argument("--batches", type=whole_number, default=8, help="timed batches in a turn")
    parser.add_argument(
        "--workers", type=whole_number, default=2, help="threads or worker processes of each alternative"
    )
    parser.add_argument("--turns", type=whole_number, default=7, help="turns of each alternative")
    parser.add_argument("--photographs", type=whole_number, default=200, help="different images")
    parser.add_argument("--output", type=output_file, help="JSON file for the figures")
    return parser.parse_args()


def about_machine():
    """As `machine`, with the versions of what is compared."""
    about = machine()
    for package in ("opencv-python-headless", "grain", "torch", "torchvision", "pillow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            about["versions"][package] = importlib.metadata.version(package)
    return about


def print_task(task, figures):
    """Prints the figures of one task."""
    print(f"\n{task:28}{'images/s':>10}{'min..max':>13}{'/ torch':>9}{'95 %':>13}", end="")
    print(f"{'processor ms':>14}{'torch /':>9}{'95 %':>13}")
    for name, rates in figures["images_per_second"].items():
        line = f"  {name:26}{rates['median']:10.0f}" + f"{rates['min']:.0f}..{rates['max']:.0f}".rjust(13)
        line += format_ratio(figures["over_torch"].get(name))
        line += f"{figures['processor_milliseconds'][name]['median']:14.2f}"
        line += format_ratio(figures["torch_processor_time_over"].get(name))
        reached = figures["over_torch"].get(name, {"low": GOAL})["low"] >= GOAL
        print(line + ("" if reached else f"  goal of {GOAL:g} not reached"), flush=True)


def format_ratio(ratio):
    """A ratio and its interval, 22 characters wide."""
    return f"{ratio['median']:9.2f}" + f"{ratio['low']:.2f}..{ratio['high']:.2f}".rjust(13) if ratio else " " * 22


def print_details(metrics):
    """Prints what each stage takes, and how far the resizes are from Pillow's."""
    print(f"\n{'one image, one thread':34}{'processor ms':>14}")
    for name, value in metrics["stages_milliseconds"].items():
        print(f"  {name:32}{value:14.3f}")
    if metrics["resize_levels"]:
        names = list(next(iter(metrics["resize_levels"].values())))
        print(f"\n{'levels from Pillow, factor':34}" + "".join(name.rjust(14) for name in names))
        for factor, distances in metrics["resize_levels"].items():
            print(f"  {factor:<32}" + "".join(f"{distances[name]:14.2f}" for name in names))


def main():
    """Measures, prints and writes."""
    arguments = parse_arguments()
    cv2.setNumThreads(1)
    options = {key: value for key, value in vars(arguments).items() if key != "output"}
    metrics: dict[str, Any] = {"machine": about_machine(), "arguments": options}
    print(metrics["machine"], options, sep="\n")
    if not HAS_TORCH:
        print("torch: skipped, PyTorch or torchvision is not installed; the figures are ours alone")
    metrics["stages_milliseconds"] = measure_stages()
    metrics["resize_levels"] = measure_resize() if HAS_PILLOW else {}
    print_details(metrics)
    metrics["tasks"] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "photographs.array_record"
        metrics["mean_bytes"] = write_photographs(path, count=arguments.photographs, seed=0)
        print(f"\n{arguments.photographs} JPEGs of {WIDTH} x {HEIGHT}, {metrics['mean_bytes'] / 1e3:.0f} kB on average")
        source = PhotographSource(path, arguments.batch * (arguments.batches + 2 * idle_batches("torch", arguments)))
        for task in TASKS:
            metrics["tasks"][task] = compare(alternatives_of(task, source, arguments), arguments)
            print_task(task, metrics["tasks"][task])
            if arguments.output:
                arguments.output.write_text(json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"{pathlib.Path(__file__).name}: {' '.join(str(error).split())}")
