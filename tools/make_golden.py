"""Writes the values that torchvision's networks give, which tests/test_golden.py holds ours against.

    python tools/make_golden.py
    python tools/make_golden.py --models resnet18 densenet121 --output golden

Takes torch and torchvision (`pip install -e '.[parity]'`) and a minute; the tests themselves take neither. Networks,
weights and images are those of tests/golden_weights.py. torch computes in float64, and the results are stored rounded
to float32, so our float32 is compared with the truth and not with another float32. One file a model, `<model>.npz`:

    meta                         JSON: versions, the state dict's shapes, fingerprints of weights and images
    <even|odd>.<output>.<part>   `summary` of logits, embedding and pre_pool in evaluation mode and, for a DenseNet, of
                                 before_relu, the maps before its functional ReLU
    training.losses              cross-entropy in training mode before and after one step of SGD
    training.gradient_<part>     norm, largest magnitude and `sample` of each parameter's gradient, in the order of the
                                 state dict
    training.parameter_<part>    norm and `sample` of each parameter after the step
    training.statistic_<part>    likewise of each running mean and variance
    training.full.*              some gradients and statistics in full
"""

import argparse
import json
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests import golden_weights as golden  # noqa: E402

try:
    import torch
    import torchvision
except ImportError as error:
    sys.exit(f"tools/make_golden.py takes torch and torchvision ({error}): pip install -e '.[parity]'")

SMALLEST_MARGIN = 1e-5  # of a ReLU's input, relative to its layer's deviation; float32 rounds to about 1e-6 there


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=golden.MODELS, choices=golden.MODELS, metavar="MODEL")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "tests" / "golden")
    return parser.parse_args()


def filled(name: str, *, apart: bool = False) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    """Torchvision's network in float64 with the weights of golden_weights, and these weights."""
    network = torchvision.models.get_model(name)
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    weights = golden.torch_weights(shapes, apart=apart)
    network.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    return network.double(), weights


def channels_first(images: np.ndarray) -> torch.Tensor:
    """Images `[b, h, w, 3]` as torch takes them."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2)).double()


def evaluate(network: torch.nn.Module, images: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs in evaluation mode, channels last."""
    maps = {}
    if hasattr(network, "features"):
        hook = network.features.register_forward_hook(lambda module, inputs, output: maps.update(before=output.clone()))
    else:
        hook = network.avgpool.register_forward_pre_hook(lambda module, inputs: maps.update(after=inputs[0]))
    network.eval()
    with torch.no_grad():
        logits = network(channels_first(images)).numpy()
    hook.remove()
    maps = {name: tensor.permute(0, 2, 3, 1).numpy() for name, tensor in maps.items()}
    after = maps["after"] if "after" in maps else np.maximum(maps["before"], 0)
    outputs = {"logits": logits, "embedding": after.mean((1, 2)), "pre_pool": after}
    return outputs | ({"before_relu": maps["before"]} if "before" in maps else {})


def watch_margins(network: torch.nn.Module) -> list[float]:
    """A list that fills, in the next forward pass, with the distance from zero of each ReLU's closest input."""
    margins = []

    def watch(x):
        x = x.detach()
        margins.append(float(x.abs().min() / x.std()))

    def watch_pool(x):
        windows = torch.nn.functional.pad(x.detach(), (1, 1, 1, 1), value=-1.0).unfold(2, 3, 2).unfold(3, 3, 2)
        largest = windows.flatten(-2).topk(2).values
        gaps = (largest[..., 0] - largest[..., 1])[largest[..., 0] > 0]
        margins.append(float(gaps.min() / x.detach().std()))

    for key, module in network.named_modules():
        if isinstance(module, torch.nn.ReLU):
            module.register_forward_pre_hook(lambda module, inputs: watch(inputs[0]))
        elif isinstance(module, torch.nn.MaxPool2d):
            module.register_forward_pre_hook(lambda module, inputs: watch_pool(inputs[0]))
        elif key == "features":
            module.register_forward_hook(lambda module, inputs, output: watch(output))
    return margins


def train(network: torch.nn.Module, images: np.ndarray) -> dict[str, np.ndarray]:
    """One step of SGD in training mode: losses, gradients, parameters and running statistics."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=golden.LEARNING_RATE, momentum=0.9, weight_decay=0.0)
    inputs, labels = channels_first(images), torch.tensor(golden.LABELS)
    loss = torch.nn.functional.cross_entropy(network(inputs), labels)
    loss.backward()
    statistics = {key: value.clone().numpy() for key, value in network.named_buffers() if "running" in key}
    optimizer.step()
    with torch.no_grad():
        after = torch.nn.functional.cross_entropy(network(inputs), labels)
    parameters = dict(network.named_parameters())
    kept = {"losses": np.array([loss.item(), after.item()])}
    for kind, tensors in (
        ("gradient", {key: value.grad.numpy() for key, value in parameters.items()}),
        ("parameter", {key: value.detach().numpy() for key, value in parameters.items()}),
        ("statistic", statistics),
    ):
        kept[f"{kind}_norm"] = np.array([np.linalg.norm(value) for value in tensors.values()])
        kept[f"{kind}_sample"] = np.stack([golden.sample(value, 4) for value in tensors.values()])
        if kind == "gradient":
            kept["gradient_largest"] = np.array([np.abs(value).max() for value in tensors.values()])
        if kind != "parameter":
            small = [key for key, value in tensors.items() if value.size <= 512 and value.ndim == 1]
            for key in (*small[:2], *small[-2:]):
                kept[f"full.{kind}.{key}"] = tensors[key]
    return kept


def golden_values(name: str) -> dict[str, np.ndarray]:
    """All that is kept of one model."""
    network, weights = filled(name)
    meta = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "shapes": {key: list(value.shape) for key, value in weights.items()},
        "fingerprint": {},
    }
    values = {}
    for case, shape in golden.EVALUATION.items():
        images = golden.images(case, shape)
        meta["fingerprint"][case] = golden.fingerprint(weights | {"images": images})
        for output, array in evaluate(network, images).items():
            values |= {f"{case}.{output}.{part}": value for part, value in golden.summary(array).items()}
    if name in golden.TRAINING:
        network, weights = filled(name, apart=True)
        images = golden.images(golden.TRAINING[name], golden.TRAINING_SHAPE)
        meta["fingerprint"]["training"] = golden.fingerprint(weights | {"images": images})
        margins = watch_margins(network)
        values |= {f"training.{key}": value for key, value in train(network, images).items()}
        meta["margin"] = min(margins[: len(margins) // 2])  # the second half is the loss after the step
        if meta["margin"] < SMALLEST_MARGIN:
            sys.exit(f"{name}: an input of a ReLU lies within {meta['margin']:.1e} of zero; choose other images")
    values = {key: value.astype(np.float32) for key, value in values.items()}
    return values | {"meta": np.array(json.dumps(meta))}


def main() -> None:
    """Writes one file a model."""
    arguments = parse_arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in arguments.models:
        path = arguments.output / f"{name}.npz"
        np.savez_compressed(path, **golden_values(name))
        print(f"{path}: {path.stat().st_size / 1000:.1f} kB")


if __name__ == "__main__":
    main()
