"""Speed and memory of dist_cam beside a NumPy loop, a plain vmap, and the matrix product it cannot do without.

    python benchmarks/bench_cam.py
    python benchmarks/bench_cam.py --images=64 --repeats=50 --output=metrics.json

The alternatives take turns within one run, so a busy machine slows all of them alike; ratios are formed turn by turn.
"""

import argparse
import importlib.util
import json
import operator
import pathlib
import statistics

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from measure import machine, spread, take_turns

import distcam_jax


def parse_arguments():
    """Reads the sizes of the problem and where to write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--prototypes", type=int, default=1000)
    parser.add_argument("--channels", type=int, default=2048)
    parser.add_argument("--size", type=int, default=7, help="height and width of the feature maps")
    parser.add_argument("--repeats", type=int, default=25, help="turns of each alternative")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file for the figures")
    return parser.parse_args()


def numpy_loop(features, prototypes):
    """Dist-CAM of one image after the other, as one would write it in NumPy."""
    channels = features.shape[-1]
    maps = []
    for image in features:
        distances = np.abs(prototypes - image.mean((0, 1)))
        weights = 1 / (distances / distances.mean(-1, keepdims=True) + np.float32(0.1))
        weights /= weights.sum(-1, keepdims=True)
        maps.append((weights @ image.reshape(-1, channels).T).reshape(-1, *image.shape[:2]))
    return np.stack(maps)


def weights_of(image, prototypes):
    """Weights `[c, k]` of one image for every prototype."""
    return distcam_jax.reciprocal_weights(
        distcam_jax.channel_distances(distcam_jax.global_average_pool(image), prototypes)
    )


@jax.jit
def plain_vmap(features, prototypes):
    """Dist-CAM of all images at once, with all their weights `[n, c, k]` in memory."""
    return jax.vmap(lambda image: distcam_jax.weighted_channel_sum(image, weights_of(image, prototypes)))(features)


@jax.jit
def weights_only(features, prototypes):
    """The elementwise part: every weight is computed, one a class is kept."""
    return lax.map(lambda image: lax.optimization_barrier(weights_of(image, prototypes))[:, 0], features)


@jax.jit
def bare_product(features, weights):
    """The product of Eq. (6) alone, with ready weights `[n, c, k]` and maps laid out as those of dist_cam."""
    return jnp.einsum("nhwk,nck->nchw", features, weights, precision="highest")


@jax.jit
def bare_product_classes_last(features, weights):
    """The same product with maps `[n, h, w, c]`, the layout that suits a processor."""
    return jnp.einsum("nhwk,nck->nhwc", features, weights, precision="highest")


def torch_einsum(features, weights):
    """The bare product in PyTorch: a function without arguments, or None where PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        return None
    torch = importlib.import_module("torch")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    features, weights = (torch.from_numpy(np.array(array)).to(device) for array in (features, weights))

    def product():
        maps = torch.einsum("nhwk,nck->nchw", features, weights)
        if device == "cuda":
            torch.cuda.synchronize()
        return maps

    return product


def matmul_limit(size=2048):
    """GFLOP/s of a large square product, the rate that the machine can reach."""
    square = jnp.ones((size, size))
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    seconds = take_turns({"square": lambda: product(square)}, 5)["square"]
    return 2 * size**3 / min(seconds) / 1e9


def temporary_mib(function, images, features, prototypes):
    """Temporary memory in MiB that the compiled function asks for with that many images."""
    features = jax.ShapeDtypeStruct((images, *features.shape[1:]), features.dtype)
    return function.lower(features, prototypes).compile().memory_analysis().temp_size_in_bytes / 2**20


