"""Synthetic photographs as JPEGs in an ArrayRecord file, for the benchmark of the input pipelines."""

import cv2
import numpy as np
from array_record.python import array_record_module
from array_record.python.array_record_data_source import ArrayRecordDataSource

HEIGHT, WIDTH = 375, 500  # the most frequent size in ImageNet
QUALITY = 95
NOISE = 11.0  # levels; with it the files are about as large as ImageNet's, 110 kB
CELLS = (2, 4, 8, 16, 32, 64, 128)  # of the smooth fields, along the longer side
CLASSES = 1000


def photograph(generator, *, height=HEIGHT, width=WIDTH):
    """RGB uint8 `[h, w, 3]`: smooth random fields whose strength falls with their frequency, and grain."""
    image = np.zeros((height, width, 3), np.float32)
    for cells in CELLS:
        rows = max(2, cells * height // width)
        field = generator.standard_normal((rows, cells, 3), np.float32)
        image += cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC) / cells
    image = 128 + 50 * image / image.std() + NOISE * generator.standard_normal((height, width, 1), np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def encode(image):
    """The bytes of a JPEG."""
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def write_photographs(path, *, count, seed):
    """Writes JPEGs to an ArrayRecord file and returns their mean size in bytes."""
    writer, total = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed"), 0
    for i in range(count):
        encoded = encode(photograph(np.random.default_rng((seed, i))))
        writer.write(encoded)
        total += len(encoded)
    writer.close()
    return total / count


class PhotographSource:
    """The examples of such a file, which comes round again until there are `length`."""

    def __init__(self, path, length):
        self.records = ArrayRecordDataSource(str(path))
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if not 0 <= index < self.length:
            raise IndexError(index)
        record = self.records[index % len(self.records)]
        return {"image": record, "label": index % CLASSES, "file_name": f"{index}.jpg"}
