"""The sanity check of heatmaps: how much they change where a network's parameters are random again."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float
from tqdm import tqdm

from distcam_jax.evaluators.explain import MapFunction, Samples
from distcam_jax.evaluators.network import Network
from distcam_jax.evaluators.rows import concatenate_rows, real_rows
from distcam_jax.models.convolution import compiler_options
from distcam_jax.models.layers import MEMORY, BatchNorm
from distcam_jax.prototypes import Prototypes, compute_prototypes, hash_weights
from distcam_jax.specificity import map_similarity
from distcam_jax.training import normalize, shard_batch

Batches = Iterable[dict[str, np.ndarray]]


def parameter_groups(model: nnx.Module) -> dict[str, list[nnx.Module]]:
    """The parts of a network from its output to its input: "head", "stage4" to "stage1" and "stem".

    Args:
        model: a model of `distcam_jax.models`. The transition that follows a DenseNet's block belongs to that block's
            stage, the last normalisation to the last one. A ResNet-12 has no stem.

    Returns:
        Name to modules; parts without parameters are left out, as is the head of a network trained without one.

    Raises:
        ValueError: for a model that is made of other parts.

    Examples:
        >>> from distcam_jax.models import create_model
        >>> model = nnx.eval_shape(lambda: create_model("resnet18", num_classes=2, head="none", rngs=nnx.Rngs(0)))
        >>> list(parameter_groups(model))
        ['stage4', 'stage3', 'stage2', 'stage1', 'stem']
    """
    stages = [[stage] for stage in getattr(model, "stages", getattr(model, "blocks", []))]
    if not stages:
        raise ValueError(f"model: want one with stages or blocks, got {type(model).__name__}")
    for stage, transition in zip(stages, getattr(model, "transitions", []), strict=False):
        stage.append(transition)
    stages[-1] += [module for name, module in vars(model).items() if name == "norm5"]
    groups = {"head": [module for name, module in vars(model).items() if name == "head"]}
    groups |= {f"stage{number}": stages[number - 1] for number in range(len(stages), 0, -1)}
    groups["stem"] = [module for name, module in vars(model).items() if name in ("conv0", "norm0", "conv1", "bn1")]
    return {name: parts for name, parts in groups.items() if any(jax.tree.leaves(nnx.state(p)) for p in parts)}


def randomize_parameters(
    model: nnx.Module, key: Array, images: Float[Array | np.ndarray, "b h w 3"], *, groups: int
) -> nnx.Module:
    """A copy of a network whose upper parts are random again, from the last stage down.

    Kernels and heads are drawn anew, normal with each trained array's mean and deviation; scales and shifts of batch
    normalisation are 1 and 0 (a residual block's last scale starts from 0, which would turn it off). The running
    statistics of these parts are measured on the given images: with those of training, random parts would die.

    Args:
        model: in evaluation mode, see `parameter_groups`.
        key: of the random numbers. A part gets the same ones whatever the number of parts.
        images: normalised images `[b, h, w, 3]` for the statistics.
        groups: how many parts, counted from the output, are random; 0 is a plain copy.

    Returns:
        The copy, in evaluation mode.

    Raises:
        ValueError: more groups than the model has.

    References:
        Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, section 3.1 (cascading randomisation).
    """
    model = nnx.clone(model)
    parts = parameter_groups(model)
    if not 0 <= groups <= len(parts):
        raise ValueError(f"groups: want 0 to {len(parts)} of {', '.join(parts)}, got {groups}")
    chosen = [part for modules in list(parts.values())[:groups] for part in modules]
    modules = [module for part in chosen for _, module in nnx.iter_modules(part)]
    norms = [module for module in modules if isinstance(module, BatchNorm)]
    others = [value for module in modules if module not in norms for value in vars(module).values()]
    for number, variable in enumerate(value for value in others if isinstance(value, nnx.Param)):
        variable.set_value(_redraw(jax.random.fold_in(key, number), variable.get_value()))
    for norm in norms:
        for variable, start in ((norm.scale, 1.0), (norm.bias, 0.0), (norm.mean, 0.0), (norm.var, 0.0)):
            variable.set_value(jnp.asarray(np.full(variable.get_value().shape, start, np.float32)))
    return _measure_statistics(model, norms, images) if norms else model


@jax.jit
def _redraw(key, value):
    drawn = jax.random.normal(key, (value.size,), value.dtype)  # flat: of four axes it would take long to compile
    return jnp.mean(value) + jnp.std(value) * drawn.reshape(value.shape)


def _measure_statistics(model, norms, images):
    """Sets the running statistics, which are zero, of some layers to the moments of a batch."""
    for norm in norms:
        norm.use_running_average = False
    graph, state = nnx.split(model)

    @functools.partial(jax.jit, compiler_options=compiler_options())
    def run(state, images):
        running = nnx.merge(graph, state, copy=True)
        running(images)
        return nnx.split(running)[1]

    nnx.update(model, run(state, images))
    for norm in norms:
        norm.use_running_average = True
        for variable in (norm.mean, norm.var):  # one step of the moving average from zero
            variable.set_value(variable.get_value() / (1 - MEMORY))
    return model


@dataclasses.dataclass(frozen=True)
class Randomization:
    """How alike maps stay when a network's parts become random one after the other, one row an image.

    Attributes:
        labels: classes whose maps were compared `[n]`.
        index: positions in the source `[n]`.
        similarity: last part that is random ("head", "stage4", …) to method to similarities `[n]` of the maps before
            and after, see `map_similarity`.
    """

    labels: np.ndarray
    index: np.ndarray
    similarity: dict[str, dict[str, np.ndarray]]

    @property
    def means(self) -> dict[str, dict[str, float]]:
        """Mean similarity by part and method."""
        return {
            part: {name: float(np.mean(values)) for name, values in by_method.items()}
            for part, by_method in self.similarity.items()
        }


def randomization_similarity(
    network: Network,
    bind: Callable[[Network, Prototypes, Samples], MapFunction],
    class_names: Sequence[str],
    training_batches: Batches,
    batches: Batches,
    *,
    kind: str = "spearman",
    seed: int = 0,
) -> Randomization:
    """The sanity check: a map that explains the network must change when the network's parameters become random.

    Parts become random cumulatively, from the output to the input. Prototypes of the trained network mean nothing to a
    random one, so each stage has its own, the class means of the same sample of training images; so have the trained
    network's maps that are compared with. A head has no say in maps that are made from prototypes, such as Dist-CAM:
    their similarity is 1 there.

    Args:
        network: from `load_network`.
        bind: makes the maps of a network, its prototypes and the samples that they are the means of, as `bind_methods`
            does.
        class_names: of the data set.
        training_batches: of `Network.batches` over a sample of the training split; gone through at every stage. The
            first one's images measure the batch statistics.
        batches: of `Network.batches`; gone through at every stage.
        kind: of similarity, see `map_similarity`.
        seed: of the parameters.

    Returns:
        One row an image. Padding, and images of classes without a sample are left out.

    Raises:
        ValueError: no image is left, an unknown kind.

    References:
        Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018.
    """
    model = nnx.merge(network.graph, network.state, copy=True)
    first = next(iter(training_batches))
    whole = NamedSharding(network.mesh, PartitionSpec())
    images = normalize(jax.device_put(first["image"][np.asarray(first["mask"], bool)], whole), network.config)

    @functools.partial(jax.jit, compiler_options=compiler_options())
    def forward(state, images):  # compiled once for all networks
        return nnx.merge(network.graph, state, copy=True)(normalize(images, network.config))[1]

    def sample_maps(one: Network):
        run = lambda images: forward(one.state, shard_batch({"image": images}, one.mesh)["image"])  # noqa: E731
        return _sample_maps(run, functools.partial(bind, one), class_names, training_batches, batches)

    trained, similarity = sample_maps(network), {}
    parts = list(parameter_groups(model))
    for number, part in enumerate(tqdm(parts, f"random parts of {network.name}", unit="part", leave=False), start=1):
        state = nnx.split(randomize_parameters(model, jax.random.key(seed), images, groups=number))[1]
        state = jax.device_put(state, whole)
        changed = dataclasses.replace(network, state=state, weights_hash=hash_weights(state))
        maps = sample_maps(changed)["maps"]
        compared = {name: map_similarity(trained["maps"][name], maps[name], kind=kind) for name in maps}
        similarity[part] = {name: np.asarray(values) for name, values in compared.items()}
    return Randomization(trained["labels"], trained["index"], similarity)


def _sample_maps(run, bind, class_names, training_batches, batches) -> dict:
    """True classes' maps by every method `[n, h, w]`, with prototypes of a sample of the training images."""
    samples = _embed_samples(run, training_batches)
    sample = {"image": samples.embeddings, "label": samples.labels, "mask": np.ones(len(samples.labels), bool)}
    values, counts = compute_prototypes(lambda embeddings: embeddings, [sample], len(class_names))
    maps_of, rows = bind(Prototypes(values, counts, tuple(class_names), {}, ""), samples), []
    for batch in batches:
        real = real_rows(batch, counts)
        if not len(real):
            continue
        features = run(batch["image"])["pre_pool"]
        maps = maps_of(features, batch["label"][:, None])
        maps = {name: np.asarray(value)[real, 0] for name, value in maps.items()}
        rows.append({"labels": batch["label"][real], "index": batch["index"][real], "maps": maps})
    if not rows:
        raise ValueError("no image to compare: the split is empty, or none of its classes is in the training sample")
    return concatenate_rows(rows)


def _embed_samples(run, batches: Batches) -> Samples:
    rows = []
    for batch in batches:
        real = np.asarray(batch["mask"], bool)
        rows.append({"embeddings": np.asarray(run(batch["image"])["embedding"])[real], "labels": batch["label"][real]})
    return Samples(**concatenate_rows(rows))
