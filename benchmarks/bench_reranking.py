"""Speed of k_reciprocal_rerank beside the algorithm written out with whole matrices, and what Market-1501's size takes.

    python benchmarks/bench_reranking.py
    python benchmarks/bench_reranking.py --repeats=1 --without-market

Both take turns within one run, so a busy machine slows both alike; ratios are formed turn by turn. The alternative is
the algorithm as it is published: all distances in one matrix, sorted, and a loop over the images. Features are drawn
about a centre for each person, so that neighbours are mutual as those of a trained network are.
"""

import argparse
import json
import operator
import os
import subprocess
import sys
import time

import numpy as np
from measure import alternate, machine, median_interval, output_file, peak_resident_mib, spread, whole_number

from distcam_jax.retrieval import k_reciprocal_rerank

SMALL = (800, 3200, 256)  # queries, gallery images, channels
MARKET = (3368, 15913, 2048)
IMAGES_A_PERSON = 20
LEAST_OVER_LOOP, MOST_SECONDS, MOST_GIB = 10.0, 60.0, 4.0  # the goals
K1, K2, LAMBDA = 20, 6, 0.3


def parse_arguments():
    """Reads how often, and where to write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=whole_number, default=7, help="turns of each")
    parser.add_argument("--without-market", action="store_true", help="leaves the size of Market-1501 out")
    parser.add_argument("--output", type=output_file, help="JSON file for the figures")
    parser.add_argument("--market-alone", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def random_people(queries, images, channels):
    """Unit features of queries and gallery, `[q, k]` and `[g, k]`."""
    generator, size = np.random.default_rng(0), queries + images
    centres = generator.standard_normal((size // IMAGES_A_PERSON, channels), np.float32)
    vectors = centres[generator.integers(len(centres), size=size)]
    vectors += generator.standard_normal((size, channels), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[:queries], vectors[queries:]


# ---- the alternative


def reciprocal(order, image, count):
    """The images among the `count` nearest of an image that have it among theirs; an image is its own nearest."""
    forward = order[image, :count]
    return forward[(order[forward, :count] == image).any(axis=1)]


def rerank_by_loop(query, gallery):
    """Distances `[q, g]` by k-reciprocal encoding, with whole matrices and a loop over the images."""
    both, queries = np.concatenate([query, gallery]), len(query)
    lengths = np.sum(np.square(both), axis=1)
    distances = lengths[:, None] + lengths - 2 * both @ both.T
    distances = (distances / distances.max(axis=0)).T
    order = np.argsort(distances, axis=1)
    encoding, half = np.zeros_like(distances), int(np.around(K1 / 2)) + 1
    for image in range(len(both)):
        own = members = reciprocal(order, image, K1 + 1)
        for member in own:
            theirs = reciprocal(order, member, half)
            if len(np.intersect1d(theirs, own)) > 2 / 3 * len(theirs):
                members = np.append(members, theirs)
        members = np.unique(members)
        weights = np.exp(-distances[image, members])
        encoding[image, members] = weights / weights.sum()
    encoding = np.stack([encoding[order[image, :K2]].mean(axis=0) for image in range(len(both))])
    having = [np.flatnonzero(encoding[:, column]) for column in range(len(both))]
    jaccard = np.zeros((queries, len(both)), np.float32)
    for image in range(queries):
        shared = np.zeros(len(both), np.float32)
        for column in np.flatnonzero(encoding[image]):
            rows = having[column]
            shared[rows] += np.minimum(encoding[image, column], encoding[rows, column])
        jaccard[image] = 1 - shared / (2 - shared)
    return ((1 - LAMBDA) * jaccard + LAMBDA * distances[:queries])[:, queries:]


# ---- the figures


def compare(repeats):
    """Seconds of both, the loop's over ours, and how far their results differ."""
    query, gallery = random_people(*SMALL)
    options = {"k1": K1, "k2": K2, "lambda_value": LAMBDA}
    calls = {
        "ours": lambda: k_reciprocal_rerank(query, gallery, **options),
        "loop": lambda: rerank_by_loop(query, gallery),
    }
    ours, loop = calls["ours"](), calls["loop"]()
    row: dict = {"size": SMALL, "largest_difference": float(np.abs(ours - loop).max())}
    row["same_first"] = float(np.mean(ours.argmin(axis=1) == loop.argmin(axis=1)))
    assert row["largest_difference"] < 1e-4, row
    for kind, seconds in zip(("wall", "processor"), alternate(calls, repeats), strict=True):
        ratios = list(map(operator.truediv, seconds["loop"], seconds["ours"]))
        times = {name: spread(turns) for name, turns in seconds.items()}
        row[kind] = {"seconds": times, "over_ours": spread(ratios) | {"interval": median_interval(ratios)}}
    return row | {"goal": row["wall"]["over_ours"]["median"] >= LEAST_OVER_LOOP}


def market_alone():
    """Seconds and memory at Market-1501's size, in a process of its own."""
    query, gallery = random_people(*MARKET)
    before, start = peak_resident_mib(os.getpid()), time.perf_counter()
    k_reciprocal_rerank(query, gallery, k1=K1, k2=K2, lambda_value=LAMBDA)
    return {
        "size": MARKET,
        "seconds": time.perf_counter() - start,
        "before": before,
        "most": peak_resident_mib(os.getpid()),
    }


def main():
    """Measures, prints and writes."""
    arguments = vars(parse_arguments())
    output, alone = arguments.pop("output"), arguments.pop("market_alone")
    if alone:
        print(json.dumps(market_alone()))
        return
    about = machine()
    row = compare(arguments["repeats"])
    times, ratio = row["wall"]["seconds"], row["wall"]["over_ours"]
    interval = f"{ratio['interval']['low']:.1f}..{ratio['interval']['high']:.1f}"
    print(f"{SMALL}: ours {times['ours']['median']:.3f} s, loop {times['loop']['median']:.3f} s")
    print(f"loop over ours {ratio['median']:.1f} ({interval}), goal {row['goal']}")
    figures: dict = {"machine": about, "small": row}
    if not arguments["without_market"]:
        command = [sys.executable, __file__, "--market-alone"]
        runs = [
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            for _ in range(min(3, arguments["repeats"]))
        ]
        seconds, most = spread([run["seconds"] for run in runs]), max(run["most"] for run in runs)
        goals = {"seconds": seconds["max"] <= MOST_SECONDS, "memory": most <= 1024 * MOST_GIB}
        figures["market"] = {"runs": runs, "goals": goals}
        told = f"{seconds['median']:.1f} s ({seconds['min']:.1f}..{seconds['max']:.1f}), {most:.0f} MiB"
        print(f"{MARKET}: {told}, goals {goals}")
    if output:
        figures["load_at_the_end"] = os.getloadavg()[0]
        output.write_text(json.dumps({"arguments": arguments, **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
