"""What a training step and a forward pass should take on accelerators that nobody has measured here: a calculation.

    python benchmarks/roofline.py
    python benchmarks/roofline.py --models=resnet50 --devices=64 --link=25 --cores=4 --output=roofline.json

Every operation of a network is counted by its shapes, without computing anything: multiply-adds, and bytes that it
reads and writes in bfloat16. An operation takes the longer of its arithmetic, at a share of the peak, and its bytes,
at a share of the memory's bandwidth; operations follow each other. Normalisation, ReLU and the shortcut's sum are one
pass together. A step adds the gradients' all-reduce, unhidden, and the optimizer. The input is read beside it. What is
left out: the loss, the sums of a DenseNet's many gradients of one map, starting kernels, and what a compiler merges.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import pathlib
import sys
from unittest import mock

import jax
import jax.numpy as jnp
from flax import nnx

from distcam_jax.models import backbone, create_model, densenet, layers, resnet

NAMES = ("resnet18", "resnet50", "resnet101", "densenet161", "densenet169", "densenet201")
# Giga multiply-adds of a 224 x 224 image: torchvision's model pages ("GFLOPS"; v0.21), 1000 classes.
PUBLISHED = dict(resnet18=1.81, resnet50=4.09, resnet101=7.80, densenet161=7.73, densenet169=3.36, densenet201=4.29)


@dataclasses.dataclass(frozen=True)
class Device:
    """Published peaks of one accelerator.

    Attributes:
        name: what the table calls it.
        flops: dense bfloat16 operations a second, float32 sums.
        bandwidth: of its memory, bytes a second.
        link: to its neighbours, bytes a second in one direction.
        source: where the figures stand.
    """

    name: str
    flops: float
    bandwidth: float
    link: float
    source: str


DEVICES = (
    Device("A100 80 GB SXM", 312e12, 2039e9, 300e9, "NVIDIA A100 datasheet (NVLink 600 GB/s, both directions)"),
    Device("H100 SXM", 989.4e12, 3350e9, 450e9, "NVIDIA H100 datasheet, without sparsity (NVLink 900 GB/s)"),
    Device("TPU v4", 275e12, 1200e9, 300e9, "cloud.google.com/tpu/docs/v4; links: Jouppi et al., ISCA 2023"),
    Device("TPU v5e", 197e12, 819e9, 200e9, "cloud.google.com/tpu/docs/v5e (400 GB/s, both directions)"),
)


@dataclasses.dataclass(frozen=True)
class Pass:
    """Work on one image: multiply-adds, numbers that activations read and write, and whether it is a gradient's."""

    macs: int
    numbers: int
    backward: bool


# ---- counting


class Counter:
    """Notes what a network does while its shapes are worked out."""

    def __init__(self):
        self.passes: list[Pass] = []
        self.published_macs = 0  # as torchvision counts: a DenseNet's transition averages after its convolution
        self.head = 0  # multiply-adds of the linear layer
        self._transition = 1

    def convolution(self, original, layer, x):
        """A convolution and both of its gradients; that of the image nobody asks for."""
        y = original(layer, x)
        macs = y.size * layer.kernel.shape[0] * layer.kernel.shape[1] * layer.kernel.shape[2]
        self.published_macs += macs * self._transition
        self._add(x.size + y.size, macs=macs)
        self._add(x.size + y.size, macs=macs, backward=True)  # the kernel's gradient
        if x.shape[-1] != 3:
            self._add(x.size + y.size, macs=macs, backward=True)
        return y

    def moments(self, original, x):
        """Mean and variance of maps."""
        if x.ndim == 4:
            self._add(2 * x.size)  # the mean, then the squares about it
        return original(x)

    def normalization(self, original, layer, x, *moments):
        """Normalisation, with the ReLU after it."""
        self._add(2 * x.size)
        self._add(2 * x.size, backward=True)  # the sums over a channel
        self._add(3 * x.size, backward=True)
        return original(layer, x, *moments)

    def block(self, original, layer, x):
        """A residual block's sum, in the pass of its last normalisation."""
        y = original(layer, x)
        self._add(y.size)
        self._add(y.size, backward=True)
        return y

    def pool(self, original, x):
        """The stem's max-pool."""
        y = original(x)
        self._add(x.size + y.size)
        self._add(2 * x.size + y.size, backward=True)
        return y

    def transition(self, original, layer, *inputs):
        """A DenseNet's transition, which averages before its convolution here."""
        self._transition = layer.stride**2
        y = original(layer, *inputs)
        self._transition = 1
        return y

    def _add(self, numbers, *, macs=0, backward=False):
        self.passes.append(Pass(macs, numbers, backward))


