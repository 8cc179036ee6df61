"""Training by episodes: each step is a few small tasks, whose queries are told by the class means of their supports."""

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, Int

from distcam_jax import losses


def episode_size(config: ml_collections.ConfigDict) -> int:
    """Images in a training episode."""
    options = config.episodes
    return options.ways * (options.shots + options.queries)


def check_episodes(config: ml_collections.ConfigDict, processes: int) -> None:
    """Refuses a batch that is not made of whole episodes in every process; a ValueError says what would do."""
    size = episode_size(config)
    if config.batch % (size * processes):
        options = config.episodes
        raise ValueError(
            f"config.batch must be a multiple of {size * processes} ({options.ways} ways, {options.shots} shots and "
            f"{options.queries} queries in {processes} process(es)), got {config.batch}"
        )
    if config.accumulate != 1:
        raise ValueError(
            f"config.accumulate must be 1 with the objective episodes, whose micro-batches would cut episodes apart; "
            f"got {config.accumulate}"
        )


def episode_objective(
    config: ml_collections.ConfigDict, params: dict[str, Array], embedding: Float[Array, "b k"]
) -> tuple[Float[Array, ""], Float[Array, "m w"], Int[Array, " m"]]:
    """The prototypical loss of a batch of episodes, the mean over all of their queries.

    Args:
      config: see `configs/`; `episodes` tells ways, shots, queries and distance.
      params: of `objective_params`; `log_scale` is the logarithm of the inverse temperature, which is learnt.
      embedding: pooled features `[b, k]` in the order of an `EpisodeSampler`.

    Returns:
      The loss in nats, scores of all queries for the classes of their episode `[m, ways]`, and their classes `[m]`.

    References:
      Snell et al., "Prototypical Networks for Few-shot Learning", NeurIPS 2017.
    """
    options = config.episodes
    per_class = options.shots + options.queries
    episodes = embedding.reshape(-1, options.ways, per_class, embedding.shape[-1])
    scale = jnp.exp(params["log_scale"])

    def scores_of(episode):
        support, query = episode[:, : options.shots], episode[:, options.shots :]
        query = query.reshape(-1, query.shape[-1])
        return losses.prototypical_logits(support, query, metric=options.distance, scale=scale, relative=True)

    scores = jax.vmap(scores_of)(episodes).reshape(-1, options.ways)
    own = jnp.repeat(jnp.arange(options.ways), options.queries)
    labels = jnp.tile(own, len(episodes))
    return losses.softmax_cross_entropy(scores, labels), scores, labels
