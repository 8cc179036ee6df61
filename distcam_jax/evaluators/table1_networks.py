"""Which networks the paper's table is made of: what a configuration names, and what its folders hold."""

import dataclasses
from pathlib import Path

import ml_collections
import numpy as np

from distcam_jax import checkpoints, runs
from distcam_jax.cam import reciprocal_weights
from distcam_jax.evaluators.explain import check_names
from distcam_jax.evaluators.network import Network, import_network, load_network
from distcam_jax.evaluators.whitening import whitening_options
from distcam_jax.models.pretrained import SUFFIXES

KINDS = {"weights": "imported weights", "softmax": "softmax run", "metric": "metric run"}
_LEAST = {"seed": 0, "input.image_size": 1, "input.num_workers": 0, "evaluate.batch": 1, "evaluate.resamples": 1}


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """A network that was given.

    Attributes:
        backbone: its name among the models.
        kind: of `KINDS`.
        source: the weights' file or Hub id, or the run's folder.
        config: the configuration to load it with.
    """

    backbone: str
    kind: str
    source: str
    config: ml_collections.ConfigDict

    @property
    def name(self) -> str:
        """One word for it, such as "resnet18_metric"."""
        return f"{self.backbone}_{self.kind}"

    def load(self, num_classes: int) -> Network:
        """The network, in evaluation mode; errors are those of `load_network` and `import_network`."""
        if self.kind == "weights":
            return import_network(self.config, self.source, num_classes, name=self.name)
        return load_network(self.config, self.source, num_classes, name=self.name)

    def check(self, num_classes: int) -> None:
        """Refuses what `load` would: weights that do not read or fit, and a run without a finished checkpoint."""
        if self.kind == "weights":
            self.load(num_classes)
            return
        with checkpoints.checkpoint_manager(self.source, read_only=True) as manager:
            if manager.latest_step() is None:
                raise ValueError(f"{self.source} holds no finished checkpoint yet; train first, or move it away")

    def prototypes_path(self, output: Path) -> Path:
        """Where its prototypes are kept: in a run's folder, as `evaluate` does, else in the output."""
        if self.kind == "weights":
            return output / "prototypes" / f"{self.name}.safetensors"
        return Path(self.source) / "prototypes.safetensors"


def find_networks(config: ml_collections.ConfigDict) -> list[Given]:
    """The networks that are there, backbone by backbone, in the order of `KINDS`.

    All that can be known without reading weights is checked, so that a run of days does not end on a wrong path.

    Args:
        config: see `configs/table1.py`.

    Returns:
        At least one.

    Raises:
        ValueError: for options out of range, an unknown backbone, a folder that is none, a run of another backbone,
            objective or data set, or no network at all; then tells what was looked for.
        FileNotFoundError: when a named weights file is missing.
    """
    _check_options(config)
    given = []
    for backbone in config.backbones:
        for kind in KINDS:
            source = _source(config, backbone, kind)
            if source is not None:
                made = _imported_config(config, backbone) if kind == "weights" else _run_config(config, source)
                one = Given(backbone, kind, source, made)
                _check_run(config, one)
                given.append(one)
    if not given:
        raise ValueError(f"no network was given; looked for {_looked_for(config)}")
    return given


def _check_options(config) -> None:
    """Refuses options that are out of range or name something unknown; a ValueError names the key."""
    _check_backbones(config)
    options = config.evaluate
    check_names(options.methods)
    whitening_options(options)
    for name in ("cam", "dist_cam", "uniform"):
        if name not in options.methods:
            role = "is a baseline of the table" if name == "uniform" else "the table is about"
            raise ValueError(f"config.evaluate.methods must hold {name}, which {role}")
    flat = runs.flatten(config.to_dict())
    for name, least in _LEAST.items():
        value = flat[name]
        if value < least:
            raise ValueError(f"config.{name} must be {'positive' if least else '0 or more'}, got {value}")
    try:
        reciprocal_weights(np.ones(2, np.float32), norm=options.norm, eps=options.eps)
    except ValueError as error:
        raise ValueError(f"config.evaluate.{error}") from error
    if options.checkpoint not in ("latest", "best"):
        raise ValueError(f"config.evaluate.checkpoint must be latest or best, got {options.checkpoint!r}")
    for backbone, figures in config.paper.items():
        for name, value in figures.items():
            if value is not None and not 1 < value <= 100:  # a share, such as 0.52, is a slip
                raise ValueError(f"config.paper.{backbone}.{name} must be an error in percent, got {value}")
    for name in ("weights", "runs"):
        if config[name] and not Path(config[name]).is_dir():
            raise ValueError(f"config.{name}: there is no folder {config[name]}")


def _check_backbones(config) -> None:
    known = f"choose some of {', '.join(config.networks)}"
    if not config.backbones:
        raise ValueError(f"config.backbones is empty; {known}")
    for number, backbone in enumerate(config.backbones):
        if backbone not in config.networks:
            raise ValueError(f"config.backbones: unknown backbone {backbone!r}; {known}")
        if backbone in config.backbones[:number]:
            raise ValueError(f"config.backbones names {backbone} twice; name each once")


def _source(config, backbone: str, kind: str) -> str | None:
    """The file, Hub id or folder of a network; None where it was not given."""
    named, key = config.networks[backbone][kind], f"config.networks.{backbone}.{kind}"
    if kind == "weights":
        if named and Path(named).suffix.lower() in SUFFIXES and not Path(named).is_file():
            raise FileNotFoundError(f"there is no file {named}; check {key}")
        places = [Path(config.weights) / f"{backbone}{suffix}" for suffix in SUFFIXES] if config.weights else []
        return named or next((str(path) for path in places if path.is_file()), None)
    if named and not Path(named).is_dir():
        raise ValueError(f"{key}: there is no folder {named}")
    folder = Path(config.runs) / f"{backbone}_{kind}"
    return named or (str(folder) if config.runs and folder.is_dir() else None)


def _looked_for(config) -> str:
    weights = f"{config.weights or '<config.weights>'}/<backbone>{{{','.join(SUFFIXES)}}}"
    folders = f"{config.runs or '<config.runs>'}/<backbone>_{{softmax,metric}}"
    return f"{weights} and {folders} with a backbone of {', '.join(config.backbones)}"


def _imported_config(config, backbone: str) -> ml_collections.ConfigDict:
    """What published weights are loaded with."""
    values = {name: config[name].to_dict() for name in ("data", "input")}
    model = {"name": backbone, "width": config.networks[backbone].width, **config.model.to_dict()}
    return ml_collections.ConfigDict({"seed": config.seed, "objective": "softmax", "model": model, **values})


def _run_config(config, folder: str) -> ml_collections.ConfigDict:
    """A run's own configuration, with where this one keeps its data and how it reads them."""
    made = runs.load_comparable_run(folder, config)
    made.input.num_workers = config.input.num_workers
    made.data = config.data.to_dict()
    return made


def _check_run(config, one: Given) -> None:
    """Refuses a run's folder that holds another network than its place says, or none yet."""
    if one.kind == "weights":
        return
    for key, found, wanted in (
        ("model.name", one.config.model.name, one.backbone),
        ("objective", one.config.objective, one.kind),
    ):
        if found != wanted:
            raise ValueError(f"{one.source} is given as the {KINDS[one.kind]} of {one.backbone}; its {key} is {found}")
    if not (Path(one.source) / "checkpoints").is_dir():
        raise ValueError(f"{one.source} holds no checkpoints; train it first, or move it away")
