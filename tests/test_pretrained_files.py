"""Files that are missing, broken or of another kind, torch's own files, and the Hugging Face Hub."""

import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from jax import numpy as jnp

from distcam_jax.models.pretrained import load_torch_weights
from tests.torch_layout import (
    assert_conv,
    assert_linear,
    numbers,
    refusal,
    saved,
    small_resnet,
    small_tensors,
)

# ---- files


@pytest.mark.parametrize("kind", ["cut off", "cut in the header", "empty", "text"])
def test_load_torch_weights_names_a_broken_safetensors_file(kind, tmp_path):
    whole = saved(tmp_path / "whole.safetensors", small_tensors()).read_bytes()
    path = tmp_path / "broken.safetensors"
    text = b"version https://git-lfs.github.com/spec/v1\n"
    path.write_bytes({"cut off": whole[:-3], "cut in the header": whole[:50], "empty": b"", "text": text}[kind])
    message = refusal(small_resnet(), path)
    assert message.startswith(f"{path} is not a whole safetensors file (SafetensorError: ")
    assert message.endswith("; download or convert it again")
    assert "\n" not in message


def test_load_torch_weights_names_a_type_that_numpy_lacks(tmp_path):
    path = saved(tmp_path / "w.safetensors", {"fc.bias": np.ones(5, jnp.float8_e4m3fn)})
    assert "w.safetensors holds numbers of a type that is not read (" in refusal(small_resnet(), path)


@pytest.mark.parametrize(
    "name", ["gone.safetensors", "a/gone.pth", "gone", "a/b/c", "../b", "owner/@main", "~/weights"]
)
def test_load_torch_weights_names_a_missing_file(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # and asks nobody for it
    assert refusal(small_resnet(), name, FileNotFoundError) == f"there is no file {name}; check the path"


def test_load_torch_weights_names_folders_and_other_kinds_of_file(tmp_path):
    message = refusal(small_resnet(), tmp_path)
    assert message == f"{tmp_path} is a folder; pass the weights file in it"
    path = tmp_path / "w.npz"
    path.touch()
    message = refusal(small_resnet(), path)
    assert message == f"{path} ends in .npz; weights are read from .safetensors, .pth, .pt, .bin files"


# ---- torch files


class FakeTensor:
    """As much of torch's tensor as the loader needs; its numbers come out by `float` and `numpy` alone."""

    def __init__(self, array):
        self.array = array

    def detach(self):
        return self

    def is_floating_point(self):
        return self.array.dtype.kind == "f"

    def float(self):
        return FakeTensor(self.array.astype(np.float32))

    def numpy(self):
        return self.array


def fake_torch(monkeypatch, content, version="2.6.0+cpu"):
    """Puts a torch in place whose `load` gives the content, or raises it."""

    def load(path, *, map_location, weights_only):
        assert weights_only is True
        assert map_location == "cpu"
        if isinstance(content, Exception):
            raise content
        return content

    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(load=load, __version__=version))


def touched(path):
    path.touch()
    return path


@pytest.mark.parametrize("nest", ["", "state_dict", "model"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".PTH"])
def test_load_torch_weights_reads_torch_files(nest, suffix, tmp_path, monkeypatch):
    tensors = small_tensors()
    content = {f"module.{key}": FakeTensor(np.asarray(tensor)) for key, tensor in tensors.items()}
    content["module.bn1.bias"] = FakeTensor(tensors["bn1.bias"].astype(np.float16))
    fake_torch(monkeypatch, {"epoch": 3, nest: content} if nest else content)
    model = small_resnet()
    load_torch_weights(model, touched(tmp_path / f"w{suffix}"))
    assert_linear(model, tensors, "fc")
    assert_conv(model.stages[1][0].downsample[0], tensors, "layer2.0.downsample.0")
    np.testing.assert_array_equal(numbers(model.bn1.bias), tensors["bn1.bias"].astype(np.float16).astype(np.float32))


