"""torchvision's models in eager PyTorch, what bench_models.py compares with.

Without JAX: run as a script, with the problem as JSON, it shows PyTorch's start and memory alone.
"""

import importlib
import json
import os
import sys

from measure import CLASSES, LEARNING_RATE, MOMENTUM, random_batch

torch = importlib.import_module("torch")
torchvision = importlib.import_module("torchvision")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def prepare():
    """As many threads as cores; on a GPU, the fastest convolutions and the TF32 that XLA uses by default too."""
    torch.set_num_threads(os.cpu_count())
    if DEVICE == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")


def build(problem, memory_efficient):
    """The model, channels last."""
    torch.manual_seed(problem["seed"])
    options = {"memory_efficient": True} if memory_efficient else {}
    model = getattr(torchvision.models, problem["name"])(num_classes=CLASSES, **options)
    return model.to(device=DEVICE, memory_format=torch.channels_last)


def batch_of(problem):
    """Images `[b, 3, h, w]`, channels last in memory, and labels."""
    images, labels = random_batch(batch=problem["batch"], size=problem["size"], seed=problem["seed"])
    images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    return images.to(DEVICE), torch.from_numpy(labels).long().to(DEVICE)


def autocast(problem):
    """Computation in bfloat16 with parameters in float32, where the problem asks for it."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=problem["dtype"] == "bfloat16")


def finish(value):
    """The value, once the device has computed it."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return value


def make_forward(problem):
    """A function without arguments: class scores in evaluation mode."""
    model = build(problem, memory_efficient=False).eval()
    images, _ = batch_of(problem)

    def forward():
        with torch.inference_mode(), autocast(problem):
            return finish(model(images))

    return forward


def make_step(problem, memory_efficient=False):
    """A function without arguments that does one training step and gives its loss, and the parameters' number."""
    model = build(problem, memory_efficient).train()
    images, labels = batch_of(problem)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, nesterov=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with autocast(problem):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return finish(loss.detach())

    return step, sum(parameter.numel() for parameter in model.parameters())


def main(problem):
    """Two steps; before the first and after each, a line of JSON that the reader answers once it has looked at us."""
    print("{}", flush=True)
    sys.stdin.readline()
    prepare()
    step, parameters = make_step(problem, problem["memory_efficient"])
    for _ in range(2):
        record = {"loss": float(step()), "parameters": parameters}
        if DEVICE == "cuda":
            record["device_peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
        print(json.dumps(record), flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
