"""Tiny-ImageNet for few-shot learning: splits that share no class, as a stand-in for miniImageNet.

The files are those of `distcam_jax.datasets.tiny_imagenet`. Which classes a split has is told by a JSON file of lists
of WordNet ids by name, of which three are chosen:

    {"base64": ["n01629819", ...], "val16": [...], "novel20": [...], ...}

A split has all images of its classes, the 500 of the official `train` and the 50 of the official `val`, with their
boxes. Its labels run from 0 over its own sorted ids.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import tensorflow_datasets as tfds

from distcam_jax.datasets import _builders, _class_lists
from distcam_jax.datasets import _tiny_imagenet_files as files

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = ("base64", "val16", "novel20")


@dataclasses.dataclass
class TinyImagenetFewshotConfig(tfds.core.BuilderConfig):
    """Which classes a split has.

    Attributes:
      class_splits: a JSON file of lists of WordNet ids by name, or a mapping of such lists. It is needed.
      split_names: the names of the lists for train, validation and test, also as one string with commas; None or "" is
        the default. Every choice of classes is prepared in a folder of its own, whatever the lists are called.

    Raises:
      ValueError: a file that is none, or a list that is missing or empty, or that has a class twice or of another list.
    """

    name: str = ""
    class_splits: Mapping[str, Sequence[str]] | os.PathLike[str] | str | None = dataclasses.field(
        default=None, kw_only=True
    )
    split_names: Sequence[str] | None = dataclasses.field(default=SPLIT_NAMES, kw_only=True)

    def __post_init__(self):
        names = self.split_names or SPLIT_NAMES
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
        if len(names) != len(SPLITS):
            raise ValueError(f"split_names: got {names}, want {len(SPLITS)} names, for {', '.join(SPLITS)}")
        if self.class_splits is None or self.class_splits == "":
            self.class_splits, self.split_names, self.name = None, tuple(names), "unchosen"
            return
        where, lists = _class_lists.read(self.class_splits)
        chosen = _class_lists.choose(lists, names, where, option="split_names", example="n01443537")
        self.class_splits, self.split_names = dict(zip(SPLITS, chosen, strict=True)), SPLITS
        self.name = f"{'_'.join(str(len(wnids)) for wnids in chosen)}_{_class_lists.digest(chosen)}"


class TinyImagenetFewshot(_builders.LocalBuilder, skip_registration=True):
    """Builder of the stand-in; see `TinyImagenetFewshotConfig` for its options."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS = SPLITS
    BUILDER_CONFIGS = [TinyImagenetFewshotConfig()]  # noqa: RUF012 (the base class declares it so)
    MANUAL_DOWNLOAD_INSTRUCTIONS = files.INSTRUCTIONS

    def _info(self) -> tfds.core.DatasetInfo:
        return self.local_info("Tiny-ImageNet-200 with splits that share no class, for few-shot learning.")

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[str, dict]]]:
        splits = self.builder_config.class_splits
        if splits is None:
            raise ValueError("class_splits: got none, want a JSON file of lists of WordNet ids by name")
        layout = files.scan(files.find_source(pathlib.Path(str(dl_manager._manual_dir))))
        names = files.class_names(layout, [wnid for wnids in splits.values() for wnid in wnids], "class_splits")
        self.set_split_classes({split: {wnid: names[wnid] for wnid in wnids} for split, wnids in splits.items()})
        val = files.val_lines(layout, names)
        return {
            split: self._generate_examples(layout, wnids, [*files.train_lines(layout, wnids), *val])
            for split, wnids in splits.items()
        }

    def _generate_examples(
        self, layout: files.Layout, wnids: Sequence[str], annotations: list[files.Annotation]
    ) -> Iterator[tuple[str, dict]]:
        place = {wnid: label for label, wnid in enumerate(self.info.features["label"].names)}
        folders = files.train_folders(wnids) | {files.VAL_IMAGES}
        return files.examples(layout, annotations, folders, {wnid: place[wnid] for wnid in wnids})