def test_load_torch_weights_reads_what_torch_writes(tmp_path):
    torch = pytest.importorskip("torch")
    tensors, model = small_tensors(), small_resnet()
    torch.save({"state_dict": {key: torch.tensor(tensor) for key, tensor in tensors.items()}}, tmp_path / "w.pth")
    load_torch_weights(model, tmp_path / "w.pth")
    assert_linear(model, tensors, "fc")
    assert_conv(model.conv1, tensors, "conv1")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:-100])
    assert "cut.pth is not a whole torch file (" in refusal(model, tmp_path / "cut.pth")
    torch.save({"fc.bias": slice(3)}, tmp_path / "unsafe.pth")
    assert "unsafe.pth is cut off or holds more than plain weights" in refusal(model, tmp_path / "unsafe.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            pickle.UnpicklingError("Weights only load failed.\nRe-running with weights_only=False ..."),
            " is cut off or holds more than plain weights, which torch refuses to load unseen; "
            "save the model's state_dict() alone",
        ),
        (
            RuntimeError("PytorchStreamReader failed\nreading"),
            " is not a whole torch file (RuntimeError: PytorchStreamReader failed reading); download or save it again",
        ),
        (EOFError(), " is not a whole torch file (EOFError); download or save it again"),
        ([1, 2], " holds a list; want a state dict, of tensors by name"),
        (
            {"epoch": 3, "net": {}},
            ' holds \'epoch\', a int; want a state dict, of tensors by name, alone or under "state_dict" or "model"',
        ),
    ],
)
def test_load_torch_weights_names_a_torch_file_that_fails(content, message, tmp_path, monkeypatch):
    fake_torch(monkeypatch, content)
    path = touched(tmp_path / "w.pth")
    assert refusal(small_resnet(), path) == f"{path}{message}"


def test_load_torch_weights_without_torch_says_how_to_convert(tmp_path, monkeypatch):
    path = touched(tmp_path / "r50.pth")
    convert = (
        'convert the file where it is: python -c "import torch, safetensors.torch as s; '
        "s.save_file(torch.load('r50.pth', weights_only=True), 'r50.safetensors')\""
    )
    monkeypatch.setitem(sys.modules, "torch", None)
    message = refusal(small_resnet(), path)
    assert message == f"{path} takes torch, which is not installed: install it, or {convert}"
    fake_torch(monkeypatch, {}, version="2.5.1")
    message = refusal(small_resnet(), path)
    assert message.startswith(f"{path} takes torch 2.6 or later, which loads weights safely, and this is 2.5.1: ")


# ---- the Hugging Face Hub


def fake_hub(monkeypatch, answer):
    """Puts a huggingface_hub in place that notes what is asked, and gives the answer or raises it."""
    asked = []

    def hf_hub_download(repo_id, filename, *, revision=None):
        asked.append((repo_id, filename, revision))
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=hf_hub_download))
    return asked


@pytest.mark.parametrize(("revision", "want"), [("", None), ("@main", "main"), ("@refs/pr/3", "refs/pr/3")])
def test_load_torch_weights_downloads_a_hub_id(revision, want, tmp_path, monkeypatch):
    tensors, model = small_tensors(), small_resnet()
    asked = fake_hub(monkeypatch, saved(tmp_path / "model.safetensors", tensors))
    load_torch_weights(model, f"timm/resnet50.tv_in1k{revision}")
    assert asked == [("timm/resnet50.tv_in1k", "model.safetensors", want)]
    assert_linear(model, tensors, "fc")


def test_load_torch_weights_prefers_a_file_to_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "timm").mkdir()
    asked, model = fake_hub(monkeypatch, OSError()), small_resnet()
    load_torch_weights(model, saved(tmp_path / "timm/w.safetensors", small_tensors()).relative_to(tmp_path))
    load_torch_weights(model, "timm/w.safetensors")
    assert asked == []


def hub_error(*names):
    """An error of the last name, which descends from the others."""
    kind = Exception
    for name in names:
        kind = type(name, (kind,), {})
    return kind("404 Client Error.\n\nSee https://huggingface.co/docs")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (hub_error("RepositoryNotFoundError"), "it has no repository of that name, or a private one, which needs"),
        (hub_error("RepositoryNotFoundError", "GatedRepoError"), "its owner must grant access; ask on its page"),
        (hub_error("RevisionNotFoundError"), "the repository has no such revision; check what stands behind the @"),
        (
            hub_error("EntryNotFoundError", "LocalEntryNotFoundError"),
            "the Hub cannot be reached and the file is not in",
        ),
        (hub_error("OfflineModeIsEnabled"), "HF_HUB_OFFLINE is set and the file is not in the local cache; unset it"),
        (hub_error("EntryNotFoundError", "RemoteEntryNotFoundError"), "the repository has no model.safetensors; down"),
        (hub_error("HFValidationError"), "the Hub does not allow such a name; want owner/name or owner/name@revision"),
        (hub_error("HTTPError"), "HTTPError: 404 Client Error. See https://huggingface.co/docs"),
    ],
)
def test_load_torch_weights_says_why_the_hub_gives_nothing(error, message, monkeypatch):
    fake_hub(monkeypatch, error)
    got = refusal(small_resnet(), "timm/nothing@v1", OSError)
    assert got.startswith(f"there is no file timm/nothing@v1, and the Hub gives none: {message}")
    assert "\n" not in got


def test_load_torch_weights_without_the_hub_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert refusal(small_resnet(), "timm/resnet50.tv_in1k") == (
        "there is no file timm/resnet50.tv_in1k, and a Hub id takes the package huggingface_hub: "
        "pip install huggingface_hub, or pass a file"
    )