@functools.cache
def count(name, *, size, training):
    """The passes over one image, its multiply-adds as published counts have them, and the number of parameters."""
    counter = Counter()
    hooks = (
        (layers.Conv, "__call__", counter.convolution),
        (layers.BatchNorm, "__call__", counter.normalization),
        (layers, "moments", counter.moments),
        (densenet, "moments", counter.moments),
        (densenet.Transition, "__call__", counter.transition),
        (resnet.BasicBlock, "__call__", counter.block),
        (resnet.Bottleneck, "__call__", counter.block),
        (backbone, "max_pool", counter.pool),
    )

    def forward(images):
        model = create_model(name, num_classes=1000, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
        model.train() if training else model.eval()
        output, features = model(images)
        counter.head = output.shape[-1] * features["embedding"].shape[-1]
        return nnx.state(model, nnx.Param)

    with contextlib.ExitStack() as stack:
        for owner, attribute, hook in hooks:
            replacement = _hooked(getattr(owner, attribute), hook)
            stack.enter_context(mock.patch.object(owner, attribute, replacement))
        images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        params = jax.eval_shape(forward, images)
    passes = [*counter.passes, Pass(counter.head, 0, False), Pass(2 * counter.head, 0, True)]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    published = counter.published_macs + counter.head
    return [one for one in passes if training or not one.backward], published, parameters


def _hooked(original, hook):
    return lambda *arguments: hook(original, *arguments)


# ---- time


def seconds_an_image(passes, device, utilisation, streaming):
    """Seconds of arithmetic alone, of bytes alone, and of each operation's longer one, for one image in bfloat16."""
    arithmetic = [2 * one.macs / (device.flops * utilisation) for one in passes]
    memory = [2 * one.numbers / (device.bandwidth * streaming) for one in passes]
    return sum(arithmetic), sum(memory), sum(map(max, arithmetic, memory))


def expect(name, device, options):
    """What a step and a forward pass should take; a row of the table, in milliseconds and images a second."""
    training, published, parameters = count(name, size=options.size, training=True)
    forward, _, _ = count(name, size=options.size, training=False)
    shares = (options.utilisation, options.streaming)
    arithmetic, memory, both = seconds_an_image(training, device, *shares)
    link = options.link * 1e9 if options.link else device.link
    reduce = 2 * (options.devices - 1) / options.devices * 4 * parameters / (link * options.streaming)
    optimizer = 5 * 4 * parameters / (device.bandwidth * options.streaming)  # reads p, g, m; writes p, m
    step = options.batch * both + reduce + optimizer
    flops = 2 * sum(one.macs for one in training)
    rate = options.batch / step
    parts = {"arithmetic": options.batch * arithmetic, "memory": options.batch * memory, "all-reduce": reduce}
    if options.cores:
        parts["input"] = options.batch / (options.cores * options.decode)
        rate = min(rate, options.batch / parts["input"])
        parts["input"] *= parts["input"] > step  # beside the step, so it counts only where it is the longer one
    forward_rate = 1 / seconds_an_image(forward, device, *shares)[2]
    return {
        "model": name,
        "device": device.name,
        "gmacs": sum(one.macs for one in forward) / 1e9,
        "gmacs_in_published_order": published / 1e9,
        "gmacs_published": PUBLISHED.get(name),
        "parameters": parameters,
        "step_gflop_an_image": flops / 1e9,
        "step_mb_an_image": 2 * sum(one.numbers for one in training) / 1e6,
        "arithmetic_ms": 1e3 * options.batch * arithmetic,
        "memory_ms": 1e3 * options.batch * memory,
        "all_reduce_ms": 1e3 * reduce,
        "step_ms": 1e3 * step,
        "bottleneck": max(parts, key=parts.__getitem__),
        "images_a_second": rate,
        "share_of_peak": flops * rate / device.flops,
        "forward_images_a_second": forward_rate,
        "cores_a_device": options.batch / step / options.decode,
        "forward_cores_a_device": forward_rate / options.decode,
    }


# ---- the script


def parse_arguments():
    """Reads what to count and which shares to assume."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", default=",".join(NAMES))
    parser.add_argument("--size", type=int, default=224, help="side of the image in pixels")
    parser.add_argument("--batch", type=int, default=256, help="images a device")
    parser.add_argument("--devices", type=int, default=8, help="that train together")
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of the peak that convolutions reach")
    parser.add_argument("--streaming", type=float, default=0.7, help="share of memory's and links' bandwidth")
    parser.add_argument(
        "--link", type=float, help="GB/s of a host's network, where it is slower than the devices' links"
    )
    parser.add_argument("--decode", type=float, default=500, help="images a second that a core reads and augments")
    parser.add_argument("--cores", type=float, help="that a device has for its input; by default as many as it needs")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file for the figures")
    options = parser.parse_args()
    for name in ("size", "batch", "devices", "utilisation", "streaming", "decode"):
        if not getattr(options, name) > 0:
            parser.error(f"--{name} must be positive, got {getattr(options, name)}")
    return options


def print_tables(rows, options):
    """Prints the figures in Markdown."""
    print(
        f"Computed, not measured: {options.batch} images of {options.size} x {options.size} a device, "
        f"{options.devices} devices, bfloat16, {options.utilisation:.0%} of peak arithmetic, "
        f"{options.streaming:.0%} of bandwidth, {options.decode:.0f} images/s a core\n"
    )
    print("| network | GMAC here | in torchvision's order | published | parameters | GFLOP a step | MB a step |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for row in {row["model"]: row for row in rows}.values():
        published = "-" if row["gmacs_published"] is None else f"{row['gmacs_published']:.2f}"
        print(
            f"| {row['model']} | {row['gmacs']:.2f} | {row['gmacs_in_published_order']:.2f} | {published} | "
            f"{row['parameters'] / 1e6:.1f} M | {row['step_gflop_an_image']:.1f} | {row['step_mb_an_image']:.0f} |"
        )
    print(
        "\n| network | device | arithmetic ms | memory ms | all-reduce ms | step ms | bottleneck | images/s | of peak ",
        end="",
    )
    print("| forward images/s | cores: step | forward |\n|---|---|" + "---:|" * 4 + "---|" + "---:|" * 5)
    for row in rows:
        print(
            f"| {row['model']} | {row['device']} | {row['arithmetic_ms']:.0f} | {row['memory_ms']:.0f} | "
            f"{row['all_reduce_ms']:.1f} | {row['step_ms']:.0f} | {row['bottleneck']} | {row['images_a_second']:.0f} | "
            f"{row['share_of_peak']:.0%} | {row['forward_images_a_second']:.0f} | {row['cores_a_device']:.1f} | "
            f"{row['forward_cores_a_device']:.1f} |"
        )
    print()
    for device in DEVICES:
        print(
            f"- {device.name}: {device.flops / 1e12:.0f} TFLOP/s, {device.bandwidth / 1e9:.0f} GB/s, "
            f"{device.link / 1e9:.0f} GB/s a direction: {device.source}"
        )


def main():
    """Counts, prints and writes."""
    options = parse_arguments()
    try:
        rows = [expect(name, device, options) for name in options.models.split(",") for device in DEVICES]
    except ValueError as error:
        sys.exit(f"{pathlib.Path(__file__).name}: {error}")
    print_tables(rows, options)
    if options.output:
        arguments = {key: value for key, value in vars(options).items() if key != "output"}
        options.output.write_text(json.dumps({"arguments": arguments, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
