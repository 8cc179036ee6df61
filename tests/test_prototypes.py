"""Streamed prototypes against a plain mean, their file, and the hash that ties it to a network."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp
from safetensors.numpy import save_file

from distcam_jax.models import create_model
from distcam_jax.prototypes import Prototypes, compute_prototypes, file, hash_weights, load_prototypes

# ---- compute_prototypes


def flat(images):
    return images.reshape(len(images), -1)


def batch_of(images, labels, mask=None):
    mask = np.ones(len(labels), bool) if mask is None else np.asarray(mask)
    return {"image": np.asarray(images, np.float32), "label": np.asarray(labels, np.int32), "mask": mask}


def test_compute_prototypes_are_means_without_padding():
    random = np.random.default_rng(0)
    images, labels = random.random((9, 2, 2, 3)).astype(np.float32), np.array([0, 2, 2, 0, 3, 2, 0, 0, 0])
    mask = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0], bool)
    batches = [batch_of(images[i : i + 3], labels[i : i + 3], mask[i : i + 3]) for i in (0, 3, 6)]
    found, counts = compute_prototypes(flat, iter(batches), 5)
    assert (found.shape, found.dtype) == ((5, 12), np.float32)
    assert counts.tolist() == [3, 0, 3, 1, 0]
    for c in (0, 2, 3):
        members = [flat(images)[i].astype(np.float64) for i in range(9) if labels[i] == c and mask[i]]
        np.testing.assert_allclose(found[c], sum(members) / len(members), rtol=1e-6)
    assert not found[[1, 4]].any()


def test_compute_prototypes_take_masks_of_whole_numbers():
    _, counts = compute_prototypes(flat, [batch_of(np.ones((3, 1, 1, 3)), [0, 1, 1], [0, 1, 1])], 2)
    assert counts.tolist() == [0, 2]


def test_compute_prototypes_sum_in_float64():
    # In float32, 2^24 + 1 is 2^24: a running sum would stay there.
    values = np.array([2**24, 1, 1, 1, 1], np.float32)
    batches = [batch_of(np.full((1, 1, 1, 3), value), [0]) for value in values]
    found, _ = compute_prototypes(flat, batches, 1)
    assert found[0, 0] == np.float32((2**24 + 4) / 5)
    assert found[0, 0] != np.float32(2**24 / 5)


def test_compute_prototypes_ignore_what_is_not_finite_in_padding():
    images = np.ones((2, 1, 1, 3), np.float32)
    images[1] = np.nan
    found, counts = compute_prototypes(lambda x: jnp.asarray(flat(x)), [batch_of(images, [0, 0], [True, False])], 1)
    assert found.tolist() == [[1, 1, 1]]
    assert counts.tolist() == [1]


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("batches", "num_classes", "message"),
    [
        ([], 2, "at least one training image, got none"),
        ([batch_of(np.ones((1, 1, 1, 3)), [0], [False])], 2, "at least one training image, got none"),
        ([batch_of(np.full((1, 1, 1, 3), np.nan), [0])], 2, "an embedding is not finite"),
        ([batch_of(np.full((1, 1, 1, 3), np.inf), [0])], 2, "an embedding is not finite"),
        ([batch_of(np.ones((2, 1, 1, 3)), [0, 2])], 2, r"labels must lie in \[0, 2\), got 0 to 2"),
        ([batch_of(np.ones((2, 1, 1, 3)), [0, -1])], 2, r"labels must lie in \[0, 2\), got -1 to 0"),
        ([batch_of(np.ones((1, 1, 1, 3)), [0])], 0, "num_classes must be at least 1, got 0"),
    ],
)
def test_compute_prototypes_name_what_is_wrong(batches, num_classes, message):
    with pytest.raises(ValueError, match=message):
        compute_prototypes(flat, batches, num_classes)


# ---- the file


def some_prototypes(**changes):
    values = {
        "prototypes": np.arange(6, dtype=np.float32).reshape(2, 3),
        "counts": np.array([4, 0]),
        "class_names": ("Katze", "Käfer, groß"),
        "preprocessing": {"image_size": 64, "resize": "straight", "mean": (0.5, 0.25, 0.125)},
        "weights_hash": "0123abcd" * 8,
    }
    return Prototypes(**{**values, **changes})


@pytest.mark.parametrize("order", ["C", "F"])
def test_prototypes_come_back_from_their_file(order, tmp_path):
    saved = some_prototypes(prototypes=np.asarray(np.random.default_rng(0).random((2, 3)), np.float32, order=order))
    path = tmp_path / "run" / "prototypes.safetensors"
    saved.save(str(path))
    loaded = load_prototypes(
        path, weights_hash=saved.weights_hash, class_names=list(saved.class_names), preprocessing=saved.preprocessing
    )
    np.testing.assert_array_equal(loaded.prototypes, saved.prototypes)
    np.testing.assert_array_equal(loaded.counts, saved.counts)
    assert (loaded.prototypes.dtype, loaded.counts.dtype) == (np.float32, np.int64)
    assert (loaded.class_names, loaded.weights_hash) == (saved.class_names, saved.weights_hash)
    assert loaded.preprocessing == {"image_size": 64, "resize": "straight", "mean": [0.5, 0.25, 0.125]}
    assert [entry.name for entry in path.parent.iterdir()] == ["prototypes.safetensors"]


def test_load_prototypes_checks_only_what_is_given(tmp_path):
    some_prototypes().save(tmp_path / "p")
    assert load_prototypes(tmp_path / "p").counts.tolist() == [4, 0]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"weights_hash": "f" * 64}, "its weights_hash is 0123abcd.*, wanted ffff"),
        ({"class_names": ("Käfer, groß", "Katze")}, "its class_names is .*, wanted .*"),
        ({"class_names": ["Katze"]}, "its class_names is .*, wanted .*"),
        (
            {"preprocessing": {"image_size": 65, "resize": "straight", "mean": (0.5, 0.25, 0.125)}},
            "its preprocessing is",
        ),
        ({"preprocessing": {}}, "its preprocessing is"),
    ],
)
def test_load_prototypes_refuse_what_does_not_fit(wanted, message, tmp_path):
    path = tmp_path / "p.safetensors"
    some_prototypes().save(path)
    with pytest.raises(ValueError, match=message) as caught:
        load_prototypes(path, **wanted)
    text = str(caught.value)
    assert text.startswith(f"{path} does not fit this model")
    assert "remove the file to compute the prototypes again" in text
    assert "\n" not in text


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def cut_header(path):
    path.write_bytes(path.read_bytes()[:40])


def save_as(path, arrays=None, **metadata):
    """A safetensors file of our format, but for what is asked."""
    good = some_prototypes()
    entries = {
        "format": file._FORMAT,
        "class_names": '["a", "b"]',
        "preprocessing": "{}",
        "weights_hash": "00",
        **metadata,
    }
    entries = {name: value for name, value in entries.items() if value is not None}
    save_file({"prototypes": good.prototypes, "counts": good.counts} if arrays is None else arrays, path, entries)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    "spoil",
    [
        cut,
        cut_header,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("no safetensors file at all, but some text"),
        lambda path: save_file({"weight": np.ones(3)}, path),
        lambda path: save_as(path, format="distcam_jax prototypes 99"),
        lambda path: save_as(path, class_names=None),
        lambda path: save_as(path, class_names='["a"'),
        lambda path: save_as(path, class_names='["a"]'),
        lambda path: save_as(path, weights_hash=None),
        lambda path: save_as(path, arrays={"prototypes": np.ones((2, 3), np.float32)}),
        lambda path: save_as(path, arrays={"prototypes": np.ones((2, 3), np.float32), "counts": np.ones(2)}),
        lambda path: save_as(path, arrays={"prototypes": np.ones(2, np.float32), "counts": np.ones(2, int)}),
        lambda path: save_as(path, arrays={"prototypes": np.ones((2, 3), np.float32), "counts": np.ones(3, int)}),
    ],
)
def test_load_prototypes_refuse_a_broken_file_in_one_line(spoil, tmp_path):
    path = tmp_path / "p.safetensors"
    some_prototypes().save(path)
    spoil(path)
    with pytest.raises(ValueError, match="compute the prototypes") as caught:
        load_prototypes(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_load_prototypes_name_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no prototypes file .*missing\.safetensors; .*compute the prototypes"):
        load_prototypes(tmp_path / "missing.safetensors")


def test_save_that_fails_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "p.safetensors"
    some_prototypes().save(path)

    def half(arrays, target, metadata):
        target.write_bytes(b"half a fi")
        raise OSError("No space left on device")

    monkeypatch.setattr(file, "save_file", half)
    with pytest.raises(OSError, match="No space left"):
        some_prototypes(counts=np.array([1, 1])).save(path)
    assert load_prototypes(path).counts.tolist() == [4, 0]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prototypes": np.ones((2, 3), int)}, r"prototypes must be floats of shape \[c, k\], got int64"),
        ({"prototypes": np.ones(2)}, r"prototypes must be floats of shape \[c, k\], got float64 of shape \(2,\)"),
        ({"counts": np.array([1.0, 2.0])}, "counts must be 2 integers .*, got float64"),
        ({"counts": np.array([1, 2, 3])}, r"counts must be 2 integers .* of shape \(3,\) and 2 names"),
        ({"class_names": ("a",)}, "class_names as many names, got .* 1 names"),
    ],
)
def test_prototypes_name_what_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        some_prototypes(**changes)


# ---- hash_weights


@pytest.fixture(scope="module")
def weights():
    """The state of a small network with a linear head, as nested dicts of NumPy arrays."""
    model = nnx.eval_shape(lambda: create_model("resnet18", num_classes=3, width=2, stem="small", rngs=nnx.Rngs(0)))
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(random.random(leaf.shape), leaf.dtype), nnx.split(model)[1])


def test_hash_weights_follows_every_number_but_the_heads(weights):
    whole, leaves = hash_weights(weights), jax.tree.leaves_with_path(weights)
    paths = [jax.tree_util.keystr(path) for path, _ in leaves]
    assert sum("mean" in path for path in paths) == 20  # statistics are among them
    heads = 0
    for changed, (path, _) in enumerate(leaves):
        other = [leaf.at[(-1,) * leaf.ndim].add(1) if i == changed else leaf for i, (_, leaf) in enumerate(leaves)]
        same = hash_weights(jax.tree.unflatten(jax.tree.structure(weights), other)) == whole
        is_head = path[0].key == "head"
        heads += is_head
        assert same == is_head, jax.tree_util.keystr(path)
    assert heads == 2


def test_hash_weights_is_the_same_without_a_head(weights):
    without = nnx.State({name: value for name, value in weights.items() if name != "head"})
    assert hash_weights(without) == hash_weights(weights)


def test_hash_weights_is_the_same_for_plain_dicts_and_other_places(weights):
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    assert hash_weights(nnx.to_pure_dict(weights)) == hash_weights(weights)
    assert hash_weights(jax.device_put(weights, sharding)) == hash_weights(weights)


def test_hash_weights_does_not_follow_the_order_of_names():
    class Ordered(dict):
        """A mapping that JAX goes through in the order of insertion."""

    jax.tree_util.register_pytree_with_keys(
        Ordered,
        lambda d: ([(jax.tree_util.DictKey(k), d[k]) for k in d], tuple(d)),
        lambda keys, values: Ordered(zip(keys, values, strict=True)),
    )
    one, two = np.arange(3.0), np.arange(4.0)
    assert hash_weights(Ordered(a=one, b=two)) == hash_weights(Ordered(b=two, a=one))
    assert hash_weights(Ordered(a=one, b=two)) != hash_weights(Ordered(a=two, b=one))


@pytest.mark.parametrize(
    "other",
    [
        {"conv": np.zeros((2, 3), np.float32)},
        {"conv": np.zeros(6, np.int32)},
        {"norm": np.zeros(6, np.float32)},
        {"conv": np.zeros(6, np.float32), "header": np.zeros(1)},
    ],
)
def test_hash_weights_tells_shapes_types_and_names_apart(other):
    assert hash_weights(other) != hash_weights({"conv": np.zeros(6, np.float32)})
