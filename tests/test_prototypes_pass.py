"""The pass over the training images: what is lost in its sums, what waits for what, and how it goes on."""

import fractions
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from safetensors.numpy import save_file

from distcam_jax.prototypes import ClassSums, PartialSums, compute_prototypes
from distcam_jax.prototypes.partial import newest_common
from distcam_jax.prototypes.sums import from_bits, local_rows, to_bits
from tests import prototypes_worker as worker

ROOT = Path(__file__).parents[1]


# ---- sums


def exact_mean(values):
    """The mean of floats, rounded once."""
    return np.float32(float(sum(map(fractions.Fraction, values.tolist())) / len(values)))


def test_class_sums_lose_nothing_of_a_class_of_imagenet():
    # 1300 values a class as ImageNet has: one that is large, and increments below the last bit of a float32 sum.
    random = np.random.default_rng(0)
    embeddings = (random.random((2600, 5)) * 1e-3).astype(np.float32)
    embeddings[:2] = 2.0**15
    labels = np.arange(2600) % 2
    found = ClassSums(3)
    for first in range(0, 2600, 64):
        found.add(embeddings[first : first + 64], labels[first : first + 64])
    naive = np.zeros((2, 5), np.float32)
    for embedding, label in zip(embeddings, labels, strict=True):
        naive[label] += embedding
    for c in range(2):
        for k in range(5):
            exact = exact_mean(embeddings[labels == c, k])
            assert found.means()[c, k] == exact
            assert naive[c, k] / np.float32(1300) != exact  # float32 stays at the first value
    assert found.counts.tolist() == [1300, 1300, 0]


def test_class_sums_do_not_depend_on_the_order_of_the_images():
    random = np.random.default_rng(1)
    embeddings = (random.standard_normal((1300, 8)) * 10.0 ** random.integers(-4, 5, (1300, 8))).astype(np.float32)
    orders = [np.arange(1300), np.arange(1300)[::-1], np.argsort(np.abs(embeddings[:, 0])), random.permutation(1300)]
    means = []
    for order in orders:
        sums = ClassSums(1)
        sums.add(embeddings[order], np.zeros(1300, int))
        means.append(sums.means())
    exact = np.array([[exact_mean(embeddings[:, k]) for k in range(8)]])
    for mean in means:
        np.testing.assert_array_equal(mean, exact)
    in_float32 = {np.add.accumulate(embeddings[order], dtype=np.float32)[-1].tobytes() for order in orders}
    assert len(in_float32) > 1


@pytest.mark.parametrize("sizes", [[1] * 90, [7] * 12 + [6], [90]])
def test_class_sums_are_the_same_bits_for_every_size_of_batches(sizes):
    random = np.random.default_rng(2)
    embeddings, labels = random.standard_normal((90, 4)).astype(np.float32), random.integers(0, 3, 90)
    expected = np.zeros((3, 4))
    for embedding, label in zip(embeddings, labels, strict=True):
        expected[label] = expected[label] + embedding
    found, first = ClassSums(3), 0
    for size in sizes:
        found.add(embeddings[first : first + size], labels[first : first + size])
        first += size
    np.testing.assert_array_equal(found.sums, expected)


def test_class_sums_take_bfloat16():
    found = ClassSums(1)
    found.add(np.asarray(jnp.asarray([[1.5], [256.0]], jnp.bfloat16)), np.array([0, 0]))
    assert found.means().tolist() == [[128.75]]


def test_class_sums_refuse_other_channels():
    found = ClassSums(1)
    found.add(np.ones((1, 3), np.float32), np.array([0]))
    with pytest.raises(ValueError, match="embeddings must have 3 channels, got 4"):
        found.add(np.ones((1, 4), np.float32), np.array([0]))


def test_to_bits_bring_every_float64_over_the_devices():
    numbers = np.array([[0.1, -0.0, 5e-324, np.inf], [1 + 2**-52, 1e308, -1e-310, 2**60 + 1]])
    carried = jax.device_put(to_bits(numbers))
    assert carried.dtype == jnp.uint32
    assert from_bits(np.asarray(carried), numbers.dtype).tobytes() == numbers.tobytes()
    counts = np.array([2**40 + 1, -1])
    np.testing.assert_array_equal(from_bits(to_bits(counts), counts.dtype), counts)


def test_local_rows_of_split_arrays_are_in_order():
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    array = np.arange(24.0, dtype=np.float32).reshape(8, 3)
    for axes in (("data",), (("model", "data"),), (None,)):
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        np.testing.assert_array_equal(local_rows(jax.device_put(array, sharding)), array)


# ---- the pass


