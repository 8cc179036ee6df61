"""Speed of nearest_neighbors beside faiss, PyTorch and a blocked NumPy loop, and the memory it takes.

    python benchmarks/bench_retrieval.py
    python benchmarks/bench_retrieval.py --sizes=16384x512 --repeats=3 --output=metrics.json

The alternatives take turns within one run, so a busy machine slows all of them alike; ratios are formed turn by turn.
Faiss and PyTorch take part where they are installed. Each is given as many queries as it needs to be at its best, the
slow ones fewer; times are for one query.
"""

import argparse
import functools
import importlib.util
import json
import operator
import os
import subprocess
import sys
from typing import Any

import numpy as np
from measure import alternate, machine, median_interval, output_file, peak_resident_mib, spread, whole_number

from distcam_jax.retrieval import METRICS, nearest_neighbors

COUNT = 10
BLOCK = 4096  # rows of the gallery in the products of the loops
BLOCK_L1 = 256  # in NumPy's L1 loop, whose differences then stay in the cache
QUERIES = {"l1": 256, "l2": 1024, "cosine": 1024}
FEWER_QUERIES = {"NumPy loop": 16, "faiss": 64, "torch": 64}  # for L1
MOST_OVER_FAISS, LEAST_OVER_LOOP = 1.2, 5.0  # the goals: L2 and cosine beside faiss, L1 beside the loop
LEAST_AGREEING = 0.999


def parse_arguments():
    """Reads what to search and how often, and where to write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", default="1000000x512,15913x2048", help="rows x channels of galleries")
    parser.add_argument("--repeats", type=whole_number, default=5, help="turns of each alternative")
    parser.add_argument("--output", type=output_file, help="JSON file for the figures")
    parser.add_argument("--memory-of", choices=METRICS, help=argparse.SUPPRESS)
    return parser.parse_args()


def random_vectors(rows, channels, seed):
    """Features `[n, k]` as after a ReLU."""
    vectors = np.random.default_rng(seed).standard_normal((rows, channels), np.float32)
    return np.maximum(vectors, 0, out=vectors)


# ---- the alternatives; each takes queries `[q, k]` and gives positions `[q, COUNT]`


def unit(vectors):
    """Vectors divided by their lengths, none of which is zero here."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def best_so_far(best, distances, start):
    """Distances and positions `[q, COUNT]` of the nearest of those before and of a block's `[q, m]`."""
    places = np.argpartition(distances, COUNT, axis=1)[:, :COUNT]
    distances, positions = np.take_along_axis(distances, places, axis=1), places + start
    if best:
        distances, positions = (np.concatenate(pair, axis=1) for pair in zip(best, (distances, positions), strict=True))
    order = np.argsort(distances, axis=1)[:, :COUNT]
    return [np.take_along_axis(values, order, axis=1) for values in (distances, positions)]


def numpy_products(gallery, metric, query):
    """By products, a block of the gallery after the other; of unit vectors for cosine."""
    best: Any = None
    for start in range(0, len(gallery), BLOCK):
        others = gallery[start : start + BLOCK]
        distances = -2 * (query @ others.T)
        if metric == "l2":
            distances += np.einsum("mk,mk->m", others, others)
        best = best_so_far(best, distances, start)
    return best[1]


def numpy_differences(gallery, query):
    """In L1, a query and a block of the gallery after the other."""
    found = []
    for one in query:
        parts = [np.abs(one - gallery[start : start + BLOCK_L1]).sum(-1) for start in range(0, len(gallery), BLOCK_L1)]
        found.append(best_so_far(None, np.concatenate(parts)[None], 0)[1][0])
    return np.stack(found)


def torch_search(gallery, metric, query):
    """A block of the gallery after the other, by a product or `torch.cdist`; of unit vectors for cosine."""
    import torch  # pyrefly: ignore[missing-import]

    best: Any = None
    query = torch.from_numpy(query)
    for start in range(0, len(gallery), BLOCK):
        others = gallery[start : start + BLOCK]
        distances = torch.cdist(query, others, p=1) if metric == "l1" else -2 * (query @ others.T)
        if metric == "l2":
            distances += others.square().sum(-1)
        distances, positions = distances.topk(COUNT, largest=False)
        pair = distances, positions + start
        if best:
            pair = [torch.cat(both, dim=1) for both in zip(best, pair, strict=True)]
            order = pair[0].topk(COUNT, largest=False).indices
            pair = [values.gather(1, order) for values in pair]
        best = pair
    return best[1].numpy()


