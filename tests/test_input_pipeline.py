"""The Grain pipelines on small in-memory sources; each picture's colour tells which example it is."""

import gc
import json

import cv2
import grain
import jax
import numpy as np
import pytest

from distcam_jax.input_pipeline import (
    TrainIterator,
    center_crop,
    make_eval_batches,
    make_train_iterator,
    resize_image,
)

NO_BOXES = np.zeros((0, 4), np.float32)


def encode(image):
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def flat_source(length, side=6):
    """Returns examples of one colour each: red is 10 times the position; the label is 100 + the position."""
    return [
        {
            "image": encode(np.full((side, side, 3), (10 * i, 255, 0), np.uint8)),
            "label": 100 + i,
            "file_name": f"{i}.png",
        }
        for i in range(length)
    ]


def photo_source(length):
    """Returns examples of different sizes with noise and boxes: as many boxes as the position modulo 3."""
    generator = np.random.default_rng(0)
    source = []
    for i in range(length):
        image = generator.integers(0, 256, (20 + i, 30 + 2 * i, 3), dtype=np.uint8)
        boxes = np.array([[j, j + 1, 10 + i, 12 + j] for j in range(i % 3)], np.float32).reshape(-1, 4)
        source.append({"image": encode(image), "label": i, "boxes": boxes, "file_name": f"{i}.png", "pixels": image})
    return source


def train(source, **changes):
    options = {"batch_size": 4, "image_size": 6, "seed": 0, "augmentation": None, **changes}
    return make_train_iterator(source, **options)


CROP = {"kind": "random_resized_crop", "scale": (0.3, 1.0), "flip": True}


def take(batches, count):
    taken = [next(batches) for _ in range(count)]
    batches.close()
    return taken


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], strict=True, err_msg=name)


def test_make_train_iterator_batch_holds_what_it_says():
    (batch,) = take(train(flat_source(9), image_size=(8, 4)), 1)
    assert {name: (value.dtype, value.shape) for name, value in batch.items()} == {
        "image": (np.float32, (4, 8, 4, 3)),
        "label": (np.int32, (4,)),
        "index": (np.int32, (4,)),
    }
    np.testing.assert_array_equal(batch["label"], 100 + batch["index"])
    expected = np.stack([10 * batch["index"], [255] * 4, [0] * 4], axis=1).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(batch["image"], np.broadcast_to(expected[:, None, None], (4, 8, 4, 3)))
    assert batch["image"].max() == 1.0
    assert all(type(value) is np.ndarray for value in batch.values())


@pytest.mark.parametrize("image_size", [5, (7, 6)])
def test_batches_go_to_a_cpu_without_a_copy(image_size):
    train_batch = take(train(flat_source(3), image_size=image_size), 1)[0]
    (eval_batch,) = make_eval_batches(flat_source(3), batch_size=3, image_size=image_size)
    for batch in (train_batch, eval_batch):
        on_device = jax.device_put(batch["image"], jax.devices("cpu")[0])
        assert on_device.unsafe_buffer_pointer() == batch["image"].ctypes.data


def test_make_train_iterator_with_colours_depends_on_the_seed_alone():
    colours = {"color_jitter": {"brightness": 0.4, "hue": 0.1}, "random_erasing": {"probability": 0.5}}
    augmentation = {**CROP, **colours}
    source = photo_source(7)
    reference = take(train(source, augmentation=augmentation), 3)
    assert_same(reference, take(train(source, augmentation=augmentation, num_threads=0), 3))
    plain = take(train(source, augmentation=CROP), 3)
    assert all((a["image"] != b["image"]).mean() > 0.5 for a, b in zip(reference, plain, strict=True))
    for a, b in zip(reference, plain, strict=True):
        np.testing.assert_array_equal(a["index"], b["index"])


def test_make_train_iterator_shows_every_example_once_an_epoch_in_another_order():
    batches = take(train(flat_source(10), batch_size=5), 8)
    epochs = np.concatenate([batch["index"] for batch in batches]).reshape(4, 10)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(10), (4, 1)))
    assert len({tuple(epoch) for epoch in epochs.tolist()} | {tuple(range(10))}) == 5


def test_make_train_iterator_batches_run_on_across_epochs():
    batches = take(train(flat_source(3), batch_size=7), 3)
    indices = np.concatenate([batch["index"] for batch in batches])
    np.testing.assert_array_equal(np.sort(indices.reshape(7, 3), axis=1), np.tile(np.arange(3), (7, 1)))


def test_make_train_iterator_augments_anew_every_epoch():
    source = photo_source(1)
    batches = take(train(source, batch_size=2, augmentation=CROP), 3)
    images = np.concatenate([batch["image"] for batch in batches])
    assert len({image.tobytes() for image in images}) == 6


