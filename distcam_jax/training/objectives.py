"""What a step minimises: the classifier's cross-entropy, a metric objective on the embedding, or both.

Episodes have a module of their own, `episodic`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float, Int

from distcam_jax import losses
from distcam_jax.losses.distances import unit_vectors
from distcam_jax.models import SEARCH_SPACES

OBJECTIVES = ("softmax", "cosine", "metric", "neck", "episodes")
PROTOTYPES = ("class_means", "running_means", "proxies")  # what the loss "prototypes" may train against

# The other losses of the metric objective: what each of them compares the embeddings with, and whether it takes a
# distance and a margin of the configuration.
_PAIRS = {
    "contrastive": (losses.contrastive, {"metric", "margin"}),
    "batch_hard_triplet": (losses.batch_hard_triplet, {"metric", "margin"}),
    "semi_hard_triplet": (losses.semi_hard_triplet, {"metric", "margin"}),
    "n_pair": (losses.n_pair, set()),
    "nt_xent": (losses.nt_xent, set()),
    "multi_similarity": (losses.multi_similarity, set()),
}
_MARGINS = {
    "sphereface": losses.sphereface_logits,
    "cosface": losses.cosface_logits,
    "arcface": losses.arcface_logits,
}
METRIC_LOSSES = ("prototypes", "proxy_nca", *_PAIRS, *_MARGINS)


def check_objective(config: ml_collections.ConfigDict) -> None:
    """Refuses an unknown objective; a ValueError lists the names."""
    if config.objective not in OBJECTIVES:
        raise ValueError(f"unknown objective {config.objective!r}; choose one of {', '.join(OBJECTIVES)}")
    if config.objective not in ("softmax", *config):
        raise ValueError(f"the objective {config.objective} needs the section {config.objective} of a configuration")
    _check_search(config)
    if config.objective == "episodes" and config.episodes.distance not in losses.EPISODE_METRICS:
        raise ValueError(
            f"unknown episodes.distance {config.episodes.distance!r}; choose one of {', '.join(losses.EPISODE_METRICS)}"
        )
    choices = {
        "metric": {"loss": METRIC_LOSSES, "prototypes": PROTOTYPES, "distance": losses.METRICS},
        "neck": {"loss": tuple(_PAIRS), "distance": losses.METRICS},
    }
    section = config.objective
    for name, valid in choices.get(section, {}).items():
        if config[section][name] not in valid:
            raise ValueError(f"unknown {section}.{name} {config[section][name]!r}; choose one of {', '.join(valid)}")


def _check_search(config: ml_collections.ConfigDict) -> None:
    """Refuses a search in a space that the objective's head does not make; a ValueError names the keys."""
    search = config.evaluate.get("search") if "evaluate" in config else None
    space = "embedding" if search is None else search.space
    if space not in SEARCH_SPACES:
        raise ValueError(f"unknown evaluate.search.space {space!r}; choose one of {', '.join(SEARCH_SPACES)}")
    heads = {"projection": "projection", "neck": "batch_norm_neck"}
    if space in heads and head_of(config, 0)[0] != heads[space]:
        needed = {"projection": "a metric objective with config.metric.projection", "neck": "the objective neck"}[space]
        raise ValueError(
            f"config.evaluate.search.space {space!r} needs {needed}; set config.evaluate.search.space to 'embedding' "
            "for another network"
        )


def head_of(config: ml_collections.ConfigDict, num_classes: int) -> tuple[str, int]:
    """The head that an objective needs, and its outputs: as many as classes, or the channels of a projection."""
    projection = config.metric.get("projection", 0) if config.objective == "metric" else 0
    if projection:
        return "projection", projection
    heads = {"softmax": "linear", "cosine": "cosine", "neck": "batch_norm_neck"}
    return heads.get(config.objective, "none"), num_classes


def trained_embedding(
    config: ml_collections.ConfigDict, output: Float[Array, "b _"], embedding: Float[Array, "b k"]
) -> Float[Array, "b _"]:
    """What a metric loss compares: the projection where the model has one, else the pooled features."""
    return output if head_of(config, 0)[0] == "projection" else embedding


def objective_params(config: ml_collections.ConfigDict, num_classes: int, channels: int) -> dict[str, jax.Array]:
    """The objective's own parameters, none of which the network needs once it is trained.

    `log_scale` is the logarithm of the inverse temperature, which "cosine", "metric" and "episodes" learn. `auxiliary`
    is the kernel of a classifier whose cross-entropy is added with the weight `metric.auxiliary`, as re-identification
    adds identity and metric losses (Luo et al., 2019). `proxies` are free prototypes, or class directions of a loss
    with an angular margin. `centers` are those of the centre loss beside a neck; they start normal.

    Args:
      config: see `configs/`.
      num_classes: classes c.
      channels: channels k of what the loss compares, see `trained_embedding`.

    Returns:
      Arrays by name; none for the objective "softmax", whose classifier is the model's.
    """
    if config.objective == "softmax":
        return {}
    if config.objective == "neck":
        key = jax.random.fold_in(jax.random.key(config.seed), 1)
        return {"centers": jax.random.normal(key, (num_classes, channels))} if config.neck.center else {}
    params = {"log_scale": jnp.log(jnp.asarray(config[config.objective].scale, jnp.float32))}
    if config.objective != "metric":
        return params
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1))
    if config.metric.auxiliary:
        bound = 1.0 / np.sqrt(channels)
        flat = jax.random.uniform(keys[0], (channels * num_classes,), minval=-bound, maxval=bound)
        params["auxiliary"] = flat.reshape(channels, num_classes)
    free = config.metric.loss == "prototypes" and config.metric.prototypes == "proxies"
    if config.metric.loss in _MARGINS:
        params["proxies"] = jax.random.normal(keys[1], (num_classes, channels))
    elif free or config.metric.loss == "proxy_nca":
        params["proxies"] = jax.random.uniform(keys[1], (num_classes, channels))
    return params


