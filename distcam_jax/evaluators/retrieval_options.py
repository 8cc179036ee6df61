"""How a gallery is searched: the rows of the tables, and the options that they come from."""

import dataclasses

import ml_collections

from distcam_jax.evaluators.explain import check_names
from distcam_jax.evaluators.retrieval_maps import PAIR_METHODS
from distcam_jax.evaluators.whitening import whitening_options
from distcam_jax.models import SEARCH_SPACES
from distcam_jax.retrieval import METRICS

_LEAST = {"resamples": 1, "shown_queries": 0, "shown_matches": 1}
_FURTHER = ("ks", "controls", "methods", "norm", "eps")
_RERANK = {"k1": 0, "k2": 1}
_SPACES = {"embedding": "GAP", "projection": "projection", "neck": "after the neck"}
DISTANCES = {"l1": "L1", "l2": "L2", "cosine": "cosine"}


@dataclasses.dataclass(frozen=True)
class Search:
    """One way to search.

    Attributes:
        space: of `distcam_jax.models.SEARCH_SPACES`; "embedding" is the pooled features, where heatmaps live.
        distance: of `distcam_jax.retrieval.METRICS`.
        reranked: whether the list is put in a new order by k-reciprocal encoding, whose distance is always L2: of unit
            vectors where the search is by cosine.

    Examples:
        >>> Search("neck", "cosine", reranked=True).name, Search("neck", "cosine", reranked=True).title
        ('neck_cosine_reranked', 'after the neck, cosine, re-ranked')
    """

    space: str
    distance: str
    reranked: bool = False

    @property
    def name(self) -> str:
        """What `metrics.json` calls it."""
        return f"{self.space}_{self.distance}{'_reranked' if self.reranked else ''}"

    @property
    def title(self) -> str:
        """What tables call it."""
        return f"{_SPACES[self.space]}, {DISTANCES[self.distance]}{', re-ranked' if self.reranked else ''}"


GAP_L1 = Search("embedding", "l1")  # the distance whose channels Dist-CAM weighs


def searches_of(search: Search, *, rerank: bool) -> tuple[Search, ...]:
    """The rows of the tables: the configured search, the pooled features by every distance, and the same re-ranked.

    Args:
        search: the configured one.
        rerank: whether there are re-ranked rows; ones that would repeat another are left out.

    Returns:
        The searches, the configured one first.

    Examples:
        >>> [one.name for one in searches_of(Search("neck", "cosine"), rerank=False)]
        ['neck_cosine', 'embedding_l1', 'embedding_l2', 'embedding_cosine']
        >>> [one.name for one in searches_of(Search("embedding", "l2"), rerank=True)][3:]
        ['embedding_l2_reranked', 'embedding_cosine_reranked']
    """
    plain = list(dict.fromkeys([search, *(Search("embedding", distance) for distance in METRICS)]))
    first = {(one.space, one.distance == "cosine"): one for one in reversed(plain)}
    again = [dataclasses.replace(one, reranked=True) for one in plain if one in first.values()]
    return (*plain, *(again if rerank else ()))


def reranking_of(options: ml_collections.ConfigDict) -> dict | None:
    """The options of `k_reciprocal_rerank`, or None where the configuration leaves re-ranking out.

    Args:
        options: `config.evaluate`.

    Returns:
        `k1`, `k2` and `lambda_value`.

    Examples:
        >>> reranking_of(ml_collections.ConfigDict({"rerank": {"k1": 0, "k2": 6, "lambda_value": 0.3}})) is None
        True
    """
    rerank = options.get("rerank")
    return dict(rerank) if rerank and rerank.k1 else None


def check_retrieval_options(options: ml_collections.ConfigDict) -> None:
    """Refuses options of a retrieval evaluation that are missing, unknown or out of range.

    Args:
        options: `config.evaluate`, see `configs/cub200.py`.

    Raises:
        ValueError: names the key.
    """
    for name in (*_LEAST, *_FURTHER, "search.space", "search.distance"):
        section, _, key = name.rpartition(".")
        if key not in (options[section] if section else options):
            raise ValueError(f"the configuration has no key evaluate.{name}; it was made for another version")
    for name, valid in (("space", SEARCH_SPACES), ("distance", METRICS)):
        if options.search[name] not in valid:
            raise ValueError(
                f"config.evaluate.search.{name}: got {options.search[name]!r}, choose one of {', '.join(valid)}"
            )
    values = {name: (options[name], least) for name, least in _LEAST.items()}
    values |= {f"ks[{place}]": (k, 1) for place, k in enumerate(options.ks)}
    if "rerank" in options:
        values |= _reranking_values(options.rerank)
    for name, (value, least) in values.items():
        if value < least:
            raise ValueError(f"config.evaluate.{name} must be at least {least}, got {value}")
    if not options.ks:
        raise ValueError("config.evaluate.ks is empty; name the numbers of neighbours, such as (1, 2, 4, 8)")
    if options.center_crop:
        raise ValueError(
            "config.evaluate.center_crop must be False: a retrieval shows images whole, as heatmaps need it"
        )
    check_names(options.methods)
    for name in options.methods:
        if name not in PAIR_METHODS:
            raise ValueError(
                f"config.evaluate.methods: {name} does not explain a pair of images, choose some of "
                f"{', '.join(PAIR_METHODS)}"
            )
    if "dist_cam" not in options.methods:
        raise ValueError("config.evaluate.methods must hold dist_cam, which the others are compared with")
    whitening_options(options)


def _reranking_values(rerank) -> dict:
    """The counts of re-ranking with the least that each may be; a ValueError names a key that is missing or wrong."""
    for name in (*_RERANK, "lambda_value"):
        if name not in rerank:
            raise ValueError(f"the configuration has no key evaluate.rerank.{name}; it was made for another version")
    if not 0 <= rerank.lambda_value <= 1:
        raise ValueError(f"config.evaluate.rerank.lambda_value must lie in [0, 1], got {rerank.lambda_value}")
    return {f"rerank.{name}": (rerank[name], least) for name, least in _RERANK.items()}
