"""Speed of evaluate_boxes beside the protocols in plain words, which look at every threshold; the results are the same.

    python benchmarks/bench_localization.py --output=metrics.json
    python benchmarks/bench_localization.py --maps=heatmaps.npy
    python benchmarks/bench_localization.py --pass --output=metrics.json
    python benchmarks/bench_localization.py --pass --run=runs/quickstart/metric

The plain routines are those that the tests compare with. All take turns within one run, so a busy machine slows all of
them alike; ratios are formed turn by turn. OpenCV gets one thread, but for the row with a pool of them. With `--pass` a
whole evaluation is measured beside its forward passes, see `localization_pass.py`.
"""

import argparse
import dataclasses
import functools
import importlib
import json
import operator
import os
import pathlib
import sys

import cv2
import numpy as np
from localization_pass import measure_pass
from measure import machine, median_interval, output_file, spread, take_turns, whole_number

from distcam_jax.localization import PROTOCOLS, BoxPool, evaluate_boxes

sys.path.append(str(pathlib.Path(__file__).parents[1]))
wsol_reference = importlib.import_module("tests.wsol_reference")

CHUNK = 4  # images that a thread gets at a time
BOXES_DEFAULTS = {"images": 16, "repeats": 15, "workers": os.cpu_count(), "maps": None}
PASS_DEFAULTS = {"images": 64, "repeats": 21, "batch": 32, "run": None}
MANY_THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))


def parse_arguments():
    """Reads what to measure and where to write the figures; each kind of measurement has options of its own."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pass", action="store_true", dest="whole_pass", help="measure a whole evaluation")
    parser.add_argument("--images", type=whole_number, help="16, in a pass 64")
    parser.add_argument("--repeats", type=whole_number, help="turns of each alternative: 15, in a pass 21")
    parser.add_argument("--workers", type=whole_number, help="threads of the pool; one a processor")
    parser.add_argument("--maps", type=pathlib.Path, help="NumPy file of heatmaps [n, h, w] to measure besides")
    parser.add_argument("--batch", type=whole_number, help="images a step of the pass: 32")
    parser.add_argument("--run", type=pathlib.Path, help="folder of a run, for its network and images")
    parser.add_argument("--output", type=output_file, help="JSON file for the figures")
    arguments = vars(parser.parse_args())
    output = arguments.pop("output")
    wanted, hint = (PASS_DEFAULTS, "drop") if arguments.pop("whole_pass") else (BOXES_DEFAULTS, "add")
    for name in (PASS_DEFAULTS | BOXES_DEFAULTS).keys() - wanted.keys():
        if arguments.pop(name) is not None:
            parser.error(f"--{name} is of the other kind of measurement: {hint} --pass")
    if arguments.get("run") and not (arguments["run"] / "config.json").is_file():
        parser.error(f"--run must be the folder of a run of train.py, got {str(arguments['run'])!r}")
    return {name: value if arguments[name] is None else arguments[name] for name, value in wanted.items()}, output


def smooth_maps(images, side, seed):
    """Heatmaps as of a network: normal noise, smoothed over neighbouring cells."""
    noise = np.random.default_rng(seed).normal(size=(images, side, side)).astype(np.float32)
    return np.stack([cv2.GaussianBlur(one, (0, 0), side / 8) for one in noise])


def random_boxes(images, seed):
    """Sizes of the images `[n, 2]` and one or two true boxes for each."""
    random = np.random.default_rng(seed)
    sizes = random.integers(200, 600, size=(images, 2))
    corners = [np.sort(random.integers([0, 0], size, size=(random.integers(1, 3), 2, 2)), axis=1) for size in sizes]
    return sizes, [(pair + np.array([[0, 0], [1, 1]])).reshape(-1, 4) for pair in corners]


def protocols():
    """What is measured: name, the protocol, and the plain routine for one image."""
    ilsvrc = PROTOCOLS["ilsvrc"]
    for name, all_contours in (("wsol-v1", False), ("wsol-v2", True)):
        yield name, PROTOCOLS[name], functools.partial(wsol_reference.wsol_best_ious, all_contours=all_contours)
    for input_size, thresholds in ((224, ilsvrc.thresholds), (224, MANY_THRESHOLDS), (64, MANY_THRESHOLDS)):
        protocol = dataclasses.replace(ilsvrc, thresholds=thresholds, input_size=input_size)
        plain = functools.partial(wsol_reference.ilsvrc_best_ious, thresholds=thresholds, size=input_size)
        yield f"ilsvrc, {input_size} x {input_size}", protocol, plain


def in_pool(pool, maps, boxes, sizes, protocol):
    """Best IoUs of all images, found by a pool of threads a few images at a time."""
    parts = [slice(start, start + CHUNK) for start in range(0, len(maps), CHUNK)]
    futures = [pool.submit(maps[part], boxes[part], sizes[part], protocol) for part in parts]
    return np.concatenate([future.result().best_iou for future in futures])


def compare(maps, protocol, plain, repeats, pool):
    """Milliseconds an image of the alternatives, and the plain routine's time over theirs."""
    sizes, boxes = random_boxes(len(maps), seed=1)
    images = list(zip(maps, boxes, sizes.tolist(), strict=True))
    alternatives = {
        "plain": lambda: np.stack([plain(*image) for image in images]),
        "evaluate_boxes": lambda: evaluate_boxes(maps, boxes, sizes, protocol).best_iou,
        "BoxPool": lambda: in_pool(pool, maps, boxes, sizes, protocol),
    }
    expected = alternatives["plain"]()
    for name in ("evaluate_boxes", "BoxPool"):
        np.testing.assert_array_equal(alternatives[name](), expected, err_msg=name)
    seconds = take_turns(alternatives, repeats)
    ratios = {name: list(map(operator.truediv, seconds["plain"], times)) for name, times in seconds.items()}
    return {
        "thresholds": len(protocol.thresholds),
        "milliseconds": {name: spread([1e3 * t / len(maps) for t in times]) for name, times in seconds.items()},
        "plain_over": {
            name: spread(ratios[name]) | {"interval": median_interval(ratios[name])}
            for name in ("evaluate_boxes", "BoxPool")
        },
    }


