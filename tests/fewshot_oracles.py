"""Few-shot decisions as loops over episodes, classes and queries in float64, which the tests compare with."""

import numpy as np


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def cosine(x, y):
    lengths = np.sqrt(np.sum(x**2) * np.sum(y**2))
    return np.sum(x * y) / lengths if lengths else 0.0


SCORES = {
    "l1": lambda x, y: -np.sum(np.abs(x - y)),
    "l2": lambda x, y: -np.sqrt(np.sum((x - y) ** 2)),
    "cosine": cosine,
}


def rectify_by_loop(support, labels, query, ways, temperature=10.0, shifted=True, over="set"):
    """The rectified prototypes, and with other options what some public implementations do instead."""
    support, query = support.astype(np.float64), query.astype(np.float64)
    known = [x for x, label in zip(support, labels, strict=True) if 0 <= label < ways]
    moved = query + (np.mean(known, axis=0) - query.mean(axis=0)) if shifted and len(query) else query
    means = {c: support[labels == c].mean(axis=0) for c in range(ways) if np.any(labels == c)}
    assigned = [max(means, key=lambda c: cosine(x, means[c])) for x in moved]
    rectified = np.zeros((ways, support.shape[1]))
    for c, mean in means.items():
        members = [x for x, label in zip(support, labels, strict=True) if label == c]
        members += [x for x, way in zip(moved, assigned, strict=True) if way == c]
        weights = np.array([np.exp(temperature * (cosine(x, mean) - 1)) for x in members])
        if over == "classes":
            weights /= [sum(np.exp(temperature * (cosine(x, other) - 1)) for other in means.values()) for x in members]
        rectified[c] = sum(w * x for w, x in zip(weights, members, strict=True)) / weights.sum()
    return rectified


def episodes_by_loop(embeddings, supports, queries, metric, rectified, center=None, normalize=False):
    """Scores of all queries `[e, ways, queries, ways]`."""
    features = np.asarray(embeddings, np.float64) - (0 if center is None else center)
    if normalize:
        features = np.stack([x / np.sqrt(np.sum(x**2)) for x in features])
    scores = np.zeros((*queries.shape, queries.shape[1]))
    for e, (support_rows, query_rows) in enumerate(zip(supports, queries, strict=True)):
        means = [features[rows].mean(axis=0) for rows in support_rows]
        shift = 0
        if rectified:
            support, query = features[support_rows.ravel()], features[query_rows.ravel()]
            labels = np.repeat(np.arange(len(support_rows)), support_rows.shape[1])
            means = rectify_by_loop(support, labels, query, len(support_rows))
            shift = support.mean(axis=0) - query.mean(axis=0)
        for c, rows in enumerate(query_rows):
            for q, row in enumerate(rows):
                scores[e, c, q] = [SCORES[metric](features[row] + shift, mean) for mean in means]
    return scores
