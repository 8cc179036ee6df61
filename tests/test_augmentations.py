"""The augmentation that a config spells out: its order, its options and their checks."""

import numpy as np
import pytest

from distcam_jax.augmentations import augment, check_augmentation, resize_image
from tests.pictures import BOX, NO_BOXES, coordinate_image


def test_augment_without_augmentation_is_the_straight_resize():
    image = coordinate_image(40, 60)
    result, boxes = augment(image, BOX, np.random.default_rng(0), (20, 20), None)
    oracle, oracle_boxes = resize_image(image, BOX, (20, 20))
    np.testing.assert_array_equal(result, oracle)
    np.testing.assert_array_equal(boxes, oracle_boxes)


@pytest.mark.parametrize(("flip", "smallest", "largest"), [(True, 70, 130), (False, 0, 0)])
@pytest.mark.parametrize("kind", ["random_resized_crop", "pad_crop"])
def test_augment_mirrors_every_second_image(kind, flip, smallest, largest):
    generator, mirrored = np.random.default_rng(0), 0
    for _ in range(200):
        image, _ = augment(coordinate_image(30, 40), NO_BOXES, generator, (30, 40), {"kind": kind, "flip": flip})
        mirrored += int(image[15, 10, 0]) > int(image[15, 30, 0])
    assert smallest <= mirrored <= largest


@pytest.mark.parametrize("kind", ["random_resized_crop", "pad_crop"])
def test_augment_with_colours_off_draws_as_without_them(kind):
    image = np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    generators = [np.random.default_rng(0) for _ in range(2)]
    off = {"color_jitter": None, "random_erasing": None}
    for _ in range(10):
        plain, switched_off = (
            augment(image, BOX, generator, (24, 24), {"kind": kind, **extra})
            for generator, extra in zip(generators, ({}, off), strict=True)
        )
        np.testing.assert_array_equal(plain[0], switched_off[0])
        np.testing.assert_array_equal(plain[1], switched_off[1])


@pytest.mark.parametrize("kind", ["random_resized_crop", "pad_crop"])
def test_augment_colours_come_after_the_geometry_and_leave_it_and_the_boxes(kind):
    image = np.random.default_rng(1).integers(100, 156, (30, 40, 3), dtype=np.uint8)
    options = {"color_jitter": {"brightness": (0.5, 0.5)}, "random_erasing": {"probability": 1.0, "fill": 1.0}}
    for seed in range(10):
        plain, boxes = augment(image, BOX, np.random.default_rng(seed), (24, 24), {"kind": kind})
        changed, same = augment(image, BOX, np.random.default_rng(seed), (24, 24), {"kind": kind, **options})
        erased = (changed == 255).all(axis=-1)  # were the jitter after the erasing, this would be 128
        np.testing.assert_array_equal(boxes, same)
        np.testing.assert_allclose(changed[~erased], plain[~erased] / 2, atol=0.51)
        assert 0.01 < erased.mean() < 0.45
        rows, columns = np.nonzero(erased)
        assert erased[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()


def test_augment_colours_follow_from_the_seed():
    image = np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    options = {"kind": "pad_crop", "color_jitter": {"hue": 0.5, "contrast": 0.5}, "random_erasing": {}}
    runs = [[augment(image, BOX, np.random.default_rng(seed), (24, 24), options)[0] for seed in (0, 0, 1)]]
    for first, again, other in runs:
        np.testing.assert_array_equal(first, again)
        assert (first != other).mean() > 0.5


def test_check_augmentation_may_check_again():
    given = {
        "kind": "pad_crop",
        "color_jitter": {"brightness": 0.4, "hue": 0.1},
        "random_erasing": {"fill": (0.5, 0, 1)},
    }
    checked = check_augmentation(given)
    assert check_augmentation(checked) == checked


def test_check_augmentation_takes_lists_and_whole_numbers():
    checked = check_augmentation({"kind": "random_resized_crop", "scale": [0.5, 1], "ratio": [1, 2]})
    assert checked == {
        "kind": "random_resized_crop",
        "scale": (0.5, 1.0),
        "ratio": (1.0, 2.0),
        "flip": True,
        "color_jitter": None,
        "random_erasing": None,
    }
    assert all(type(v) is float for v in checked["scale"] + checked["ratio"])


def test_augment_hands_its_options_on():
    image, generator = coordinate_image(100, 100), np.random.default_rng(0)
    whole = {"kind": "random_resized_crop", "scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": False}
    np.testing.assert_array_equal(augment(image, NO_BOXES, generator, (100, 100), whole)[0], image)
    still = {"kind": "pad_crop", "padding": 0, "flip": False}
    np.testing.assert_array_equal(augment(image, NO_BOXES, generator, (100, 100), still)[0], image)


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        (
            {"kind": "mixup"},
            "augmentation\\['kind'\\] must be one of \\['pad_crop', 'random_resized_crop'\\], got 'mixup'",
        ),
        ({"flip": True}, "got None"),
        (
            {"kind": "pad_crop", "scale": (0.5, 1.0)},
            "has no option \\['scale'\\]; its options are \\['color_jitter', 'flip', 'padding', 'random_erasing'\\]",
        ),
        ({"kind": "pad_crop", "padding": -1}, "padding must be a number of pixels, at least 0, got -1"),
        ({"kind": "pad_crop", "padding": 1.5}, "padding must be"),
        ({"kind": "pad_crop", "flip": 1}, "flip must be True or False, got 1"),
        ({"kind": "pad_crop", "color_jitter": {"gamma": 2.0}}, "color_jitter has no option \\['gamma'\\]"),
        ({"kind": "pad_crop", "color_jitter": 0.4}, "color_jitter must be None or a dict of options"),
        ({"kind": "pad_crop", "random_erasing": {"area": (0.0, 0.4)}}, "random_erasing\\['area'\\] must be"),
        ({"kind": "pad_crop", "random_erasing": True}, "random_erasing must be None or a dict of options"),
        ({"kind": "random_resized_crop", "scale": (0.5, 1.5)}, "scale must be"),
        ({"kind": "random_resized_crop", "scale": (0.0, 1.0)}, "scale must be"),
        ({"kind": "random_resized_crop", "scale": 0.5}, "scale must be"),
        ({"kind": "random_resized_crop", "ratio": (2.0, 0.5)}, "ratio must be"),
        ({"kind": "random_resized_crop", "ratio": (0.5, float("inf"))}, "ratio must be"),
        ({"kind": "random_resized_crop", "ratio": (float("nan"), 1.0)}, "ratio must be"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_check_augmentation_names_the_bad_value(augmentation, message):
    with pytest.raises(ValueError, match=message):
        check_augmentation(augmentation)
