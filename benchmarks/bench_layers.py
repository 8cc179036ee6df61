"""What each rewrite of a layer gains over XLA's own lowering, and what was tried and left out.

    python benchmarks/bench_layers.py --output=metrics.json

Every row is a layer with its gradients, by input and by kernel, at batch 16 and float32; of the stem, whose input are
images, by kernel alone. The two alternatives take turns within one run and are checked against each other. Rewrites
that gain less than 1.2 are left out.
"""

import argparse
import functools
import json
import operator
import pathlib

import jax
import numpy as np
from jax import numpy as jnp
from measure import machine, median_interval, spread, take_turns

from distcam_jax.models.convolution import compiler_options, convolve
from distcam_jax.models.pooling import max_pool

NHWC = ("NHWC", "HWIO", "NHWC")


def parse_arguments():
    """Reads how often to measure and where to write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=15, help="turns of each alternative")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    if arguments.batch < 1 or arguments.repeats < 1:
        parser.error("--batch and --repeats must be at least 1")
    return arguments


def xla_convolution(x, kernel, stride):
    """XLA's convolution with torch's border."""
    border = (kernel.shape[0] // 2,) * 2
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), (border, border), dimension_numbers=NHWC)


def xla_max_pool(x):
    """XLA's maximum over 3 x 3 windows at stride 2, whose gradient is a scatter."""
    border = ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), border)


def space_to_depth_stem(x, kernel, stride):
    """The 7 x 7 stem at stride 2 as a 4 x 4 convolution of 2 x 2 blocks; for even sides."""
    b, h, w, k = x.shape
    x = jnp.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0))).reshape(b, h // 2 + 3, 2, w // 2 + 3, 2, k)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2 + 3, w // 2 + 3, 4 * k)
    kernel = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0))).reshape(4, 2, 4, 2, k, -1)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(4, 4, 4 * k, -1)
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=NHWC)


def patches_product(x, kernel, stride):
    """A convolution as one matrix product of all its shifted inputs; 1 x 1 kernels have just one."""
    size, (b, h, w, _) = kernel.shape[0], x.shape
    border = size // 2
    padded = jnp.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
    taps = [padded[:, i : i + h, j : j + w] for i in range(size) for j in range(size)]
    rows = jnp.concatenate(taps, -1).reshape(b * h * w, -1)
    return jnp.matmul(rows, kernel.reshape(rows.shape[1], -1)).reshape(b, h, w, -1)


def bottlenecks(convolution, x, *kernels):
    """Three 1 x 1 bottlenecks with shortcuts and ReLUs: what a ResNet-50 has around its 3 x 3 convolutions."""
    for narrow, wide in zip(kernels[::2], kernels[1::2], strict=True):
        x = jax.nn.relu(x + convolution(jax.nn.relu(convolution(x, narrow, 1)), wide, 1))
    return x


def cases(batch):
    """Layer, rewrite, (the rewrite, XLA's), the arguments' shapes, and the compiler options of both."""
    options = compiler_options()

    def convolution(side, features_in, features, size, stride, tried=xla_convolution):
        both = [functools.partial(function, stride=stride) for function in (tried, xla_convolution)]
        return both, ((batch, side, side, features_in), (size, size, features_in, features))

    kernels = ((1, 1, 256, 64), (1, 1, 64, 256)) * 3
    blocks = [functools.partial(bottlenecks, function) for function in (convolve, xla_convolution)]
    yield "three 1 x 1 bottlenecks, 56 x 56", "barriers", blocks, ((batch, 56, 56, 256), *kernels), (options, options)
    pool = (max_pool, xla_max_pool), ((batch, 112, 112, 64),)
    yield "max-pool, 64 of 112 x 112", "slices", *pool, (options, options)
    for side, features_in, features in ((56, 64, 64), (28, 128, 128), (14, 256, 256), (7, 512, 512), (56, 192, 48)):
        both = convolution(side, features_in, features, 3, 1)
        yield f"3 x 3, {features_in} to {features}, {side} x {side}", "Eigen, not YNNPACK", *both, (options, {})
    both = convolution(56, 256, 64, 1, 1)
    yield "1 x 1, 256 to 64, 56 x 56", "Eigen, not YNNPACK", *both, (options, {})
    for layer, shape, tried in (
        ("1 x 1, 256 to 64, 56 x 56", (56, 256, 64, 1, 1), patches_product),
        ("3 x 3, 64 to 64, 56 x 56", (56, 64, 64, 3, 1), patches_product),
        ("7 x 7 at stride 2, 3 to 64, 224 x 224", (224, 3, 64, 7, 2), space_to_depth_stem),
    ):
        name = "space to depth" if tried is space_to_depth_stem else "matrix product"
        yield layer, f"left out: {name}", *convolution(*shape, tried), (options, options)


def with_gradients(function, options, arguments):
    """Output and gradients, compiled; a function without arguments."""
    gradient = jax.eval_shape(function, *arguments)
    gradient = jax.random.normal(jax.random.key(1), gradient.shape)

    images = arguments[0].shape[-1] == 3

    def run(gradient, x, *kernel):
        differentiated = functools.partial(function, x) if images else function
        output, back = jax.vjp(differentiated, *(kernel if images else (x, *kernel)))
        return output, back(gradient)

    compiled = jax.jit(run, compiler_options=options).lower(gradient, *arguments).compile()
    return lambda: compiled(gradient, *arguments)


def measure(batch, repeats):
    """All figures, as they are written to JSON, printed row by row."""
    rows = []
    print(f"{'layer':42}{'rewrite':30}{'XLA ms':>9}{'ms':>9}{'gain':>7}{'95 %':>13}")
    for layer, rewrite, functions, shapes, options in cases(batch):
        arguments = [0.1 * jax.random.normal(jax.random.key(0), shape) for shape in shapes]
        names = ("rewrite", "xla")
        alternatives = {
            name: with_gradients(function, option, arguments)
            for name, function, option in zip(names, functions, options, strict=True)
        }
        for got, want in zip(*(jax.tree.leaves(alternatives[name]()) for name in names), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3 * np.abs(want).max(), err_msg=layer)
        seconds = take_turns(alternatives, repeats)
        gains = list(map(operator.truediv, seconds["xla"], seconds["rewrite"]))
        times = {name: spread([1e3 * second for second in seconds[name]]) for name in names}
        gain = spread(gains) | median_interval(gains)
        rows.append({"layer": layer, "rewrite": rewrite, "milliseconds": times, "gain": gain})
        print(
            f"{layer:42}{rewrite:30}{times['xla']['median']:9.1f}{times['rewrite']['median']:9.1f}"
            f"{gain['median']:7.2f}" + f"{gain['low']:.2f}..{gain['high']:.2f}".rjust(13),
            flush=True,
        )
    return rows


def main():
    """Measures, prints and writes."""
    arguments = parse_arguments()
    about = machine()
    print(f"{about['date']}  {about['processor']}, {about['cores']} cores, jax {about['versions']['jax']}")
    metrics = {
        "arguments": {"batch": arguments.batch, "repeats": arguments.repeats},
        "machine": about,
        "rows": measure(arguments.batch, arguments.repeats),
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    main()
