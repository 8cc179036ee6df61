"""Boxes found in threads: the same scores in the same order, errors where they are asked for, nothing left behind."""

import threading

import numpy as np
import pytest
from jax import numpy as jnp

from distcam_jax.localization import BoxPool, evaluate_boxes, pool


def batches(n=6):
    random = np.random.default_rng(0)
    for _ in range(n):
        sizes = random.integers(40, 200, size=(3, 2))
        boxes = [np.array([[3, 2, *(size // 2 + 4)]]) for size in sizes]
        yield random.random((3, 7, 7)).astype(np.float32), boxes, sizes


def box_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("boxes")]


@pytest.mark.parametrize("protocol", ["ilsvrc", "wsol-v2"])
def test_box_pool_gives_the_scores_of_evaluate_boxes_in_order(protocol):
    with BoxPool(workers=3) as boxes:
        futures = [boxes.submit(jnp.asarray(maps), *rest, protocol) for maps, *rest in batches()]
    for future, batch in zip(futures, batches(), strict=True):
        np.testing.assert_array_equal(future.result().best_iou, evaluate_boxes(*batch, protocol).best_iou)
    assert not box_threads()


def test_box_pool_raises_in_the_caller_what_a_batch_is_wrong_in():
    maps, boxes, sizes = next(batches())
    with BoxPool(workers=1) as workers:
        wrong = workers.submit(maps, boxes[:2], sizes)
        right = workers.submit(maps, boxes, sizes)
        with pytest.raises(ValueError, match="3 heatmaps, 2 boxes, 3 image_sizes"):
            wrong.result()
    assert right.result().best_iou.shape == (3, 1)


@pytest.fixture
def gate(monkeypatch):
    """Workers wait until it is set; what they did comes out as a list."""
    opened, done = threading.Event(), []

    def wait(maps, boxes, sizes, protocol):
        assert opened.wait(60)
        done.append(maps)

    monkeypatch.setattr(pool, "evaluate_boxes", wait)
    yield opened, done
    opened.set()


def test_box_pool_takes_no_more_than_may_be_pending(gate):
    opened, done = gate
    with BoxPool(workers=1, pending=2) as boxes:
        accepted = threading.Semaphore(0)

        def hand_over():
            for batch in batches(4):
                boxes.submit(*batch)
                accepted.release()

        caller = threading.Thread(target=hand_over)
        caller.start()
        assert accepted.acquire(timeout=60)
        assert accepted.acquire(timeout=60)
        assert not accepted.acquire(timeout=0.2)
        opened.set()
        caller.join(60)
    assert len(done) == 4


def test_box_pool_drops_what_has_not_begun_after_an_error(gate):
    opened, done = gate
    futures = []

    def fail():
        with BoxPool(workers=1, pending=4) as boxes:
            futures.extend(boxes.submit(*batch) for batch in batches(4))
            threading.Timer(0.05, opened.set).start()
            raise KeyError("the caller's own")

    with pytest.raises(KeyError, match="the caller's own"):
        fail()
    assert futures[-1].cancelled()
    assert len(done) < 4
    assert not box_threads()


@pytest.mark.parametrize("changes", [{"workers": 0}, {"workers": 2, "pending": 0}, {"workers": 1.5}])
def test_box_pool_names_the_bad_argument(changes, without_type_checks):
    with pytest.raises(
        ValueError, match=f"{list(changes)[-1]}: want a positive integer, got {list(changes.values())[-1]}"
    ):
        BoxPool(**changes)