def test_make_train_iterator_depends_on_the_seed_alone():
    source = photo_source(7)
    reference = take(train(source, augmentation=CROP), 4)
    assert_same(reference, take(train(source, augmentation=CROP, num_threads=0), 4))
    assert_same(reference, take(train(source, augmentation=CROP, num_threads=3, prefetch=5), 4))
    other = take(train(source, augmentation=CROP, seed=1), 4)
    assert any((a["index"] != b["index"]).any() for a, b in zip(reference, other, strict=True))


def test_make_train_iterator_neighbouring_seeds_do_not_share_epochs():
    def epochs(seed):
        indices = np.concatenate([b["index"] for b in take(train(flat_source(20), batch_size=20, seed=seed), 4)])
        return {tuple(epoch) for epoch in indices.reshape(4, 20).tolist()}

    assert not epochs(0) & epochs(1)


def test_make_train_iterator_processes_share_out_the_global_batch():
    source = photo_source(7)
    whole = take(train(source, batch_size=6, augmentation=CROP), 5)
    parts = [
        take(train(source, batch_size=2, augmentation=CROP, process_index=p, process_count=3), 5) for p in range(3)
    ]
    joined = [
        {name: np.concatenate([part[step][name] for part in parts]) for name in whole[step]}
        for step in range(len(whole))
    ]
    assert_same(whole, joined)


def test_train_iterator_resumes_bit_by_bit_in_mid_epoch():
    source = photo_source(7)
    batches = train(source, batch_size=3, augmentation=CROP)
    head = [next(batches) for _ in range(3)]
    state = json.loads(json.dumps(batches.get_state()))
    tail = take(batches, 4)
    fresh = train(source, batch_size=3, augmentation=CROP, num_threads=0)
    fresh.set_state(state)
    assert_same(tail, take(fresh, 4))
    rewound = train(source, batch_size=3, augmentation=CROP)
    next(rewound)
    rewound.set_state({**state, "next_batch": 0})
    assert_same(head + tail, take(rewound, 7))


def test_train_iterator_state_is_the_same_dict_of_integers_on_every_process():
    states = []
    for process in range(2):
        batches = train(flat_source(5), batch_size=3, seed=7, process_index=process, process_count=2)
        assert isinstance(batches, grain.DatasetIterator)
        take(batches, 2)
        states.append(batches.get_state())
    assert states[0] == states[1] == {"next_batch": 2, "seed": 7, "num_examples": 5, "global_batch_size": 6}
    assert {type(value) for value in states[0].values()} == {int}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "another seed 0 \\(here 1\\): use the saved values"),
        ({"batch_size": 2}, "another global_batch_size 4 \\(here 2\\)"),
        ({"source": 6}, "another num_examples 5 \\(here 6\\)"),
    ],
)
def test_train_iterator_refuses_a_state_of_other_data(changes, message):
    saved = train(flat_source(5)).get_state()
    batches = train(flat_source(changes.pop("source", 5)), **changes)
    with pytest.raises(ValueError, match=message):
        batches.set_state(saved)
    with pytest.raises(ValueError, match="state must hold"):
        batches.set_state({"next_index": 3})


@pytest.mark.parametrize("num_threads", [0, 2])
def test_train_iterator_names_an_unreadable_image_and_stays_before_it(num_threads):
    source = flat_source(6)
    source[4]["image"] = source[4]["image"][:-20]
    batches = train(source, batch_size=1, num_threads=num_threads)
    seen = []
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^image '4\.png' ends early") as error:
            seen.extend(int(batch["index"][0]) for batch in batches)
        assert "\n" not in str(error.value)
    assert 4 not in seen
    assert batches.get_state()["next_batch"] == len(seen) == len(set(seen))
    batches.close()


def test_train_iterator_closed_refuses_to_go_on():
    batches = train(flat_source(3))
    take(batches, 1)
    batches.close()
    with pytest.raises(ValueError, match="next_batch=1\\) is closed"):
        next(batches)


def test_make_eval_batches_pads_the_last_batch():
    batches = make_eval_batches(flat_source(5), batch_size=4, image_size=3)
    first, last = list(batches)
    assert len(batches) == 2
    np.testing.assert_array_equal(first["index"], [0, 1, 2, 3])
    np.testing.assert_array_equal(last["mask"], [True, False, False, False])
    np.testing.assert_array_equal(last["label"], [104, 0, 0, 0])
    np.testing.assert_array_equal(last["image_size"], [[6, 6], [0, 0], [0, 0], [0, 0]])
    np.testing.assert_array_equal(last["image"][1:], 0)
    np.testing.assert_allclose(last["image"][0, ..., 0], 40 / 255)
    dtypes = {name: value.dtype for name, value in last.items()}
    integers = dict.fromkeys(["label", "index", "image_size", "num_boxes"], np.int32)
    assert dtypes == {"image": np.float32, "mask": np.bool_, "boxes": np.float32, **integers}


