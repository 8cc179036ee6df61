"""Speed of episode_accuracies on cached features beside a NumPy loop over the episodes.

    python benchmarks/bench_fewshot.py
    python benchmarks/bench_fewshot.py --episodes=2000 --repeats=3 --output=metrics.json

Both get the same features and rows, and the loop works on a whole episode at a time. They take turns within one run, so
a busy machine slows both alike; ratios are formed turn by turn.
"""

import argparse
import functools
import json
import operator
import os
import time

import numpy as np
from measure import alternate, machine, median_interval, output_file, spread, whole_number

from distcam_jax.episodes import EpisodeSampler
from distcam_jax.fewshot import episode_accuracies

CLASSES, IMAGES, CHANNELS = 20, 600, 640  # images of each class
WAYS, SHOTS, QUERIES = 5, 1, 15
TEMPERATURE = 10.0
DECISIONS = {
    "inductive, L1": dict(metric="l1"),
    "inductive, L2": dict(metric="l2"),
    "inductive, cosine": dict(metric="cosine"),
    "rectified, cosine": dict(metric="cosine", rectified=True, temperature=TEMPERATURE),
}
MOST_SECONDS, LEAST_RATIO = 10.0, 20.0  # the goals
MOST_DIFFERENCE = 1e-3  # of the mean accuracies: float32 decides a query that is as near to two classes either way


def parse_arguments():
    """Reads how many episodes to evaluate, how often, and where to write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--episodes", type=whole_number, default=10_000)
    parser.add_argument("--repeats", type=whole_number, default=5, help="turns of each alternative")
    parser.add_argument("--output", type=output_file, help="JSON file for the figures")
    return parser.parse_args()


def random_features(seed):
    """Features `[n, k]` as after a ReLU, which overlap between the classes, and their labels `[n]`."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), IMAGES)
    centers = random.normal(scale=0.3, size=(CLASSES, CHANNELS))
    return np.maximum(random.normal(size=(len(labels), CHANNELS)) + centers[labels], 0).astype(np.float32), labels


# ---- the loop


def unit(vectors):
    """Vectors divided by their lengths, none of which is zero here."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def numpy_rectified(support, query):
    """Rectified prototypes `[ways, k]` and shifted queries, from supports `[ways, shots, k]` and queries `[m, k]`."""
    flat, directions = support.reshape(-1, CHANNELS), unit(support.mean(axis=1))
    query = query + (flat.mean(axis=0) - query.mean(axis=0))
    ways = np.eye(WAYS, dtype=np.float32)
    cosines = unit(query) @ directions.T
    members = np.concatenate([np.repeat(ways, SHOTS, axis=0), ways[cosines.argmax(axis=1)]])
    weights = members * np.exp(TEMPERATURE * np.concatenate([unit(flat) @ directions.T, cosines]))
    return (weights / weights.sum(axis=0)).T @ np.concatenate([flat, query]), query


def numpy_scores(support, query, metric, rectified):
    """Scores `[m, ways]`, the larger the nearer, of one episode."""
    if rectified:
        prototypes, query = numpy_rectified(support, query)
    else:
        prototypes = support.mean(axis=1)
    if metric == "cosine":
        return unit(query) @ unit(prototypes).T
    differences = query[:, None] - prototypes
    if metric == "l1":
        return -np.abs(differences).sum(axis=-1)
    return -np.square(differences).sum(axis=-1)


def numpy_loop(features, support_rows, query_rows, *, metric, rectified=False, temperature=TEMPERATURE):
    """Accuracies of one episode after the other, as one would write it in NumPy."""
    assert temperature == TEMPERATURE
    truth, accuracies = np.repeat(np.arange(WAYS), QUERIES), []
    for supports, queries in zip(support_rows, query_rows, strict=True):
        scores = numpy_scores(features[supports], features[queries.ravel()], metric, rectified)
        accuracies.append(np.mean(scores.argmax(axis=1) == truth))
    return np.array(accuracies)


# ---- the figures


def compare(features, rows, options, repeats):
    """Seconds and microseconds an episode of both, the loop's time over ours, and how far the results are apart."""
    alternatives = {
        "NumPy loop": functools.partial(numpy_loop, features, *rows, **options),
        "episode_accuracies": functools.partial(episode_accuracies, features, *rows, **options),
    }
    found, expected = alternatives["episode_accuracies"](), alternatives["NumPy loop"]()
    np.testing.assert_allclose(found.mean(), expected.mean(), atol=MOST_DIFFERENCE)
    row: dict = {
        "accuracy": {"NumPy loop": float(expected.mean()), "episode_accuracies": float(found.mean())},
        "episodes_that_differ": int(np.sum(np.abs(found - expected) > 1e-6)),
    }
    for kind, seconds in zip(("wall", "processor"), alternate(alternatives, repeats), strict=True):
        ratios = list(map(operator.truediv, seconds["NumPy loop"], seconds["episode_accuracies"]))
        row[kind] = {
            "seconds": {name: spread(times) for name, times in seconds.items()},
            "microseconds_an_episode": {
                name: spread([1e6 * t / len(rows[0]) for t in times]) for name, times in seconds.items()
            },
            "loop_over_ours": spread(ratios) | {"interval": median_interval(ratios)},
        }
    seconds, ratio = row["wall"]["seconds"]["episode_accuracies"]["median"], row["wall"]["loop_over_ours"]["median"]
    return row | {"goals": {"seconds": seconds <= MOST_SECONDS, "ratio": ratio >= LEAST_RATIO}}


def measure(episodes, repeats):
    """All figures, as they are written to JSON."""
    about, (features, labels) = machine(), random_features(seed=0)
    sampler = EpisodeSampler(labels, ways=WAYS, shots=SHOTS, queries=QUERIES, seed=0)
    start = time.perf_counter()
    _, *rows = sampler.episodes(episodes)
    drawing = time.perf_counter() - start
    print("seconds: NumPy loop, episode_accuracies; the loop's time over ours, 95 %; ratio of processor time, 95 %")
    decisions = {}
    for name, options in DECISIONS.items():
        decisions[name] = compare(features, rows, options, repeats)
        print_row(name, decisions[name])
    print(f"drawing the episodes: {drawing:.2f} s")
    return {
        "machine": about,
        "load_at_the_end": os.getloadavg()[0],
        "features": list(features.shape),
        "episode": {"ways": WAYS, "shots": SHOTS, "queries": QUERIES},
        "seconds_of_drawing": drawing,
        "decisions": decisions,
    }


def print_row(name, row):
    """Prints one comparison."""
    times = [f"{row['wall']['seconds'][key]['median']:8.2f}" for key in ("NumPy loop", "episode_accuracies")]
    ratios = [row[kind]["loop_over_ours"] for kind in ("wall", "processor")]
    told = [f"{one['median']:5.1f} ({one['interval']['low']:.1f}..{one['interval']['high']:.1f})" for one in ratios]
    print(f"{name:18} {' '.join(times)}  {told[0]:19} {told[1]:19}", flush=True)


def main():
    """Measures, prints and writes."""
    arguments = vars(parse_arguments())
    output = arguments.pop("output")
    figures = measure(**arguments)
    if output:
        output.write_text(json.dumps({"arguments": arguments, **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
