"""Tiny-ImageNet-200: 64 × 64 photographs with one class and one box each, read from the official layout.

    tiny-imagenet-200/
      wnids.txt                        the classes, one WordNet id a line
      words.txt                        id, tab, names
      train/<wnid>/<wnid>_boxes.txt    file, x0, y0, x1, y1 (tabs; the ends belong to the box)
      train/<wnid>/images/*.JPEG
      val/val_annotations.txt          file, wnid, x0, y0, x1, y1
      val/images/*.JPEG

The official `val` becomes the split `validation`; `test` has no labels and is left out. Archives are read in place,
nothing is unpacked. Source: http://cs231n.stanford.edu/tiny-imagenet-200.zip
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence

import tensorflow_datasets as tfds

from distcam_jax.datasets import _builders
from distcam_jax.datasets import _tiny_imagenet_files as files


@dataclasses.dataclass
class TinyImagenetConfig(tfds.core.BuilderConfig):
    """Which classes to take.

    Attributes:
      classes: WordNet ids, also as one string with commas, or a file of them (.txt: one a line; .json: a list of
        strings); None or "" takes every class of wnids.txt that has images.
        Labels follow the sorted ids. Every choice is prepared in a folder of its own.

    Raises:
      ValueError: no class, or a class named twice, or a file that is none.
    """

    name: str = ""
    classes: Sequence[str] | os.PathLike[str] | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        if self.classes is None or self.classes == "":
            self.classes, self.name = None, "all"
            return
        listed = self.classes
        if isinstance(listed, str) and not listed.endswith((".txt", ".json")):
            listed = [wnid.strip() for wnid in listed.split(",")]
        if isinstance(listed, str | os.PathLike):
            listed = _read_classes(pathlib.Path(listed))
        if not listed or len(set(listed)) < len(listed):
            raise ValueError(
                f"classes: got {len(listed)} ids, {len(set(listed))} different, want at least one, each once"
            )
        self.classes = tuple(sorted(listed))
        self.name = f"{len(self.classes)}_{hashlib.sha256(' '.join(self.classes).encode()).hexdigest()[:12]}"


def _read_classes(path: pathlib.Path) -> list[str]:
    """Reads a list of ids."""
    try:
        text = path.read_text()
        ids = json.loads(text) if path.suffix == ".json" else text.split()
    except (OSError, ValueError) as error:
        raise ValueError(f"classes: got {str(path)!r}, want a list of ids or a file of them ({error})") from error
    if not isinstance(ids, list) or not all(isinstance(wnid, str) for wnid in ids):
        raise ValueError(f"classes: {path} holds {type(ids).__name__}, want a list of ids, such as ['n01443537']")
    return ids


class TinyImagenet(_builders.LocalBuilder, skip_registration=True):
    """Builder of Tiny-ImageNet; `TinyImagenetConfig` tells its option, `distcam_jax.datasets.load_dataset` its use."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS = ("train", "validation")
    BUILDER_CONFIGS = [TinyImagenetConfig()]  # noqa: RUF012 (the base class declares it so)
    MANUAL_DOWNLOAD_INSTRUCTIONS = files.INSTRUCTIONS

    def _info(self) -> tfds.core.DatasetInfo:
        return self.local_info("Tiny-ImageNet-200: photographs of 64 x 64 pixels, one class and one box each.")

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[str, dict]]]:
        # The property `manual_dir` refuses a path to the archive itself.
        layout = files.scan(files.find_source(pathlib.Path(str(dl_manager._manual_dir))))
        names = files.class_names(layout, self.builder_config.classes)
        self.set_classes(names)
        train, val = files.train_lines(layout, names), files.val_lines(layout, names)
        return {
            "train": self._generate_examples(layout, train, files.train_folders(names)),
            "validation": self._generate_examples(layout, val, {files.VAL_IMAGES}),
        }

    def _generate_examples(
        self, layout: files.Layout, annotations: list[files.Annotation], folders: set[str]
    ) -> Iterator[tuple[str, dict]]:
        labels = {wnid: label for label, wnid in enumerate(self.info.features["label"].names)}
        return files.examples(layout, annotations, folders, labels)