def make_alternatives(features, prototypes):
    """Functions without arguments to compare, by name; the maps are checked against the NumPy loop."""
    host_features, host_prototypes = np.asarray(features), np.asarray(prototypes)
    weights = jax.jit(jax.vmap(weights_of, (0, None)))(features, prototypes)
    alternatives = {
        "NumPy loop": lambda: numpy_loop(host_features, host_prototypes),
        "plain vmap": lambda: plain_vmap(features, prototypes),
        "dist_cam": lambda: distcam_jax.dist_cam(features, prototypes),
        "bare product": lambda: bare_product(features, weights),
    }
    torch_product = torch_einsum(features, weights)
    if torch_product is None:
        print("torch einsum: skipped, PyTorch is not installed")
    else:
        alternatives["torch einsum"] = torch_product
    for name in ("plain vmap", "dist_cam", "bare product"):
        np.testing.assert_allclose(alternatives[name](), alternatives["NumPy loop"](), rtol=1e-4, err_msg=name)
    alternatives["bare product, classes last"] = lambda: bare_product_classes_last(features, weights)
    alternatives["weights only"] = lambda: weights_only(features, prototypes)
    return alternatives


def measure(images, prototypes, channels, size, repeats):
    """All figures, as they are written to JSON."""
    generator = np.random.default_rng(0)
    features = jax.device_put(np.maximum(generator.normal(size=(images, size, size, channels)), 0).astype(np.float32))
    vectors = jax.device_put(np.abs(generator.normal(size=(prototypes, channels))).astype(np.float32))
    seconds = take_turns(make_alternatives(features, vectors), repeats)
    own = seconds["dist_cam"]
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64) if size <= images]
    blocks = {size: lambda size=size: distcam_jax.dist_cam(features, vectors, batch_size=size) for size in sizes}
    by_block = take_turns(blocks, repeats)
    operations = 2 * features.size * prototypes
    return {
        "machine": machine(),
        "milliseconds": {name: spread([1e3 * t for t in times]) for name, times in seconds.items()},
        "time_over_dist_cam": {
            name: spread(list(map(operator.truediv, times, own))) for name, times in seconds.items()
        },
        "gflops": {name: operations / statistics.median(times) / 1e9 for name, times in seconds.items()},
        "matmul_limit_gflops": matmul_limit(),
        "milliseconds_by_batch_size": {size: spread([1e3 * t for t in times]) for size, times in by_block.items()},
        "temporary_mib_for_64_images": {
            "dist_cam": temporary_mib(distcam_jax.dist_cam, 64, features, vectors),
            "plain vmap": temporary_mib(plain_vmap, 64, features, vectors),
        },
    }


def main():
    """Measures, prints and writes."""
    arguments = vars(parse_arguments())
    output = arguments.pop("output")
    metrics = {"arguments": arguments, **measure(**arguments)}
    print_tables(metrics)
    if output:
        output.write_text(json.dumps(metrics, indent=2) + "\n")


def print_tables(metrics):
    """Prints the figures of `measure`."""
    about, arguments = metrics["machine"], metrics["arguments"]
    print(f"{about['date']}  {about['processor']}, {about['cores']} cores, load {about['load']:.1f}")
    print(f"{about['back_end']} ({about['device']}), jax {about['versions']['jax']}, {arguments}\n")
    print(f"{'':28}{'ms':>8}{'min..max':>16}{'/ dist_cam':>12}{'min..max':>14}{'GFLOP/s':>9}")
    for name, times in metrics["milliseconds"].items():
        ratio = metrics["time_over_dist_cam"][name]
        rate = "" if name == "weights only" else f"{metrics['gflops'][name]:.0f}"
        time_range, ratio_range = f"{times['min']:.1f}..{times['max']:.1f}", f"{ratio['min']:.2f}..{ratio['max']:.2f}"
        print(f"{name:28}{times['median']:8.2f}{time_range:>16}{ratio['median']:12.2f}{ratio_range:>14}{rate:>9}")
    print(f"{'large square product':28}{metrics['matmul_limit_gflops']:59.0f}\n")
    for size, times in metrics["milliseconds_by_batch_size"].items():
        print(f"dist_cam, batch_size {size:<7}{times['median']:8.2f} ms  {times['min']:.1f}..{times['max']:.1f}")
    print()
    for name, mib in metrics["temporary_mib_for_64_images"].items():
        print(f"temporary memory for 64 images, {name}: {mib:.1f} MiB")


if __name__ == "__main__":
    main()
