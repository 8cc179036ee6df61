"""Speed of episode_accuracies beside a NumPy loop over the episodes, on features that are computed once.

    python benchmarks/bench_fewshot.py --output=metrics.json
    python benchmarks/bench_fewshot.py --episodes=1000 --repeats=5

The loop takes all queries of an episode at once. The two take turns within one run, so a busy machine slows both alike;
ratios are formed turn by turn. Both get the same rows, and give the same scores. "Rows alone" reads the features of the
queries and adds them up: what no decision can do without.
"""

import argparse
import functools
import json
import operator
import os
import time

import jax
import numpy as np
from jax import numpy as jnp
from measure import OneLineParser, machine, median_interval, output_file, spread, take_turns, whole_number

from distcam_jax import fewshot
from distcam_jax.episodes import EpisodeSampler

COMPARED = 200  # episodes whose scores are compared
DECISIONS = {"l1": ("l1", False), "cosine": ("cosine", False), "rectified": ("cosine", True)}  # metric, rectified


def parse_arguments():
    """Reads the sizes of the problem and where to write the figures."""
    parser = OneLineParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--images", type=whole_number, default=12_000)
    parser.add_argument("--channels", type=whole_number, default=640)
    parser.add_argument("--classes", type=whole_number, default=20)
    parser.add_argument("--episodes", type=whole_number, default=10_000)
    parser.add_argument("--ways", type=whole_number, default=5)
    parser.add_argument("--shots", type=whole_number, default=1)
    parser.add_argument("--queries", type=whole_number, default=15, help="of each class")
    parser.add_argument("--repeats", type=whole_number, default=9, help="turns of each alternative")
    parser.add_argument("--output", type=output_file, help="JSON file for the figures")
    return vars(parser.parse_args())


def sparse_features(images, channels, classes, seed):
    """Features `[n, k]` as after a ReLU, most of them zero, and their classes `[n]`."""
    generator = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    means = generator.normal(-0.5, 0.3, size=(classes, channels))
    return np.maximum(generator.normal(size=(images, channels)) + means[labels], 0).astype(np.float32), labels


def unit(vectors):
    """Vectors `[n, k]` divided by their lengths."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def nearest_scores(supports, queries, metric):
    """Scores `[m, ways]` of queries for the means of the supports `[ways, shots, k]`."""
    prototypes = supports.mean(axis=1)
    if metric == "cosine":
        return unit(queries) @ unit(prototypes).T
    return -np.abs(queries[:, None] - prototypes).sum(axis=-1)


def rectified_scores(supports, queries):
    """Cosines `[m, ways]` of shifted queries to rectified prototypes, with a temperature of 10."""
    ways, shots, channels = supports.shape
    prototypes, supports = supports.mean(axis=1), supports.reshape(-1, channels)
    queries = queries + (supports.mean(axis=0) - queries.mean(axis=0))
    directions, moved = unit(prototypes).T, unit(queries)
    to_query = moved @ directions
    ways_of = np.concatenate([np.repeat(np.arange(ways), shots), to_query.argmax(axis=1)])
    members = ways_of[:, None] == np.arange(ways)
    weights = members * np.exp(np.float32(10) * np.concatenate([unit(supports) @ directions, to_query]))
    weights /= weights.sum(axis=0)
    return moved @ unit(weights.T @ np.concatenate([supports, queries])).T


def numpy_loop(features, support_rows, query_rows, metric, rectified):
    """Scores `[e, m, ways]`, one episode after the other."""
    scores = []
    for supports, queries in zip(support_rows, query_rows, strict=True):
        arrays = features[supports], features[queries.ravel()]
        scores.append(rectified_scores(*arrays) if rectified else nearest_scores(*arrays, metric))
    return np.stack(scores)


def numpy_accuracies(features, support_rows, query_rows, metric, rectified):
    """Accuracy of every episode `[e]`."""
    predicted = numpy_loop(features, support_rows, query_rows, metric, rectified).argmax(axis=-1)
    return (predicted.reshape(query_rows.shape) == np.arange(query_rows.shape[1])[:, None]).mean(axis=(1, 2))


def numpy_rows(features, query_rows):
    """Sums `[e, k]` of the features of the queries."""
    return np.stack([features[rows.ravel()].sum(axis=0) for rows in query_rows])


@jax.jit
def rows_alone(features, query_rows):
    """Sums `[e, k]` of the features of the queries."""
    return jax.lax.map(lambda rows: jnp.sum(features[rows.reshape(-1)], axis=0), query_rows)


def compare(alternatives, repeats):
    """Seconds of `numpy` and `ours`, ours by its first call too, and the ratio of the former two."""
    start = time.perf_counter()
    jax.block_until_ready(alternatives["ours"]())
    first = time.perf_counter() - start
    seconds = take_turns(alternatives, repeats)
    ratios = list(map(operator.truediv, seconds["numpy"], seconds["ours"]))
    return {
        "first_call_seconds": first,
        "seconds": {name: spread(times) for name, times in seconds.items()},
        "numpy_over_ours": spread(ratios) | {"interval": median_interval(ratios)},
    }


def measure(images, channels, classes, episodes, ways, shots, queries, repeats):
    """All figures, as they are written to JSON, printed row by row."""
    about = machine()
    features, labels = sparse_features(images, channels, classes, seed=0)
    _, *drawn = EpisodeSampler(labels, ways=ways, shots=shots, queries=queries, seed=0).episodes(episodes)
    rows = []
    for name, (metric, rectified) in DECISIONS.items():
        options = {"metric": metric, "rectified": rectified}
        alternatives = {
            "numpy": functools.partial(numpy_accuracies, features, *drawn, **options),
            "ours": functools.partial(fewshot.episode_accuracies, features, *drawn, metric=metric, rectified=rectified),
        }
        row = {"decision": name, **compare(alternatives, repeats)}
        some = [part[:COMPARED] for part in drawn]
        want = numpy_loop(features, *some, **options)
        _, scores = fewshot.episode_predictions(features, *some, metric=metric, rectified=rectified)
        np.testing.assert_allclose(scores.reshape(want.shape), want, rtol=1e-5, atol=1e-6, err_msg=name)
        theirs, own = (function() for function in alternatives.values())
        row["accuracy"] = float(own.mean())
        row["accuracy_of_numpy"] = float(theirs.mean())
        rows.append(row)
        print_row(row)
    table = jnp.asarray(features)
    alternatives = {"numpy": lambda: numpy_rows(features, drawn[1]), "ours": lambda: rows_alone(table, drawn[1])}
    rows.append({"decision": "rows alone", **compare(alternatives, repeats)})
    print_row(rows[-1])
    zeros = float(np.mean(features == 0))
    return {"machine": about, "load_at_the_end": os.getloadavg()[0], "share_of_zeros": zeros, "rows": rows}


def print_row(row):
    """Prints one comparison."""
    ours, numpy = (row["seconds"][name] for name in ("ours", "numpy"))
    ratio, interval = row["numpy_over_ours"], row["numpy_over_ours"]["interval"]
    print(
        f"{row['decision']:12} {numpy['median']:8.2f} {ours['median']:8.2f} {row['first_call_seconds']:8.2f}"
        f" {ratio['median']:8.1f} ({interval['low']:.1f}..{interval['high']:.1f})",
        flush=True,
    )


def main():
    """Measures, prints and writes."""
    arguments = parse_arguments()
    output = arguments.pop("output")
    print(
        "seconds: NumPy loop, episode_accuracies, its first call; the loop's time over that of episode_accuracies, 95 %"
    )
    figures = measure(**arguments)
    if output:
        output.write_text(json.dumps({"arguments": arguments, **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
