"""Figures beside those of all images resized straight: centre crops, and images that no list names as bad."""

import dataclasses
import json
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distcam_jax import training
from distcam_jax.datasets import Dataset
from distcam_jax.evaluators import evaluate, load_network, network_prototypes
from distcam_jax.evaluators.classify import classify
from distcam_jax.evaluators.localize import Localization
from distcam_jax.input_pipeline import center_crop, decode_image
from tests.tiny_run import tiny_config

pytestmark = pytest.mark.usefixtures("prepared_data")


class Marked(Sequence):
    """A source of which every fourth image is on the list."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return {**self.source[index], "blacklisted": index % 4 == 0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, copy_run):
    return copy_run("softmax", tmp_path_factory.mktemp("classify") / "run")


def test_classify_ranks_as_a_loop_over_the_centre_crops(trained):
    config = tiny_config("softmax")
    network = load_network(config, trained, 10, name="softmax")
    data = training.load_split(config, "eval")
    prototypes = network_prototypes(network, trained / "p.safetensors", data.class_names, batch=16)
    found = classify(network, prototypes, network.batches(data.source, batch=16, resize="center_crop"))
    model = jax.jit(lambda images: nnx.merge(network.graph, network.state, copy=True)(images))
    for row, index in enumerate(found.index):
        example = data.source[int(index)]
        small, _ = center_crop(decode_image(example["image"]), np.zeros((0, 4), np.float32), (32, 32))
        output, features = model(training.normalize(jnp.asarray(small[None] / 255, jnp.float32), config))
        distances = np.abs(np.asarray(features["embedding"]) - prototypes.prototypes).sum(axis=1)
        assert found.labels[row] == example["label"]
        assert found.decisions["softmax"][row, 0] == np.argmax(output)
        assert found.decisions["nearest"][row, 0] == np.argmin(distances)
    assert sorted(found.index) == list(range(20))


def test_rows_keeps_the_same_images_in_every_array():
    rows = np.arange(6)
    measured = Localization(
        rows, rows + 10, rows, {"nearest": rows[:, None]}, rows * 0.5, {"cam": rows[:, None]}, {}, {"center_box": rows}
    )
    kept = measured.rows(rows % 2 == 1)
    assert kept.index.tolist() == [11, 13, 15]
    assert kept.decisions["nearest"].tolist() == kept.right_iou["cam"].tolist() == [[1], [3], [5]]
    assert kept.box_iou["center_box"].tolist() == [1, 3, 5]


def test_evaluate_tells_centre_crops_and_images_that_are_not_blacklisted(trained, tmp_path, monkeypatch):
    config = tiny_config("softmax", **{"evaluate.center_crop": True})
    load = training.load_split

    def load_marked(config, split) -> Dataset:
        data = load(config, split)
        return dataclasses.replace(data, source=Marked(data.source), blacklist_known=True)

    monkeypatch.setattr(training, "load_split", load_marked)
    metrics = evaluate(config, trained, output=tmp_path)
    values = metrics["networks"]["softmax"]
    assert (values["images"], values["without_blacklist"]["images"]) == (20, 15)
    tables = (tmp_path / "tables.md").read_text()
    assert "Localisation without the blacklisted images" in tables
    assert "softmax network, centre crop" in tables
    assert "20 images" in tables
    assert "15 images" in tables
    assert json.loads((tmp_path / "metrics.json").read_text())["networks"]["softmax"]["center_crop"].keys() == {
        "softmax_top1",
        "softmax_top5",
        "nearest_prototype_top1",
        "nearest_prototype_top5",
    }
    # Right by all images = right by the kept ones + right by the others, counted from the report's own figures.
    for name, figure in values["without_blacklist"]["classification"].items():
        right, all_right = 15 * figure["value"], 20 * values["classification"][name]["value"]
        assert right == pytest.approx(round(right))
        assert 0 <= all_right - right <= 5
