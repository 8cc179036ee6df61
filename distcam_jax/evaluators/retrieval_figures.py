"""From what single queries find to figures with intervals, and paired differences over the same queries."""

from collections.abc import Mapping

import numpy as np

from distcam_jax.evaluators.figures import difference_figure, mean_figure
from distcam_jax.evaluators.retrieval_search import Ranking

RERANKED = "_reranked"


def search_figures(rankings: Mapping[str, Mapping[str, Ranking]], **bootstrap) -> dict[str, dict]:
    """Every metric of every row.

    Args:
        rankings: network to search to what it found.
        **bootstrap: `seed` and `resamples`.

    Returns:
        Network to search to metric to figure.
    """
    return {
        network: {
            name: {metric: mean_figure(values, **bootstrap) for metric, values in ranking.values.items()}
            for name, ranking in rows.items()
        }
        for network, rows in rankings.items()
    }


def search_differences(rankings: Mapping[str, Mapping[str, Ranking]], **bootstrap) -> list[dict]:
    """Paired differences over the same queries.

    Args:
        rankings: network to search to what it found; the first search of each is the network's own.
        **bootstrap: `seed` and `resamples`.

    Returns:
        Of each pair "a" and "b", both network and search, and figures by metric: the first network's search less those
        of the other networks, and less its other searches; and what re-ranking brings to the first network.
    """
    networks, own = list(rankings), {network: next(iter(rows)) for network, rows in rankings.items()}
    first = networks[0]
    pairs = [((first, own[first]), (other, own[other])) for other in networks[1:]]
    pairs += [((first, own[first]), (first, name)) for name in list(rankings[first])[1:] if not name.endswith(RERANKED)]
    pairs += [
        ((first, name), (first, name.removesuffix(RERANKED))) for name in rankings[first] if name.endswith(RERANKED)
    ]

    def differences(a: Ranking, b: Ranking) -> dict:
        return {metric: difference_figure(a.values[metric], b.values[metric], **bootstrap) for metric in a.values}

    return [
        {"a": list(a), "b": list(b), "figures": differences(rankings[a[0]][a[1]], rankings[b[0]][b[1]])}
        for a, b in pairs
    ]


def mean_figures(values: Mapping[str, np.ndarray], **bootstrap) -> dict:
    """The mean of each of some figures a query.

    Args:
        values: name to `[v]`.
        **bootstrap: `seed` and `resamples`.

    Returns:
        Name to figure.
    """
    return {name: mean_figure(one, **bootstrap) for name, one in values.items()}
