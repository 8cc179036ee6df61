"""How much longer a whole evaluation of localisation takes than the forward passes of its network alone.

The evaluation is `distcam_jax.evaluators.localize.localize` as `evaluate.py` runs it: forward passes, class decisions
among all prototypes, heatmaps of the true and of a wrong class, and their boxes at every threshold. Both get the same
batches, which lie in memory, from the same compiled network, and both hand a batch over before they wait for the one
before it. Reading and decoding are not part of either.
"""

import functools
import importlib
import itertools
import operator
import os
import pathlib
import sys

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from measure import CLASSES, alternate, machine, median_interval, spread, take_turns
from photographs import photograph

from distcam_jax import runs, training
from distcam_jax.evaluators.explain import bind_methods, choose_methods
from distcam_jax.evaluators.localize import THRESHOLDS, ahead, ilsvrc_protocol, localize
from distcam_jax.evaluators.network import Network, load_network, network_prototypes, rank_classes
from distcam_jax.evaluators.rows import true_boxes
from distcam_jax.localization import evaluate_boxes
from distcam_jax.prototypes import Prototypes, hash_weights

sys.path.append(str(pathlib.Path(__file__).parents[1]))
ilsvrc2012 = importlib.import_module("configs.ilsvrc2012")

GOAL = 1.15  # times as long as the forward passes
BACKBONE = "resnet50,metric"


# ---- what is measured


def random_network(dtype):
    """The configured ResNet-50 with first weights, which are made in one program."""
    config = ilsvrc2012.get_config(BACKBONE)
    config.model.dtype = dtype
    model = nnx.jit(lambda: training.build_model(config, CLASSES))()
    model.eval()
    graph, state = nnx.split(model)
    mesh = training.create_mesh()
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    return Network("resnet50", config, None, None, mesh, graph, state, hash_weights(state))


def random_batches(images, batch, size, seed):
    """Batches as of `Network.batches`: synthetic photographs, one or two boxes each, sizes as in ILSVRC."""
    random, batches = np.random.default_rng(seed), []
    for first in range(0, images, batch):
        index = np.arange(first, first + batch)
        pixels = np.stack([photograph(random, height=size, width=size) for _ in index])
        sizes = random.integers(200, 600, size=(batch, 2))
        corners = np.sort(random.random((batch, 2, 2, 2)) * sizes[:, None, None], axis=2)
        batches.append(
            {
                "image": pixels.astype(np.float32) / np.float32(255),
                "label": random.integers(CLASSES, size=batch, dtype=np.int32),
                "index": index.astype(np.int32),
                "mask": index < images,
                "image_size": sizes.astype(np.int32),
                "boxes": corners.reshape(batch, 2, 4).astype(np.float32),
                "num_boxes": random.integers(1, 3, size=batch, dtype=np.int32),
            }
        )
    return batches


def random_prototypes(network, batches, seed):
    """Prototypes as far from the images as other images are, every channel scaled at random."""
    random = np.random.default_rng(seed)
    embeddings = np.concatenate([np.asarray(network(one["image"])[1]["embedding"]) for one in batches[:2]])
    values = embeddings[random.integers(len(embeddings), size=CLASSES)]
    values = values * random.uniform(0.5, 1.5, values.shape).astype(np.float32)
    names = tuple(f"class {index}" for index in range(CLASSES))
    return Prototypes(values, np.full(CLASSES, 1), names, {}, network.weights_hash)


def random_case(dtype, images, batch):
    """A ResNet-50 without training, with all that an evaluation needs."""
    network = random_network(dtype)
    batches = random_batches(images, batch, network.config.input.image_size, seed=0)
    return network, random_prototypes(network, batches, seed=1), batches


