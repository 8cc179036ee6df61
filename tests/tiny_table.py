"""The table's configuration, weights and run folders, so small that they are measured in seconds."""

import json

import ml_collections

from configs import table1
from tests.tiny_run import tiny_config
from tests.torch_layout import resnet_keys, saved, tensors_of


def tiny_table(**changes) -> ml_collections.ConfigDict:
    """The table's configuration on the digits of tests.tiny_run, with the two backbones that compile fastest."""
    config, tiny = table1.get_config("stand_in"), tiny_config()
    config.backbones = ("resnet18", "resnet50")
    config.model.update({name: tiny.model[name] for name in config.model})
    config.data = tiny.data.to_dict()
    config.input.update({name: tiny.input[name] for name in config.input})
    config.evaluate.update(batch=16, resamples=100)
    for name in config.networks:
        config.networks[name].width = 4
    config.update_from_flattened_dict(changes)
    return config


def weights_file(path, backbone="resnet18", seed=0):
    counts, expansion = {"resnet18": ((2, 2, 2, 2), 1), "resnet50": ((3, 4, 6, 3), 4)}[backbone]
    keys = resnet_keys(counts, expansion=expansion, width=4, classes=10, stem=3)
    path.parent.mkdir(exist_ok=True)
    return saved(path, tensors_of(keys, seed))


def empty_run(folder, objective="metric", checkpoints=True, **changes):
    """A folder that looks like a run until its weights are read."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(tiny_config(objective, **changes).to_dict()))
    if checkpoints:
        (folder / "checkpoints").mkdir()
    return folder
