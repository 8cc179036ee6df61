"""What training measures on held-out images, of which the best checkpoint is chosen by."""

import functools
from collections.abc import Callable

import jax
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distcam_jax.datasets import Dataset
from distcam_jax.fewshot import episode_accuracies
from distcam_jax.input_pipeline import EpisodeSampler, EvalBatches, Part, make_eval_batches, read_labels
from distcam_jax.models import search_features
from distcam_jax.models.convolution import compiler_options
from distcam_jax.retrieval import recall_at_k
from distcam_jax.retrieval.metrics import searchable_queries
from distcam_jax.training.progress import Recent
from distcam_jax.training.state import TrainState, build_model, evaluation_weights, normalize, shard_batch
from distcam_jax.training.steps import make_validation_step


def make_validation(
    config: ml_collections.ConfigDict, num_classes: int, mesh: Mesh, data: Dataset
) -> Callable[[TrainState], float]:
    """Makes the function from a training state to its accuracy on held-out images.

    Where the configuration has `checkpoint.validation_episodes`, the held-out images are of classes that training does
    not know, and the accuracy is the mean over that many episodes, always the same ones, in which a query belongs to
    the nearest class mean of its supports. Where it has `evaluate.search`, they are of other classes too, and it is
    Recall@1: the share of images whose nearest one, in the space and the distance of the search, is of their class.
    Otherwise it is the share of images whose class the network names.

    Args:
      config: see `configs/`; at most `checkpoint.validation_images` images are looked at.
      num_classes: classes c of the training data.
      mesh: from `create_mesh`.
      data: the split that is held out.

    Returns:
      A function of the state; every process calls it, and gets the same number.

    Raises:
      ValueError: when the images are too few for the episodes or have nothing to find, or the search's space is none
        of the model's.
    """
    source = Part(data.source, 0, config.checkpoint.validation_images)
    local = mesh.size // jax.process_count()
    batches = make_eval_batches(
        source,
        batch_size=-(-min(config.evaluate.batch, len(source)) // mesh.size) * local,
        image_size=config.input.image_size,
        num_workers=min(2, config.input.num_workers),  # they are started anew for every pass
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    model = nnx.eval_shape(lambda: build_model(config, num_classes))
    model.eval()
    graph = nnx.graphdef(model)
    count = config.checkpoint.get("validation_episodes", 0)
    if "search" in config.evaluate:
        embed = _make_embedding_step(config, graph, mesh, space=config.evaluate.search.space)
        distance, labels = config.evaluate.search.distance, read_labels(source)
        if not searchable_queries(labels).any():
            raise ValueError(
                f"none of the first {len(source)} images of split {config.input.tune_split} has another one of its "
                "class to find; raise config.checkpoint.validation_images, set it to 0, or choose another "
                "config.input.tune_split"
            )
        return functools.partial(_recall, embed, batches, mesh, labels, distance)
    if not count:
        return functools.partial(_accuracy, make_validation_step(config, graph), batches, mesh)
    options = config.episodes
    draw = {name: options[name] for name in ("ways", "shots", "queries")}
    _, *rows = EpisodeSampler(read_labels(source), **draw, seed=config.seed).episodes(count)
    embed = _make_embedding_step(config, graph, mesh)
    return functools.partial(_episode_accuracy, embed, batches, mesh, len(source), rows, options.distance)


def _accuracy(step, batches: EvalBatches, mesh: Mesh, state: TrainState) -> float:
    counts = []
    for batch in batches:
        counts.append(step(state, shard_batch({k: batch[k] for k in ("image", "label", "mask")}, mesh)))
        jax.block_until_ready(counts[-Recent.ahead :][0])  # each step under way holds a batch on the device
    right, images = (sum(int(count) for count in column) for column in zip(*counts, strict=True))
    return right / images


def _make_embedding_step(
    config: ml_collections.ConfigDict, graph: nnx.GraphDef, mesh: Mesh, *, space: str = "embedding"
):
    """Compiles `(state, images) -> features [b, d]` of a search space, all of which every process gets."""
    whole = NamedSharding(mesh, PartitionSpec())

    @functools.partial(jax.jit, out_shardings=whole, compiler_options=compiler_options())
    def embed(state: TrainState, images: jax.Array):
        model = nnx.merge(graph, *evaluation_weights(config, state), copy=True)
        return search_features(model, model(normalize(images, config))[1]["embedding"], space)

    return embed


def _embeddings(embed, batches: EvalBatches, mesh: Mesh, state: TrainState) -> np.ndarray:
    """Of all images, and of the padding after them."""
    return np.concatenate(
        [np.asarray(embed(state, shard_batch({"image": one["image"]}, mesh)["image"])) for one in batches]
    )


def _recall(embed, batches: EvalBatches, mesh: Mesh, labels: np.ndarray, distance: str, state: TrainState) -> float:
    features = _embeddings(embed, batches, mesh, state)[: len(labels)]
    return recall_at_k(features, labels, ks=(1,), metric=distance)[1]


def _episode_accuracy(embed, batches: EvalBatches, mesh: Mesh, images: int, rows, metric: str, state) -> float:
    embeddings = _embeddings(embed, batches, mesh, state)[:images]
    return float(np.mean(episode_accuracies(embeddings, *rows, metric=metric)))