def case_of_run(folder, images, batch):
    """The network of a run, its prototypes, and the first images that it is evaluated on."""
    config = runs.load_run_config(folder)
    data = training.load_split(config, "eval")
    network = load_network(config, folder, data.num_classes, name=folder.name)
    prototypes = network_prototypes(network, folder / "prototypes.safetensors", data.class_names, batch=batch)
    batches = itertools.islice(network.batches(data.source, batch=batch), -(-images // batch))
    return network, prototypes, list(batches)


# ---- the pass beside its forward passes


def forward_passes(network, batches):
    """The features of every batch, as `localize` gets them."""
    for features in ahead(network(one["image"])[1] for one in batches):
        jax.block_until_ready(features)


def whole_pass(network, prototypes, batches, maps):
    """The whole evaluation."""
    measured = localize(network, prototypes, batches, maps)
    for iou in measured.right_iou.values():
        assert iou.shape == (len(measured.labels), len(THRESHOLDS)), iou.shape
    return measured


def compare(network, prototypes, batches, names, repeats):
    """Milliseconds an image of both, and how much longer the evaluation takes; the parts of it one by one."""
    methods = choose_methods(names, network)
    maps = bind_methods(methods, network, prototypes)
    alternatives = {
        "forward": lambda: forward_passes(network, batches),
        "localize": lambda: whole_pass(network, prototypes, batches, maps),
    }
    count = sum(int(one["mask"].sum()) for one in batches)
    shape = network(batches[0]["image"])[1]["pre_pool"].shape
    row = {
        "network": network.name,
        "dtype": network.config.model.get("dtype", "float32"),
        "image_size": network.config.input.image_size,
        "maps": list(shape[1:]),
        "prototypes": len(prototypes.counts),
        "methods": list(methods),
        "images": count,
        "batch": len(batches[0]["mask"]),
    }
    for kind, seconds in zip(("wall", "processor"), alternate(alternatives, repeats), strict=True):
        ratios = list(map(operator.truediv, seconds["localize"], seconds["forward"]))
        row[kind] = {
            "milliseconds": {name: spread([1e3 * t / count for t in times]) for name, times in seconds.items()},
            "ratio": spread(ratios) | {"interval": median_interval(ratios)},
        }
    return row | {"parts": parts(network, prototypes, batches[0], maps, repeats)}


def parts(network, prototypes, batch, maps, repeats):
    """Milliseconds an image of each part alone, boxes in one thread; and of boxes from maps of white noise."""
    output, features = jax.block_until_ready(network(batch["image"]))
    asked = np.stack([batch["label"], batch["label"][::-1]], axis=1)
    heatmaps = {name: np.asarray(value) for name, value in maps(features["pre_pool"], asked).items()}
    shape = next(iter(heatmaps.values())).shape
    noise = {name: np.random.default_rng(0).normal(size=shape).astype(np.float32) for name in heatmaps}
    rows = np.flatnonzero(batch["mask"] & (batch["num_boxes"] > 0))
    truth, sizes = true_boxes(batch, rows), batch["image_size"][rows]
    protocol = ilsvrc_protocol(network.config.input.image_size)

    def boxes(of):
        for values in of.values():
            for asked_class in range(2):
                evaluate_boxes(values[rows, asked_class], truth, sizes, protocol)

    alternatives = {
        "class decisions": lambda: rank_classes(network, prototypes, output, features["embedding"]),
        "heatmaps": lambda: maps(features["pre_pool"], asked),
        "boxes": functools.partial(boxes, heatmaps),
        "boxes of noise": functools.partial(boxes, noise),
    }
    seconds = take_turns(alternatives, repeats)
    return {name: spread([1e3 * t / len(rows) for t in times]) for name, times in seconds.items()}


# ---- the figures


def measure_pass(images, repeats, batch, run):
    """All figures, as they are written to JSON: of a ResNet-50 without training, or of a run."""
    about, rows = machine(), []
    if run:
        cases = {run.name: functools.partial(case_of_run, run, images, batch)}
    else:
        own = ilsvrc2012.get_config(BACKBONE).model.dtype
        cases = {dtype: functools.partial(random_case, dtype, images, batch) for dtype in (own, "float32")}
    for case in cases.values():
        network, prototypes, batches = case()
        for names in (("dist_cam",), tuple(ilsvrc2012.get_config(BACKBONE).evaluate.methods)):
            rows.append(compare(network, prototypes, batches, names, repeats))
            print_row(rows[-1])
    return {"machine": about, "load_at_the_end": os.getloadavg()[0], "goal": GOAL, "rows": rows}


def print_row(row):
    """Prints one comparison."""
    height, width, channels = row["maps"]
    count, size = len(row["methods"]), row["image_size"]
    print(f"{row['network']}, {row['dtype']}, {size} pixels, maps {height} x {width} x {channels}, {count} methods")
    for kind in ("wall", "processor"):
        times, ratio = row[kind]["milliseconds"], row[kind]["ratio"]
        between = f"{ratio['interval']['low']:.3f}..{ratio['interval']['high']:.3f}"
        both = f"{times['forward']['median']:8.2f} {times['localize']['median']:8.2f}"
        print(f"  {kind:9} {both}  {ratio['median']:.3f} ({between})")
    print("  parts    ", ", ".join(f"{name} {value['median']:.3f}" for name, value in row["parts"].items()))
