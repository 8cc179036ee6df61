"""A trained network with its prototypes, ready to be evaluated."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import ml_collections
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from distcam_jax import runs, training
from distcam_jax.cam import nearest_prototype
from distcam_jax.datasets import Dataset
from distcam_jax.geometry import check_size
from distcam_jax.input_pipeline import Part, make_eval_batches
from distcam_jax.models import class_weights
from distcam_jax.models.convolution import compiler_options
from distcam_jax.models.pretrained import load_torch_weights
from distcam_jax.prototypes import PartialSums, Prototypes, compute_prototypes, hash_weights, load_prototypes


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network, in evaluation mode.

    Attributes:
        name: what tables call it.
        config: the configuration that it was trained with.
        step: training steps behind it; None for published weights.
        source: name of the file or hub id that the weights came from; None for a run.
        mesh: the devices it runs on.
        graph: the model's graph.
        state: its parameters and statistics.
        weights_hash: of everything that the embedding depends on.
    """

    name: str
    config: ml_collections.ConfigDict
    step: int | None
    source: str | None
    mesh: Mesh
    graph: nnx.GraphDef
    state: nnx.State
    weights_hash: str

    @functools.cached_property
    def class_weights(self) -> jax.Array | None:
        """The linear layer's weights `[c, k]`, or None for a network without one."""
        return class_weights(nnx.merge(self.graph, self.state, copy=True))

    @functools.cached_property
    def _forward(self):
        def forward(state, images):
            output, features = nnx.merge(self.graph, state, copy=True)(training.normalize(images, self.config))
            return output, features

        return jax.jit(forward, compiler_options=compiler_options())

    def __call__(self, images: np.ndarray) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Output and features of images `[b, h, w, 3]` in [0, 1]; b divides evenly over the devices."""
        return self._forward(self.state, training.shard_batch({"image": images}, self.mesh)["image"])

    def even_batch(self, batch: int) -> int:
        """The smallest number of images from `batch` on that divides evenly over the devices."""
        devices = self.mesh.size // jax.process_count()
        return -(-batch // devices) * devices

    def batches(self, source, *, batch: int, resize: str = "straight"):
        """The images of a source as this network wants them, the last batch padded; see `make_eval_batches`."""
        return make_eval_batches(
            source,
            batch_size=self.even_batch(batch),
            image_size=check_size(self.config.input.image_size),
            resize=resize,
            num_workers=self.config.input.num_workers,
        )


def load_network(config: ml_collections.ConfigDict, workdir: str | Path, num_classes: int, *, name: str) -> Network:
    """Loads a checkpoint of a run: the newest that reads, or the best where `evaluate.checkpoint` says so.

    Where training kept a moving average of the weights, it is the average that is loaded.

    Args:
        config: the configuration of the run.
        workdir: the run's folder.
        num_classes: classes c of the data set.
        name: what tables call the network.

    Returns:
        The network in evaluation mode.

    Raises:
        ValueError: when the folder holds no checkpoint that fits the configuration.
    """
    mesh = training.create_mesh()
    step, model = training.restore_model(config, workdir, num_classes, mesh)
    return make_network(model, config, name, mesh, step=step)


def import_network(config: ml_collections.ConfigDict, weights: str | Path, num_classes: int, *, name: str) -> Network:
    """Makes the configured network with published weights.

    Args:
        config: see `configs/`; the softmax objective takes the classifier along, the metric one leaves it out.
        weights: a file or a hub id, see `load_torch_weights`.
        num_classes: classes c of the data set.
        name: what tables call the network.

    Returns:
        The network in evaluation mode.

    Raises:
        ValueError: when the weights do not fit the configuration; lists the keys.
        FileNotFoundError: when there is no such file.
    """
    model = nnx.eval_shape(lambda: training.build_model(config, num_classes))  # no first values are drawn
    load_torch_weights(model, weights, head="load" if config.objective == "softmax" else "drop")
    return make_network(model, config, name, training.create_mesh(), source=Path(weights).name)


def make_network(
    model: nnx.Module,
    config: ml_collections.ConfigDict,
    name: str,
    mesh: Mesh,
    *,
    step: int | None = None,
    source: str | None = None,
) -> Network:
    """A network of a model as it is, put into evaluation mode.

    Args:
        model: of `training.build_model`.
        config: the configuration that it was made with.
        name: what tables call it.
        mesh: the devices it runs on.
        step: training steps behind it.
        source: where published weights came from.

    Returns:
        The network.
    """
    model.eval()
    graph, weights = nnx.split(model)
    weights = jax.device_put(weights, NamedSharding(mesh, PartitionSpec()))
    return Network(name, config, step, source, mesh, graph, weights, hash_weights(weights))


def network_prototypes(
    network: Network, path: Path, class_names: Sequence[str], *, batch: int, given: bool = False
) -> Prototypes:
    """The network's class prototypes, from the file where it fits, else from a pass over the training images.

    Args:
        network: from `load_network`.
        path: the prototypes file; it is written after a pass. What a pass has added up so far is kept beside it, so
            that one that was killed goes on.
        class_names: readable names of the data set's classes.
        batch: images a step.
        given: whether the user named the file; then one that does not fit or is missing is an error.

    Returns:
        The prototypes of the training split's classes.

    Raises:
        ValueError: when a given file does not fit the network; says in what.
        FileNotFoundError: when a given file is missing.
    """
    inputs = network.config.input
    preprocessing = {
        "image_size": inputs.image_size,
        "resize": "straight",
        "mean": list(inputs.mean),
        "std": list(inputs.std),
    }
    # With the same weights these give other embeddings too.
    model = network.config.model
    preprocessing |= {name: str(model[name]) for name in ("pre_pool", "dtype", "last_stride") if name in model}
    wanted = dict(weights_hash=network.weights_hash, class_names=class_names, preprocessing=preprocessing)
    if given:  # it may stand for other images
        return load_prototypes(path, **wanted)
    data, batch = training.load_split(network.config, "train"), network.even_batch(batch)
    made_from = _pass_identity(network.config, data)
    if path.is_file():
        try:
            return load_prototypes(path, **wanted, made_from=made_from)
        except ValueError as error:
            logging.warning("%s", error)
    partial = PartialSums(path, {**wanted, **made_from, "batch": batch})
    values, counts = compute_prototypes(
        lambda images: network(images)[1]["embedding"],
        functools.partial(_training_batches, network, data.source, batch),
        len(class_names),
        partial=partial,
        name_of=lambda index: data.source[index].get("file_name", "an image without a file name"),
    )
    prototypes = Prototypes(values, counts, tuple(class_names), preprocessing, network.weights_hash, made_from)
    prototypes.save(path)
    partial.remove()
    return prototypes


def _pass_identity(config: ml_collections.ConfigDict, data: Dataset) -> dict:
    """What decides the sums of a pass over the training images, besides the weights and how images are prepared."""
    described = {"split": data.split, "images": len(data.source)}
    return {"model": config.model.to_dict(), "data": runs.data_options(config), **described}


def _training_batches(network: Network, source, batch: int, first: int) -> Iterator[dict[str, np.ndarray]]:
    """The network's batches of a source from a certain one on, with positions in the whole source."""
    skipped, title = first * batch, f"prototypes of the {network.name} network"
    with tqdm(desc=title, total=-(-len(source) // batch), initial=first, unit="batch", leave=False) as bar:
        if skipped < len(source):  # otherwise the pass had ended, but its prototypes were not saved
            for one in network.batches(Part(source, skipped), batch=batch):
                yield {**one, "index": one["index"] + skipped}
                bar.update()


def rank_classes(network: Network, prototypes: Prototypes, output, embedding, *, top: int = 5):
    """Both decisions of a network, best class first.

    Args:
        network: from `load_network`.
        prototypes: of the same classes.
        output: the network's output `[b, c or k]`.
        embedding: pooled features `[b, k]`.
        top: classes to keep.

    Returns:
        The best classes `[b, top]` by decision, "nearest" prototype in L1 and, with a linear layer, "softmax"; and the
        distances `[b, c]`. Classes without training samples never win.
    """
    _, distances = nearest_prototype(embedding, prototypes.prototypes)
    distances = np.where(prototypes.counts > 0, np.asarray(distances), np.inf)
    decisions = {"nearest": np.argsort(distances, axis=-1, kind="stable")[:, :top]}
    if network.class_weights is not None:
        decisions["softmax"] = np.argsort(-np.asarray(output), axis=-1, kind="stable")[:, :top]
    return decisions, distances