def measure(images, repeats, workers, maps):
    """All figures, as they are written to JSON."""
    cv2.setNumThreads(1)
    kinds = {f"smooth, {side} x {side}": smooth_maps(images, side, seed=side) for side in (7, 14)}
    if maps:
        kinds[maps.name] = np.load(maps)[:images]
    about, rows = machine(), []
    with BoxPool(workers, pending=max(images, workers)) as pool:
        for kind, heatmaps in kinds.items():
            for name, protocol, plain in protocols():
                row = compare(heatmaps, protocol, plain, repeats, pool)
                rows.append({"maps": kind, "protocol": name, **row})
                print_row(rows[-1])
    about["versions"]["opencv"] = cv2.__version__
    return {"machine": about, "load_at_the_end": os.getloadavg()[0], "rows": rows}


def print_row(row):
    """Prints one comparison."""
    times = {name: f"{value['median']:.2f}" for name, value in row["milliseconds"].items()}
    ratios = [
        f"{ratio['median']:.1f} ({ratio['interval']['low']:.1f}..{ratio['interval']['high']:.1f})"
        for ratio in row["plain_over"].values()
    ]
    what = f"{row['maps']:18} {row['protocol']:17} {row['thresholds']:5}"
    print(
        f"{what} {times['plain']:>8} {times['evaluate_boxes']:>8} {times['BoxPool']:>8}  {ratios[0]:18} {ratios[1]:18}"
    )


def main():
    """Measures, prints and writes."""
    arguments, output = parse_arguments()
    told = {name: value.name if isinstance(value, pathlib.Path) else value for name, value in arguments.items()}
    if "run" in arguments:
        print("ms an image: forward passes, localize; localize's time over theirs, 95 %")
        figures = measure_pass(**arguments)
    else:
        print(
            "ms an image: plain, evaluate_boxes, BoxPool; plain's time over those of evaluate_boxes and BoxPool, 95 %"
        )
        figures = measure(**arguments)
    if output:
        output.write_text(json.dumps({"arguments": told, **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
