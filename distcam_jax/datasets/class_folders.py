"""Few-shot data as folders of images, one a class: your own, tieredImageNet, Omniglot.

`class_folders` and `tiered_imagenet` read

    train/<class>/*.jpg              also .jpeg and .png
    val/<class>/*.jpg                or validation/
    test/<class>/*.jpg
    words.txt                        optional: class, tab, names with commas, as WordNet ids need them

and `omniglot` the two archives of https://github.com/brendenlake/omniglot, unpacked: `images_background` is the split
`train`, `images_evaluation` is `test`. There is no official validation split; one can be made with `class_folders`.

    images_background/<alphabet>/<character>/*.png
    images_evaluation/<alphabet>/<character>/*.png

Classes are called as their folders, those of Omniglot alphabet/character; no class is in two splits. Images are stored
as found, whatever their size; there are no boxes. Hidden files, Thumbs.db and the like are passed over; anything else
that is no image is refused.

tieredImageNet's authors give its images of 84 x 84 pixels as pickles; this layout is that of the copies which other
projects share. Sources: Ren et al., "Meta-Learning for Semi-Supervised Few-Shot Classification", ICLR
2018. Lake et al., "Human-level concept learning through probabilistic program induction", Science 350, 2015.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

import tensorflow_datasets as tfds

from distcam_jax.datasets import _builders
from distcam_jax.datasets import _image_folders as folders


@dataclasses.dataclass
class ClassFoldersConfig(tfds.core.BuilderConfig):
    """What the images are called.

    Attributes:
      title: names the folder of the prepared data, so that one title stands for the same images for ever.

    Raises:
      ValueError: the title is no name of a folder.
    """

    name: str = ""
    title: str = dataclasses.field(default="", kw_only=True)

    def __post_init__(self):
        if self.title and not re.fullmatch(r"\w[\w.-]*", self.title):
            raise ValueError(f"title: got {self.title!r}, want letters, digits, '_', '-' and '.'")
        self.name = self.title or "untitled"


@dataclasses.dataclass
class OfficialFoldersConfig(tfds.core.BuilderConfig):
    """There is one way to prepare these data sets."""

    name: str = "all"


class ClassFolders(_builders.LocalBuilder, skip_registration=True):
    """Builder of your own data; `ClassFoldersConfig` tells its option, `distcam_jax.datasets.load_dataset` its use.

    A split whose folder is missing is left out.
    """

    VERSION = tfds.core.Version("1.0.0")
    SPLITS = ("train", "validation", "test")
    BUILDER_CONFIGS = [ClassFoldersConfig()]  # noqa: RUF012 (the base class declares it so)
    MANUAL_DOWNLOAD_INSTRUCTIONS = "manual_dir must hold train/, val/ and test/, with a folder of images for each class"
    FOLDERS: Mapping[str, Sequence[str]] = folders.SPLIT_FOLDERS
    DEPTH = 1
    COMPLETE = False

    def _info(self) -> tfds.core.DatasetInfo:
        return self.local_info(f"{self.name}: images in a folder for each class, without boxes.")

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[str, dict]]]:
        if not getattr(self.builder_config, "title", "official"):
            raise ValueError(
                "title: got '', want a name for these images, such as 'birds'; prepared data lies under it"
            )
        root = pathlib.Path(str(dl_manager._manual_dir))
        classes = self._find_classes(root)
        words = folders.read_words(root)
        self.set_split_classes(
            {split: {class_id: words.get(class_id, class_id) for class_id in own} for split, own in classes.items()}
        )
        # All names first, so that a fault among them shows before the images are read.
        names = {class_id: folders.list_images(path) for own in classes.values() for class_id, path in own.items()}
        return {split: self._generate_examples(own, names) for split, own in classes.items()}

    def _find_classes(self, root: pathlib.Path) -> dict[str, dict[str, pathlib.Path]]:
        """Split -> class -> its folder."""
        instructions = self.MANUAL_DOWNLOAD_INSTRUCTIONS
        found = folders.find_splits(root, self.FOLDERS, instructions=instructions, complete=self.COMPLETE)
        return {split: folders.find_classes(folder, self.DEPTH) for split, folder in found.items()}

    def _generate_examples(
        self, classes: Mapping[str, pathlib.Path], names: Mapping[str, Sequence[str]]
    ) -> Iterator[tuple[str, dict]]:
        labels = {class_id: label for label, class_id in enumerate(self.info.features["label"].names)}
        return folders.read_examples(classes, names, labels)


class TieredImagenet(ClassFolders, skip_registration=True):
    """Builder of tieredImageNet: 351, 97 and 160 classes of 84 x 84 photographs, 779,165 in all."""

    BUILDER_CONFIGS = [OfficialFoldersConfig()]  # noqa: RUF012 (the base class declares it so)
    COMPLETE = True


class Omniglot(ClassFolders, skip_registration=True):
    """Builder of Omniglot: 964 and 659 characters, each drawn by 20 people, 105 x 105 pixels."""

    SPLITS = ("train", "test")
    BUILDER_CONFIGS = [OfficialFoldersConfig()]  # noqa: RUF012 (the base class declares it so)
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "manual_dir must hold images_background/ and images_evaluation/, unpacked from the archives of "
        "https://github.com/brendenlake/omniglot"
    )
    FOLDERS: Mapping[str, Sequence[str]] = {"train": ("images_background",), "test": ("images_evaluation",)}
    DEPTH = 2
    COMPLETE = True
