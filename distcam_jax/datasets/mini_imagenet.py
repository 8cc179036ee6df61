"""miniImageNet: 64, 16 and 20 classes of ImageNet with 600 photographs each, for few-shot learning.

What has which class and split is told by the lists of Ravi and Larochelle, with a header and a line for each image:

    train.csv, val.csv, test.csv     filename,label
                                     n0153282900000005.jpg,n01532829

They lie in `manual_dir`, or in split/ or splits/ below it. Beside them, `manual_dir` holds one of

    images/*.jpg                     the images under the names in the lists, of any size
    train/<wnid>/*.JPEG              the training images of ILSVRC 2012; also <wnid>/ and images/<wnid>/
    ILSVRC2012_img_train.tar         the same, as downloaded; it is read in place

where links will do. Without lists, the layout of `distcam_jax.datasets.class_folders` is read: train/, val/ and test/
with a folder of images for each class. Names, labels and order of the examples are the same in all forms.

The eight digits after the WordNet id are no number of an ILSVRC file. They are the place of the image, counted from 1,
among all training images of its class, sorted by the number in their ILSVRC names. No word of the lists' authors is
known that says so; it is how two public programs read them, mini_imagenet_generator.py of
yaoyao-liu/mini-imagenet-tools and write_miniImagenet_filelist.py of wyharveychen/CloserLookFewShot. It has not been
checked here against images of the authors. A class's folder that lacks some images of ILSVRC would shift the places;
only one that becomes too short is noticed.

Images are stored as found. The originals of ILSVRC take 7 GB and are decoded at their full size in every epoch; copies
of 84 x 84 pixels take 0.2 GB. Which was prepared shows in no name: delete the folder to change over.

Boxes are known for about 40 % of ILSVRC's originals, where ILSVRC2012_bbox_train_v2.tar.gz lies in `manual_dir`; see
`distcam_jax.datasets.ilsvrc2012` for what they are. Other images have none. Classes are called by their WordNet ids, or
as words.txt (id, tab, names) or ILSVRC2012_devkit_t12.tar.gz in `manual_dir` says.

Sources: Vinyals et al., "Matching Networks for One Shot Learning", NeurIPS 2016. Ravi and Larochelle, "Optimization as
a Model for Few-Shot Learning", ICLR 2017; https://github.com/twitter-research/meta-learning-lstm has the lists.
"""

import pathlib
from collections.abc import Iterator, Mapping, Sequence

import tensorflow_datasets as tfds

from distcam_jax.datasets import _ilsvrc_files, class_folders
from distcam_jax.datasets import _image_folders as folders
from distcam_jax.datasets import _mini_imagenet_files as files

_BOXES = "ILSVRC2012_bbox_train_v2.tar.gz"
_DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


class MiniImagenet(class_folders.ClassFolders, skip_registration=True):
    """Builder of miniImageNet; `distcam_jax.datasets.load_dataset` tells its use."""

    BUILDER_CONFIGS = [class_folders.OfficialFoldersConfig()]  # noqa: RUF012 (the base class declares it so)
    MANUAL_DOWNLOAD_INSTRUCTIONS = files.INSTRUCTIONS
    COMPLETE = True

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[str, dict]]]:
        root = pathlib.Path(str(dl_manager._manual_dir))
        lists = files.find_lists(root)
        if lists is None:
            return super()._split_generators(dl_manager)
        rows = files.read_lists(lists)
        wnids = {split: sorted({row.wnid for row in own}) for split, own in rows.items()}
        words = _read_words(root)
        self.set_split_classes({split: {wnid: words.get(wnid, wnid) for wnid in own} for split, own in wnids.items()})
        known = {wnid for own in wnids.values() for wnid in own}
        source, boxes = files.find_images(root, known), _read_boxes(root, known)
        return {split: self._generate_listed(source, own, boxes) for split, own in rows.items()}

    def _generate_listed(
        self, source: pathlib.Path, rows: Sequence[files.Row], boxes_of: Mapping[str, bytes]
    ) -> Iterator[tuple[str, dict]]:
        labels = {wnid: label for label, wnid in enumerate(self.info.features["label"].names)}
        for image in files.read_images(source, rows):
            size = folders.checked_size(image.data, image.where)
            boxes = None
            if image.original in boxes_of:
                boxes, _ = _ilsvrc_files.boxes_in_image(boxes_of[image.original], size)
            # the key is that of the same image in the classes' folders, and so is the order of the examples
            key, label = f"{image.row.wnid}/{image.row.file_name}", labels[image.row.wnid]
            yield key, folders.make_example(image.data, label=label, file_name=key, boxes=boxes)


def _read_words(root: pathlib.Path) -> dict[str, str]:
    """WordNet id -> name, as far as a file tells it."""
    words = folders.read_words(root)
    if not words and (root / _DEVKIT).is_file():
        classes = _ilsvrc_files.read_devkit(root / _DEVKIT).classes
        words = {wnid: names.split(",")[0].strip() for wnid, names in classes.items()}
    return words


def _read_boxes(root: pathlib.Path, wnids: set[str]) -> dict[str, bytes]:
    """ILSVRC's name of an image, without the ending -> its annotation, where there are some."""

    def wnid_of(stem: str) -> str | None:
        wnid = stem.partition("_")[0]
        return wnid if wnid in wnids else None

    path = root / _BOXES
    return _ilsvrc_files.read_annotations(path, wnid_of) if path.is_file() else {}
