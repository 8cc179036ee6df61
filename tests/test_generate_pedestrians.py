"""Tests of the people that are drawn in the layout of Market-1501."""

import collections
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from distcam_jax.datasets import load_dataset
from tools.generate_pedestrians import FOLDERS, generate
from tools.pedestrian_figures import Pose, draw_person
from tools.pedestrian_people import random_person, similar_person

NUMBERS = dict(train_identities=3, test_identities=4, cameras=3, frames=2, distractors=3, junk=2)
NAME = re.compile(r"(-1|\d{4})_c(\d)s\d_\d{6}_\d\d\.jpg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pedestrians")
    generate(folder, **NUMBERS)
    return folder


def persons_and_cameras(folder, name):
    """Person and camera of every image, from the files' names."""
    found = [NAME.fullmatch(path.name) for path in (folder / name).iterdir()]
    return [(int(match[1]), int(match[2])) for match in found]


def test_generate_writes_files_like_the_official_ones(folder):
    paths = list(folder.rglob("*.jpg"))
    assert {path.parent.name for path in paths} == set(FOLDERS)
    assert {cv2.imread(str(path)).shape for path in paths} == {(128, 64, 3)}
    assert all(NAME.fullmatch(path.name) for path in paths)
    assert len({path.name for path in paths}) == len(paths)


def test_generate_keeps_training_and_test_apart(folder):
    train, query, gallery = ({person for person, _ in persons_and_cameras(folder, name)} for name in FOLDERS)
    assert (len(train), len(query)) == (3, 4)
    assert train | query == set(range(1, 8))
    assert gallery == query | {0, -1}


def test_generate_gives_queries_what_the_rule_removes_and_what_is_found(folder):
    cameras_of = collections.defaultdict(set)
    for person, camera in persons_and_cameras(folder, "bounding_box_test"):
        cameras_of[person].add(camera)
    for person, camera in persons_and_cameras(folder, "query"):
        assert camera in cameras_of[person]
        assert len(cameras_of[person] - {camera}) >= 2


def test_generate_draws_what_is_asked_for(folder):
    counts = collections.Counter(person for person, _ in persons_and_cameras(folder, "bounding_box_test"))
    assert (counts[0], counts[-1]) == (3, 2)


def test_generate_follows_from_the_seed(folder, tmp_path):
    few = dict(train_identities=1, test_identities=1, cameras=2, distractors=1, junk=1)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        generate(tmp_path / name, seed=seed, **few)
    a, b, c = (
        {path.relative_to(tmp_path / name).as_posix(): path.read_bytes() for path in (tmp_path / name).rglob("*.jpg")}
        for name in "abc"
    )
    assert a == b
    assert set(a.values()).isdisjoint(c.values())


def test_load_dataset_reads_generated_pedestrians(folder, tmp_path):
    train, query, gallery = (
        load_dataset("drawn_pedestrians", split, data_dir=tmp_path, manual_dir=folder)
        for split in ("train", "query", "gallery")
    )
    assert (train.num_classes, query.num_classes, gallery.num_classes) == (3, 5, 5)  # distractors are one
    assert len(gallery.source) == len(persons_and_cameras(folder, "bounding_box_test")) - NUMBERS["junk"]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"cameras": 1}, "cameras: got 1, want at least 2"),
        ({"frames": 1}, "frames: got 1, want at least 2"),
        ({"train_identities": 0}, "train_identities: got 0, want at least 1"),
        ({"junk": -1}, "junk: got -1, want at least 0"),
    ],
)
def test_generate_refuses_numbers_that_are_too_small(tmp_path, numbers, message):
    with pytest.raises(ValueError, match=message):
        generate(tmp_path / "pedestrians", **numbers)
    assert not (tmp_path / "pedestrians").exists()


def test_generate_pedestrians_leaves_older_images_alone(folder):
    script = Path(__file__).parents[1] / "tools" / "generate_pedestrians.py"
    result = subprocess.run([sys.executable, script, folder], capture_output=True, text=True)
    assert result.returncode == 1
    assert "bounding_box_train: exists already; delete it, or name another folder" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("heading", [0.0, 1.3, np.pi])
def test_draw_person_shows_clothes_where_they_are_worn(heading):
    colours = dict(top=(200, 10, 10), bottom_colour=(10, 10, 200), skin=(90, 90, 90), hair=(40, 40, 40))
    person = random_person(np.random.default_rng(0))._replace(
        height=1.0, pattern="plain", bottom="trousers", shoes=(30, 30, 30), bag="none", hat="none", **colours
    )
    figure = draw_person(person, Pose(heading, 0.0, 0.1, 0.0, (32, 120), 100.0), (128, 64))
    red, blue = (np.argwhere((figure[..., channel] > 150) & (figure[..., 2 - channel] < 50)) for channel in (0, 2))
    assert 20 + 14 < red[:, 0].min() < red[:, 0].max() < 20 + 60  # level 0 is row 20
    assert 20 + 48 < blue[:, 0].min() < blue[:, 0].max() < 120
    assert figure[:10].max() == 0  # nothing above the head


def test_draw_person_shows_a_backpack_from_behind():
    person = random_person(np.random.default_rng(0))._replace(
        height=1.0, bag="backpack", bag_colour=(10, 200, 10), top=(20, 20, 20), second=(20, 20, 20), hair_style="short"
    )

    def green(heading):
        figure = draw_person(person, Pose(heading, 0.0, 0.1, 0.0, (32, 120), 100.0), (128, 64))
        return np.count_nonzero((figure[..., 1] > 120) & (figure[..., 0] < 50))

    assert green(np.pi) > green(np.pi / 2) > 2 * green(0.0)


def test_similar_person_changes_a_few_things():
    generator = np.random.default_rng(0)
    for _ in range(20):
        person = random_person(generator)
        other = similar_person(person, generator)
        varied = [name for name in person._fields if getattr(person, name) != getattr(other, name)]
        differing = set(varied) - {"height", "build"}
        assert len(differing) <= 4
        assert other.skin == person.skin