def make_alternatives(gallery, metric):
    """`{name: function}`; what can be done once for a gallery, such as an index, is done here."""
    import jax

    placed = jax.device_put(gallery)  # as ours is, faiss's index and torch's tensor are made once
    alternatives = {"ours": lambda query: nearest_neighbors(query, placed, count=COUNT, metric=metric)[0]}
    vectors = unit(gallery) if metric == "cosine" else gallery
    if metric == "l1":
        alternatives["NumPy loop"] = functools.partial(numpy_differences, vectors)
    else:
        alternatives["NumPy loop"] = functools.partial(numpy_products, vectors, metric)
    if importlib.util.find_spec("faiss"):
        import faiss

        metrics = {"l1": faiss.METRIC_L1, "l2": faiss.METRIC_L2, "cosine": faiss.METRIC_INNER_PRODUCT}
        index = faiss.IndexFlat(gallery.shape[1], metrics[metric])
        index.add(vectors)
        alternatives["faiss"] = lambda query: index.search(query, COUNT)[1]
    if importlib.util.find_spec("torch"):
        import torch  # pyrefly: ignore[missing-import]

        alternatives["torch"] = functools.partial(torch_search, torch.from_numpy(vectors), metric)
    return alternatives


# ---- the figures


def compare(gallery, metric, repeats):
    """Milliseconds a query of all alternatives, their time over ours, and how far they agree with it."""
    queries = random_vectors(QUERIES[metric], gallery.shape[1], seed=1)
    alternatives = make_alternatives(gallery, metric)
    given = {name: queries[: FEWER_QUERIES.get(name) if metric == "l1" else None] for name in alternatives}
    found = {name: search(given[name]) for name, search in alternatives.items()}
    agreeing = {name: float(np.mean(places == found["ours"][: len(places)])) for name, places in found.items()}
    assert min(agreeing.values()) >= LEAST_AGREEING, agreeing
    calls = {name: functools.partial(search, given[name]) for name, search in alternatives.items()}
    row: dict = {"queries": {name: len(part) for name, part in given.items()}, "agreeing": agreeing}
    for kind, seconds in zip(("wall", "processor"), alternate(calls, repeats), strict=True):
        times = {name: [1e3 * t / len(given[name]) for t in turns] for name, turns in seconds.items()}
        row[kind] = {"milliseconds_a_query": {name: spread(turns) for name, turns in times.items()}, "over_ours": {}}
        for name in times.keys() - {"ours"}:
            ratios = list(map(operator.truediv, times[name], times["ours"]))
            row[kind]["over_ours"][name] = spread(ratios) | {"interval": median_interval(ratios)}
    return row | {"goals": goals(row["wall"]["over_ours"], metric)}


def goals(ratios, metric):
    """Which of the goals there is one for is met."""
    if metric == "l1":
        return {"NumPy loop": ratios["NumPy loop"]["median"] >= LEAST_OVER_LOOP}
    return {"faiss": ratios["faiss"]["median"] >= 1 / MOST_OVER_FAISS} if "faiss" in ratios else {}


def memory_of(gallery_size, metric):
    """MiB resident with the gallery made, and the most while it is searched; in a process of its own."""
    gallery, query = random_vectors(*gallery_size, seed=0), random_vectors(QUERIES[metric], gallery_size[1], seed=1)
    nearest_neighbors(query[:1], gallery[:100], count=1, metric=metric)  # JAX is there
    before = peak_resident_mib(os.getpid())
    nearest_neighbors(query, gallery, count=COUNT, metric=metric)
    return {"before": before, "most": peak_resident_mib(os.getpid()), "gallery": gallery.nbytes / 2**20}


def measured_memory(size, metric):
    """`memory_of` in a process of its own."""
    command = [sys.executable, __file__, f"--sizes={size}", f"--memory-of={metric}"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(sizes, repeats):
    """All figures, as they are written to JSON."""
    about, galleries = machine(), {}
    print("milliseconds a query; an alternative's time over ours, 95 %")
    for size in sizes.split(","):
        memory = {metric: measured_memory(size, metric) for metric in METRICS}
        gallery = random_vectors(*map(int, size.split("x")), seed=0)
        galleries[size] = {"memory_mib": memory, "metrics": {}}
        for metric in METRICS:
            row = galleries[size]["metrics"][metric] = compare(gallery, metric, repeats)
            print_row(size, metric, row, memory[metric])
    return {"machine": about, "load_at_the_end": os.getloadavg()[0], "count": COUNT, "galleries": galleries}


def print_row(size, metric, row, memory):
    """Prints one comparison."""
    times, ratios = row["wall"]["milliseconds_a_query"], row["wall"]["over_ours"]
    told = [f"{size} {metric:6} ours {times['ours']['median']:.3f}"]
    for name, ratio in ratios.items():
        interval = f"{ratio['interval']['low']:.2f}..{ratio['interval']['high']:.2f}"
        told.append(f"{name} {times[name]['median']:.3f}, {ratio['median']:.2f} ({interval})")
    print("; ".join(told), f"; MiB {memory}; goals {row['goals']}", flush=True)


def main():
    """Measures, prints and writes."""
    arguments = vars(parse_arguments())
    output, metric = arguments.pop("output"), arguments.pop("memory_of")
    if metric:
        print(json.dumps(memory_of(tuple(map(int, arguments["sizes"].split("x"))), metric)))
        return
    figures = measure(**arguments)
    if output:
        output.write_text(json.dumps({"arguments": arguments, **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
