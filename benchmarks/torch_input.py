"""torchvision's input pipeline for ImageNet: Pillow, torchvision.transforms and torch's DataLoader.

Without JAX, which the worker processes would load for nothing.
"""

import importlib
import io

Image = importlib.import_module("PIL.Image")
data = importlib.import_module("torch.utils.data")
transforms = importlib.import_module("torchvision.transforms")

GEOMETRY = {
    "train": lambda size: [
        transforms.RandomResizedCrop(size, scale=(0.08, 1.0)),
        transforms.RandomHorizontalFlip(),
    ],
    "evaluate, centre crop": lambda size: [transforms.Resize(round(size / 0.875)), transforms.CenterCrop(size)],
    "evaluate, straight resize": lambda size: [transforms.Resize((size, size))],
}


class PillowDataset:
    """Images of a source, decoded with Pillow and transformed as torchvision's own ImageNet scripts do."""

    def __init__(self, source, task, size, mean, std):
        self.source = source
        self.transform = transforms.Compose(
            [*GEOMETRY[task](size), transforms.ToTensor(), transforms.Normalize(mean, std)]
        )

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        example = self.source[index]
        return self.transform(Image.open(io.BytesIO(example["image"])).convert("RGB")), example["label"]


def make_loader(source, task, *, size, batch_size, workers, mean, std):
    """A DataLoader whose workers stay between its epochs."""
    return data.DataLoader(
        PillowDataset(source, task, size, mean, std),
        batch_size=batch_size,
        shuffle=task == "train",
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context="spawn",  # a process that runs JAX must not be forked
    )