def test_make_eval_batches_gives_boxes_and_sizes_of_the_original():
    source = photo_source(6)
    (batch,) = make_eval_batches(source, batch_size=6, image_size=16)
    assert batch["boxes"].shape == (6, 2, 4)
    np.testing.assert_array_equal(batch["num_boxes"], [0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(batch["image_size"], [(30 + 2 * i, 20 + i) for i in range(6)])
    for i, example in enumerate(source):
        np.testing.assert_array_equal(batch["boxes"][i, : i % 3], example["boxes"])
        np.testing.assert_array_equal(batch["boxes"][i, i % 3 :], 0)
    (wider,) = make_eval_batches(source, batch_size=6, image_size=16, max_boxes=5)
    np.testing.assert_array_equal(wider["boxes"][:, :2], batch["boxes"])
    assert wider["boxes"].shape == (6, 5, 4)


def test_make_eval_batches_refuses_more_boxes_than_rows():
    with pytest.raises(ValueError, match=r"image '2\.png' has 2 boxes, more than max_boxes 1"):
        list(make_eval_batches(photo_source(3), batch_size=2, image_size=8, max_boxes=1))


def test_make_eval_batches_straight_resize_sees_the_whole_image():
    source = photo_source(2)
    (batch,) = make_eval_batches(source, batch_size=2, image_size=(10, 15))
    oracle, _ = resize_image(source[0]["pixels"], NO_BOXES, (10, 15))
    np.testing.assert_allclose(batch["image"][0] * 255, oracle, atol=1e-3)
    np.testing.assert_allclose(batch["image"][0].mean(axis=(0, 1)) * 255, source[0]["pixels"].mean(axis=(0, 1)), atol=3)


def test_make_eval_batches_center_crop():
    source = photo_source(1)
    (batch,) = make_eval_batches(source, batch_size=1, image_size=14, resize="center_crop")
    oracle, _ = center_crop(source[0]["pixels"], NO_BOXES, (14, 14))
    np.testing.assert_allclose(batch["image"][0] * 255, oracle, atol=1e-3)


@pytest.mark.parametrize("length", [1, 4, 7, 12])
def test_make_eval_batches_processes_have_equally_many_batches_and_lose_nothing(length):
    source = flat_source(length)
    parts = [
        list(make_eval_batches(source, batch_size=2, image_size=3, process_index=p, process_count=3)) for p in range(3)
    ]
    assert {len(part) for part in parts} == {-(-length // 6)}
    rows = [(part[i]["index"], part[i]["mask"]) for i in range(len(parts[0])) for part in parts]
    indices, mask = (np.concatenate(column) for column in zip(*rows, strict=True))
    np.testing.assert_array_equal(indices[mask], np.arange(length))


def test_make_eval_batches_can_be_gone_through_again_and_left_early():
    batches = make_eval_batches(photo_source(5), batch_size=2, image_size=8)
    for _ in batches:
        break
    gc.collect()
    assert_same(list(batches), list(batches))


def test_make_eval_batches_names_an_unreadable_image():
    source = flat_source(3)
    source[1]["image"] = b"nothing"
    with pytest.raises(ValueError, match=r"^image '1\.png' is damaged or of an unknown format"):
        list(make_eval_batches(source, batch_size=2, image_size=3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": []}, "source must hold at least one example"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": 2.0}, "batch_size must be an integer of at least 1, got 2.0"),
        ({"image_size": 0}, "image_size must be a positive integer or \\(height, width\\)"),
        ({"image_size": (8, 8, 3)}, "image_size must be"),
        ({"num_workers": -1}, "num_workers must be"),
        ({"prefetch": 0}, "prefetch must be"),
        ({"process_count": 2, "process_index": 2}, "process_index must be below process_count 2, got 2"),
    ],
)
@pytest.mark.parametrize("make", [train, make_eval_batches])
@pytest.mark.usefixtures("without_type_checks")
def test_makers_name_the_bad_argument(make, changes, message):
    options = {"source": flat_source(2), "batch_size": 2, "image_size": 4, **changes}
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.usefixtures("without_type_checks")
def test_makers_name_a_bad_choice():
    with pytest.raises(ValueError, match="resize must be one of \\['center_crop', 'straight'\\], got 'crop'"):
        make_eval_batches(flat_source(1), batch_size=1, image_size=4, resize="crop")
    with pytest.raises(ValueError, match="seed must be an integer of at least 0, got -1"):
        train(flat_source(1), seed=-1)
    with pytest.raises(ValueError, match="must be one of \\['pad_crop', 'random_resized_crop'\\], got 'crop'"):
        train(flat_source(1), augmentation={"kind": "crop"})


def test_train_iterator_is_exported():
    assert isinstance(train(flat_source(1)), TrainIterator)
