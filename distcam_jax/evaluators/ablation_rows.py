"""What the ablations vary, and which rows stand in which table."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import ml_collections

from distcam_jax.cam import NORMS
from distcam_jax.evaluators.ablation_pass import ASKED, Variant, draw_name
from distcam_jax.evaluators.figures import BASELINES
from distcam_jax.methods.similarities import CHANNEL_DISTANCES

DEFAULT, MINMAX = "dist_cam", "scaling=minmax"
CONTROLS = {"uniform": "uniform weights", "wrong": BASELINES["wrong_prototype"]} | {
    name: BASELINES[name] for name in ("center_box", "whole_image")
}
ASKED_TITLES = {
    "true": "true class",
    "predicted": "predicted class",
    "wrong": "random wrong class",
    "random": "random class",
}
PRE_POOL_TITLES = {"relu": "after the last ReLU", "norm": "before the last ReLU"}


@dataclasses.dataclass(frozen=True)
class Line:
    """One row of a table: the mean over what was measured of some networks with some variants.

    Attributes:
        label: of the row.
        views: names of networks, see `view_name`.
        keys: names of variants, or "center_box" and "whole_image".
        base: views and keys that are subtracted; None for the row that others are compared with.
        muted: whether it is a baseline.
    """

    label: str
    views: tuple[str, ...]
    keys: tuple[str, ...] = (DEFAULT,)
    base: "tuple[tuple[str, ...], tuple[str, ...]] | None" = None
    muted: bool = False


@dataclasses.dataclass(frozen=True)
class Ablation:
    """One table.

    Attributes:
        title: of the table.
        lines: its rows.
        decides: whether rows differ in the class decision, so that Top-1 figures are told too.
        repeats: what a row's spread is over: "networks", "draws" or nothing.
        note: what is varied.
    """

    title: str
    lines: tuple[Line, ...]
    decides: bool = False
    repeats: str = ""
    note: str = ""


def view_name(network: str, pre_pool: str | None = None) -> str:
    """Name of a network, or of one whose maps are taken elsewhere than in training.

    Examples:
        >>> view_name("densenet_metric_0", "norm")
        'densenet_metric_0, norm'
    """
    return network if pre_pool is None else f"{network}, {pre_pool}"


def check_ablations(config: ml_collections.ConfigDict) -> None:
    """Refuses options of the ablations that are out of range or name something unknown; a ValueError names the key."""
    named = {
        "seeds": config.seeds,
        "varied": config.varied,
        "pre_pool": config.pre_pool,
        "last_stride": [name for pair in config.last_stride for name in pair],
    }
    for key, names in named.items():
        for name in names:
            if name not in config.networks:
                raise ValueError(f"config.{key}: no network {name!r}; config.networks has {', '.join(config.networks)}")
    norms, distances = (*config.vary.norm, config.evaluate.norm), config.vary.distance
    for key, values, known in (("norm", norms, NORMS), ("distance", distances, CHANNEL_DISTANCES)):
        for value in values:
            if value not in known:
                raise ValueError(f"config.vary.{key}: want some of {', '.join(known)}, got {value!r}")
    for value in (*config.vary.eps, config.evaluate.eps):
        if not value > 0:
            raise ValueError(f"config.vary.eps: want positive numbers, got {value}")
    for value in (*config.vary.samples, config.vary.draws):
        if value < 1:
            raise ValueError(f"config.vary.samples and draws: want at least 1, got {value}")


def make_variants(config: ml_collections.ConfigDict, *, linear: bool, varied: bool) -> dict[str, Variant]:
    """What is measured of a network.

    Args:
        config: see `configs/ablations.py`.
        linear: whether the network has a linear layer, and so CAM.
        varied: whether all options are varied, or the default and its controls alone.

    Returns:
        Name to variant; the one of `DEFAULT` first.
    """
    default = Variant(norm=config.evaluate.norm, eps=float(config.evaluate.eps))
    variants = {DEFAULT: default, "wrong": dataclasses.replace(default, asked="wrong")}
    variants["uniform"] = dataclasses.replace(default, kind="uniform")
    if linear:
        variants["cam"] = dataclasses.replace(default, kind="cam")
    if not varied:
        return variants
    vary = {"norm": config.vary.norm, "eps": map(float, config.vary.eps), "distance": config.vary.distance}
    vary["asked"] = [asked for asked in ASKED if asked != "wrong"]  # which is a control already
    for field, values in vary.items():
        for value in values:
            variants.setdefault(variant_key(default, field, value), _changed(default, field, value))
    for name in _draws(config):
        variants[name] = dataclasses.replace(default, prototypes=name)
    for name in (DEFAULT, "wrong", "uniform"):
        variants[minmax_key(name)] = dataclasses.replace(variants[name], scaling="minmax")
    return variants


def _changed(default: Variant, field: str, value: Any) -> Variant:
    fields: dict[str, Any] = dataclasses.asdict(default)
    return Variant(**(fields | {field: value}))


def variant_key(default: Variant, field: str, value) -> str:
    """Name of the default with one field changed; the default's own where that changes nothing.

    Examples:
        >>> variant_key(Variant(), "eps", 1e-6), variant_key(Variant(), "eps", 0.1)
        ('eps=1e-06', 'dist_cam')
    """
    return DEFAULT if getattr(default, field) == value else f"{field}={value}"


def minmax_key(name: str) -> str:
    """Name of a variant whose map is scaled by its minimum and maximum.

    Examples:
        >>> minmax_key("dist_cam"), minmax_key("uniform")
        ('scaling=minmax', 'uniform, scaling=minmax')
    """
    return MINMAX if name == DEFAULT else f"{name}, {MINMAX}"


def _draws(config, samples: int | None = None) -> list[str]:
    counts = config.vary.samples if samples is None else (samples,)
    return [draw_name(count, draw) for count in counts for draw in range(config.vary.draws)]


def make_ablations(config: ml_collections.ConfigDict, there: Collection[str]) -> dict[str, Ablation]:
    """The tables, of the networks that are there.

    Args:
        config: see `configs/ablations.py`.
        there: names of views that were measured.

    Returns:
        Name to table. Rows of networks that are missing are left out, and so is a table without any.
    """
    default = Variant(norm=config.evaluate.norm, eps=float(config.evaluate.eps))
    varied = [name for name in config.varied if name in there]
    tables = {
        "seeds": Ablation(
            "Dist-CAM with the options of all other tables, trained from several seeds",
            tuple(_seed_lines(config, there)),
            decides=True,
            repeats="networks",
            note="Rows of several networks: the mean over them of each image, the interval over images, and the "
            "standard deviation over the networks as the spread; each network has its own threshold. CAM's class "
            "decision is the linear layer's, every other row's the nearest prototype's.",
        ),
        "norm": Ablation(
            "How weights are normalised (norm of Eq. 5)",
            _varied_lines(varied, {value: variant_key(default, "norm", value) for value in config.vary.norm}),
        ),
        "eps": Ablation(
            "The share eps of the mean distance that is added in Eq. 5",
            _varied_lines(
                varied, {f"eps {value:g}": variant_key(default, "eps", float(value)) for value in config.vary.eps}
            ),
            note="The smallest stands for the literal Eq. 5.",
        ),
        "scaling": Ablation(
            "How a map is scaled before its threshold",
            _varied_lines(varied, {"by the maximum": DEFAULT, "from minimum to maximum": MINMAX}, minmax=True),
        ),
        "asked": Ablation(
            "The class whose prototype is asked for",
            _varied_lines(
                varied,
                {title: "wrong" if name == "wrong" else _asked_key(name) for name, title in ASKED_TITLES.items()},
                controls=("uniform", "center_box", "whole_image"),
            ),
            note="Predicted is the class of the nearest prototype; the random class may be the true one.",
        ),
        "samples": Ablation(
            "Prototypes from N training samples of each class",
            _varied_lines(
                varied, {f"N = {n}": tuple(_draws(config, n)) for n in config.vary.samples} | {"all samples": DEFAULT}
            ),
            decides=True,
            repeats="draws",
            note=f"Samples are drawn {config.vary.draws} times (seeds from {config.seed} on): the mean over the draws "
            "of each image, the interval over images, and the standard deviation over the draws as the spread. One "
            "threshold is tuned for all draws.",
        ),
        "distance": Ablation(
            "The distance of Eq. 4 and of the nearest prototype",
            _varied_lines(
                varied,
                {_DISTANCE_TITLES[value]: variant_key(default, "distance", value) for value in config.vary.distance},
            ),
            decides=True,
            note="Networks were trained with L1 or with a linear layer; the other distances only ask them.",
        ),
        "last_stride": Ablation(
            "Stride of the last stage",
            tuple(_stride_lines(config, there)),
            decides=True,
            note="One network each. Dist-CAM and CAM are compared with their own row at the first stride.",
        ),
        "pre_pool": Ablation(
            "DenseNet: feature maps after or before the last ReLU",
            tuple(_pre_pool_lines(config, there)),
            decides=True,
            note="The same weights; prototypes are means of the same maps. The linear layer sees those after the "
            "ReLU. Dist-CAM and CAM are compared with their own row after the ReLU.",
        ),
    }
    return {name: table for name, table in tables.items() if table.lines}


_DISTANCE_TITLES = {"l1": "L1", "l2": "squared L2", "cosine": "cosine"}


def _asked_key(asked: str) -> str:
    return variant_key(Variant(), "asked", asked)


def _controls(name: str, views: tuple[str, ...], *, names: Collection[str] = tuple(CONTROLS)) -> Iterator[Line]:
    for control in names:
        yield Line(f"{CONTROLS[control]} · {name}", views, (control,), (views, (DEFAULT,)), muted=True)


def _varied_lines(
    networks: list[str],
    keys: Mapping[str, str | tuple[str, ...]],
    *,
    controls: Collection[str] = tuple(CONTROLS),
    minmax: bool = False,
) -> tuple[Line, ...]:
    """The values of one option on each network, and the controls."""
    lines = []
    for network in networks:
        views, base = (network,), ((network,), (DEFAULT,))
        for label, key in keys.items():
            several = (key,) if isinstance(key, str) else key
            lines.append(Line(f"{label} · {network}", views, several, None if key == DEFAULT else base))
        lines += _controls(network, views, names=controls)
        if minmax:
            lines += [
                Line(f"{CONTROLS[name]}, from minimum to maximum · {network}", views, (minmax_key(name),), base, True)
                for name in ("uniform", "wrong")
            ]
    return tuple(lines)


def _seed_lines(config, there: Collection[str]) -> Iterator[Line]:
    by_objective = {}
    for name in config.seeds:
        if name in there:
            by_objective.setdefault(config.networks[name].objective, []).append(name)
    for objective, names in by_objective.items():
        for name in names:
            yield Line(f"Dist-CAM · {name}", (name,))
        views = tuple(names)
        title = f"mean of {len(names)} {objective} networks" if len(names) > 1 else names[0]
        base = (views, (DEFAULT,))
        if len(names) > 1:
            yield Line(f"Dist-CAM · {title}", views)
        if objective == "softmax":
            yield Line(f"CAM · {title}", views, ("cam",), base)
        yield from _controls(title, views)
    if len(by_objective) == 2:
        metric, softmax = (tuple(by_objective[name]) for name in ("metric", "softmax"))
        if len(metric) == len(softmax):  # the same number on both sides, so that spreads mean the same
            yield Line("Dist-CAM · metric, compared with CAM · softmax", metric, base=(softmax, ("cam",)))


def _stride_lines(config, there: Collection[str]) -> Iterator[Line]:
    for pair in config.last_stride:
        known = [name for name in pair if name in there]
        if len(known) < len(pair):
            continue
        for name in pair:
            base = None if name == pair[0] else ((pair[0],), (DEFAULT,))
            yield Line(f"Dist-CAM · {name}", (name,), base=base)
            if config.networks[name].objective == "softmax":
                base = None if name == pair[0] else ((pair[0],), ("cam",))
                yield Line(f"CAM · {name}", (name,), ("cam",), base)
        for name in pair:
            shown = CONTROLS if name == pair[0] else ("uniform", "wrong")
            yield from _controls(name, (name,), names=tuple(shown))


def _pre_pool_lines(config, there: Collection[str]) -> Iterator[Line]:
    for network in config.pre_pool:
        views = {value: view_name(network, value) for value in PRE_POOL_TITLES}
        if not all(view in there for view in views.values()):
            continue
        for value, title in PRE_POOL_TITLES.items():
            base = None if value == "relu" else ((views["relu"],), (DEFAULT,))
            yield Line(f"Dist-CAM, {title} · {network}", (views[value],), base=base)
        if config.networks[network].objective == "softmax":
            for value, title in PRE_POOL_TITLES.items():
                base = None if value == "relu" else ((views["relu"],), ("cam",))
                yield Line(f"CAM, {title} · {network}", (views[value],), ("cam",), base)
        for value, title in PRE_POOL_TITLES.items():
            shown = CONTROLS if value == "relu" else ("uniform", "wrong")
            yield from _controls(f"{title} · {network}", (views[value],), names=tuple(shown))