class Running:
    """An embedding that says when it is fetched."""

    def __init__(self, number, images, events):
        self.number, self.images, self.events = number, images, events

    def __array__(self, dtype=None, copy=None):
        self.events.append(("fetch", self.number))
        return worker.flat(self.images)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("in_flight", [0, 1, 2, 20])
def test_compute_prototypes_fetch_an_embedding_only_after_later_ones_were_started(in_flight):
    events = []

    def embed(images):
        number = sum(kind == "start" for kind, _ in events)
        events.append(("start", number))
        return Running(number, images, events)

    found, _ = compute_prototypes(embed, worker.batches_from(0), worker.CLASSES, in_flight=in_flight)
    for number in range(worker.BATCHES):
        before = events[: events.index(("fetch", number))]
        started = sum(kind == "start" for kind, _ in before)
        assert started == min(number + in_flight + 1, worker.BATCHES)
        assert ("fetch", number - 1) in before or not number
    np.testing.assert_array_equal(found, expected_prototypes()[0])


def expected_prototypes(rows=worker.BATCH):
    """By a plain mean in float64 over everything at once."""
    every = [worker.whole_batch(number, rows) for number in range(worker.BATCHES)]
    keep = np.concatenate([batch["mask"] for batch in every])
    embeddings = np.concatenate([worker.flat(batch["image"]) for batch in every])[keep].astype(np.float64)
    labels = np.concatenate([batch["label"] for batch in every])[keep]
    members = [embeddings[labels == c] for c in range(worker.CLASSES)]
    means = [rows.sum(axis=0) / max(1, len(rows)) for rows in members]
    return np.array(means).astype(np.float32), np.array([len(rows) for rows in members])


def test_compute_prototypes_split_over_devices_are_the_same_bits():
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    forward = jax.jit(worker.flat)
    found, counts = compute_prototypes(
        lambda images: forward(jax.device_put(images, sharding)), worker.batches_from(0), worker.CLASSES
    )
    expected, expected_counts = expected_prototypes()
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(counts, expected_counts)
    assert counts[-1] == 0


def test_compute_prototypes_name_the_images_whose_embeddings_are_not_finite():
    images = np.ones((9, 1, 1, 3), np.float32)
    images[2:9, 0, 0, 1] = np.nan
    batch = {"image": images, "label": np.zeros(9, int), "mask": np.arange(9) != 3, "index": np.arange(50, 59)}
    names = {50 + i: f"n{i}.JPEG" for i in range(9)}
    with pytest.raises(ValueError, match="an embedding is not finite, that of 6 of 8 images in a batch") as caught:
        compute_prototypes(worker.flat, [batch], 1, name_of=names.__getitem__)
    text = str(caught.value)
    assert "n2.JPEG (at 52), n4.JPEG (at 54), n5.JPEG (at 55), n6.JPEG (at 56), n7.JPEG (at 57), ...;" in text


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((worker.flat, []), {"in_flight": -1}, "in_flight must be at least 0, got -1"),
        (
            (lambda images: images[:1], None),
            {},
            r"embed must give \[4, k\] for a batch of 4 images, got \(1, 2, 2, 3\)",
        ),
        ((lambda images: worker.flat(images)[1:], None), {}, r"embed must give \[4, k\] .*, got \(3, 12\)"),
    ],
)
def test_compute_prototypes_name_bad_arguments(arguments, options, message):
    embed, batches = arguments
    with pytest.raises(ValueError, match=message):
        compute_prototypes(embed, worker.batches_from(0) if batches is None else batches, worker.CLASSES, **options)


def test_compute_prototypes_with_partial_sums_want_batches_that_can_start_later(tmp_path):
    with pytest.raises(ValueError, match="partial needs batches as a function"):
        compute_prototypes(worker.flat, [], 1, partial=PartialSums(tmp_path / "p.safetensors", {}))


# ---- going on


@pytest.fixture
def warnings(caplog):
    """What absl warned of."""
    with caplog.at_level(logging.WARNING, logger="absl"):
        yield lambda: [record.getMessage() for record in caplog.records]


def go_on(folder, identity=worker.IDENTITY, classes=worker.CLASSES, every=3):
    """Goes on with a pass to its end; the prototypes, and which batches it embedded."""
    starts = []

    def batches(first):
        starts.append(first)
        return worker.batches_from(first)

    partial = PartialSums(folder / "prototypes.safetensors", identity, every=every)
    found, _ = compute_prototypes(worker.flat, batches, classes, partial=partial)
    partial.remove()
    return found, starts[0]


def interrupt(folder, at, identity=worker.IDENTITY):
    partial = PartialSums(folder / "prototypes.safetensors", identity, every=3)
    with pytest.raises(InterruptedError):
        compute_prototypes(worker.flat, lambda first: worker.batches_from(first, at), worker.CLASSES, partial=partial)


