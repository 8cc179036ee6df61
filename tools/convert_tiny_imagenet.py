"""Writes Tiny-ImageNet's photographs and boxes as if they were ILSVRC 2012: official file names and layout.

    python tools/convert_tiny_imagenet.py tiny-imagenet-200.zip ilsvrc_mini
    python tools/convert_tiny_imagenet.py tiny-imagenet-200.zip ilsvrc_mini --classes=n01443537,n02099601

Then `load_dataset("ilsvrc2012", "train", manual_dir="ilsvrc_mini")` goes the way of the 150 GB, on real photographs and
in a minute. The images keep their bytes, and the training images their names; validation images are numbered in the
order of theirs. Everything is held in memory at once, for all 200 classes 0.3 GB.
"""

import argparse
import pathlib
import re
import sys
import tempfile

import cv2
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from distcam_jax.datasets import load_dataset  # noqa: E402
from tools.ilsvrc_files import Photograph, write_ilsvrc_files  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=pathlib.Path, help="tiny-imagenet-200, the archive or the folder")
    parser.add_argument("output", type=pathlib.Path, help="folder for the files")
    parser.add_argument("--classes", help="WordNet ids with commas, or a file of them; default: all")
    return parser.parse_args()


def photograph(example: dict) -> Photograph:
    """An example of Tiny-ImageNet; its boxes get inclusive ends again."""
    height, width = cv2.imdecode(np.frombuffer(example["image"], np.uint8), cv2.IMREAD_COLOR).shape[:2]
    boxes = [(x0, y0, x1 - 1, y1 - 1) for x0, y0, x1, y1 in example["boxes"].astype(int).tolist()]
    return Photograph(example["image"], boxes, (width, height))


def convert(source: pathlib.Path, output: pathlib.Path, *, classes: str | None = None) -> tuple[int, int]:
    """Writes the files, and returns how many training and validation images they hold."""
    with tempfile.TemporaryDirectory() as folder:
        train, validation = (
            load_dataset("tiny_imagenet", split, data_dir=folder, manual_dir=source, classes=classes)
            for split in ("train", "validation")
        )
        wnids = train.class_ids
        train_images: dict[str, dict[str, Photograph]] = {wnid: {} for wnid in wnids}
        for example in sorted(train.source, key=lambda example: _number(example["file_name"])):
            train_images[wnids[example["label"]]][example["file_name"]] = photograph(example)
        numbered = sorted(validation.source, key=lambda example: _number(example["file_name"]))
        validation_images = [(wnids[example["label"]], photograph(example)) for example in numbered]
    names = dict(zip(wnids, train.class_names, strict=True))
    write_ilsvrc_files(output, names, train_images, validation_images)
    return len(train.source), len(validation_images)


def _number(file_name: str) -> tuple[int, ...]:
    """The numbers in a name, so that val_10 comes after val_9."""
    return tuple(int(digits) for digits in re.findall(r"\d+", file_name))


def main() -> None:
    """Converts what the command line names."""
    arguments = parse_arguments()
    try:
        counts = convert(arguments.source, arguments.output, classes=arguments.classes)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    print(f"{arguments.output}: {counts[0]} training and {counts[1]} validation images")


if __name__ == "__main__":
    main()