ClassMeans = tuple[Float[Array, "c d"], Float[Array, " c"]]  # of what the loss compares, see `trained_embedding`


def objective(
    config: ml_collections.ConfigDict,
    params: dict[str, Any],
    means: ClassMeans,
    output: Float[Array, "b _"],
    embedding: Float[Array, "b k"],
    labels: Int[Array, " b"],
) -> tuple[Float[Array, ""], Float[Array, "b c"], ClassMeans]:
    """The loss of a batch.

    Args:
      config: see `configs/`.
      params: of `objective_params`.
      means: running class means `[c, d]` and the samples they stand for `[c]`.
      output: the model's output.
      embedding: pooled features `[b, k]`.
      labels: true classes `[b]`.

    Returns:
      The loss in nats, class scores `[b, c]`, and the class means after this batch.
    """
    smoothing = config.optimizer.label_smoothing
    if config.objective == "softmax":
        return losses.softmax_cross_entropy(output, labels, label_smoothing=smoothing), output, means
    if config.objective == "cosine":
        scores = jnp.exp(params["log_scale"]) * output
        return losses.softmax_cross_entropy(scores, labels, label_smoothing=smoothing), scores, means
    if config.objective == "neck":
        return _neck_loss(config, params, output, embedding, labels), output, means
    embedding = trained_embedding(config, output, embedding)
    means = losses.update_class_means(*means, jax.lax.stop_gradient(embedding), labels, memory=config.metric.memory)
    loss, logits = _metric_loss(config, params, means, embedding, labels)
    if config.metric.auxiliary:
        scores = embedding @ params["auxiliary"]
        auxiliary = losses.softmax_cross_entropy(scores, labels, label_smoothing=smoothing)
        loss += config.metric.auxiliary * auxiliary
    return loss, logits, means


def _neck_loss(config, params, output, embedding, labels):
    """Identity loss after the neck, metric and centre loss before it (Luo et al., CVPRW 2019, Eq. (5))."""
    loss = losses.softmax_cross_entropy(output, labels, label_smoothing=config.optimizer.label_smoothing)
    loss += config.neck.weight * _pair_loss(config.neck, embedding, labels)
    if config.neck.center:
        # Twice, as their code has the squared distance without the half that their Eq. (4) writes.
        loss += config.neck.center * 2 * losses.center_loss(embedding, labels, params["centers"])
    return loss


def _pair_loss(options, embedding, labels):
    """The loss over pairs that options name, with those of their distance and margin that it takes."""
    function, taken = _PAIRS[options.loss]
    if options.get("normalize", False) and "metric" in taken:  # the others compare directions, or want lengths
        embedding = unit_vectors(embedding)
    margin = {} if options.margin is None else {"margin": options.margin}
    given = {key: value for key, value in ({"metric": options.distance} | margin).items() if key in taken}
    return function(embedding, labels, **given)


def _metric_loss(config, params, means: ClassMeans, embedding, labels):
    """The configured loss and the class scores that go with it; of a loss over pairs, those of the class means."""
    options, name = config.metric, config.metric.loss
    margin = {} if options.margin is None else {"margin": options.margin}
    if name in _PAIRS:
        scores = losses.prototype_logits(jax.lax.stop_gradient(embedding), *means)
        return _pair_loss(options, embedding, labels), scores
    if name == "proxy_nca":
        loss = losses.proxy_nca(embedding, labels, params["proxies"], metric=options.distance, normalize=False)
        return loss, -losses.pairwise_distances(embedding, params["proxies"], metric=options.distance)
    if name in _MARGINS:
        cosines = losses.cosine_similarities(embedding, params["proxies"])
        logits = _MARGINS[name](cosines, labels, **margin)
        return losses.softmax_cross_entropy(logits, labels), cosines
    scores = {"scale": jnp.exp(params["log_scale"]), "relative": True}
    if options.prototypes == "class_means":
        logits = losses.class_mean_logits(embedding, labels, *means, **scores)
    elif options.prototypes == "running_means":
        logits = losses.prototype_logits(embedding, *means, **scores)
    else:
        logits = losses.prototype_logits(embedding, params["proxies"], jnp.ones_like(means[1]), **scores)
    smoothing = config.optimizer.label_smoothing
    return losses.softmax_cross_entropy(logits, labels, label_smoothing=smoothing), logits