def test_compute_prototypes_that_were_killed_go_on_with_the_same_bits(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "tests.prototypes_worker", "killed", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("prototypes.partial-*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    found, start = go_on(tmp_path)
    assert start in (3, 6, 9)
    np.testing.assert_array_equal(found, compute_prototypes(worker.flat, worker.batches_from(0), worker.CLASSES)[0])
    np.testing.assert_array_equal(found, expected_prototypes()[0])
    assert not list(tmp_path.glob("prototypes*"))


def test_compute_prototypes_that_had_ended_are_made_from_their_sums_alone(tmp_path):
    partial = PartialSums(tmp_path / "prototypes.safetensors", worker.IDENTITY, every=3)
    first, _ = compute_prototypes(worker.flat, worker.batches_from, worker.CLASSES, partial=partial)
    again, start = go_on(tmp_path)
    assert start == worker.BATCHES
    np.testing.assert_array_equal(again, first)


@pytest.mark.parametrize("changed", ["weights_hash", "batch", "preprocessing", "images"])
def test_partial_sums_of_another_pass_are_dropped_with_a_warning(changed, tmp_path, warnings):
    interrupt(tmp_path, 5)
    found, start = go_on(tmp_path, {**worker.IDENTITY, changed: "other"})
    assert start == 0
    np.testing.assert_array_equal(found, expected_prototypes()[0])
    (message,) = warnings()
    assert f"its {changed} is" in message
    assert "here 'other'" in message
    assert "prototypes.partial-00000-000000003.safetensors" in message


def test_partial_sums_of_other_classes_are_dropped_with_a_warning(tmp_path, warnings):
    interrupt(tmp_path, 5)
    found, start = go_on(tmp_path, classes=worker.CLASSES + 1)
    assert (start, len(found)) == (0, worker.CLASSES + 1)
    assert "not of 8 classes" in warnings()[0]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-3]),
        lambda path: path.write_bytes(b""),
        lambda path: save_file({"sums": np.ones(3)}, path),
        lambda path: save_file({"sums": np.ones(3)}, path, {"format": "distcam_jax partial prototypes 1"}),
    ],
)
def test_partial_sums_that_are_broken_are_dropped_with_a_warning(spoil, tmp_path, warnings):
    interrupt(tmp_path, 8)
    (path,) = tmp_path.iterdir()
    spoil(path)
    found, start = go_on(tmp_path)
    assert start == 0
    np.testing.assert_array_equal(found, expected_prototypes()[0])
    assert f"dropping {path}" in warnings()[0]
    assert "\n" not in warnings()[0]


def test_partial_sums_keep_one_file_and_leave_others_alone(tmp_path):
    (tmp_path / "prototypes.safetensors").write_text("of an earlier run")
    (tmp_path / "other.partial-00000-000000003.safetensors").write_text("of another pass")
    interrupt(tmp_path, 10)
    names = {path.name for path in tmp_path.iterdir()}
    kept = {"prototypes.safetensors", "other.partial-00000-000000003.safetensors"}
    assert names == kept | {"prototypes.partial-00000-000000006.safetensors"}  # 10 started, 8 added up
    _, start = go_on(tmp_path)
    assert start == 6
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_partial_sums_name_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="every must be at least 1 batch, got 0"):
        PartialSums(tmp_path / "p.safetensors", {}, every=0)
    with pytest.raises(ValueError, match="nothing to save before the first batch"):
        PartialSums(tmp_path / "p.safetensors", {}).save(ClassSums(2), 1)


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        ([[100, 200], [100, 200]], 200),
        ([[100, 200], [200, 300]], 200),
        ([[100, 200], [0, 0]], 0),
        ([[7, 9], [8, 10]], 0),
    ],
)
def test_newest_common_is_what_every_process_has(batches, expected):
    assert newest_common(np.array(batches)) == expected


# ---- several processes


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def test_compute_prototypes_of_two_processes_are_those_of_one(tmp_path):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    command = [sys.executable, "-m", "tests.prototypes_worker", "together", str(tmp_path), str(free_port())]
    processes = [subprocess.Popen([*command, str(p)], cwd=ROOT, env=environment) for p in range(2)]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    expected, expected_counts = expected_prototypes(rows=2 * worker.BATCH)
    found = [dict(np.load(tmp_path / f"found-{process}.npz")) for process in range(2)]
    for one in found:
        np.testing.assert_array_equal(one["whole"], expected)
        np.testing.assert_array_equal(one["counts"], expected_counts)
        np.testing.assert_array_equal(one["again"], expected)
        assert one["starts"].tolist() == [0, 0, 2, 2]  # the last one from what both processes have
    assert not list(tmp_path.glob("p.partial-*"))
