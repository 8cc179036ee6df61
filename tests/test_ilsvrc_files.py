"""Tests of reading ILSVRC 2012's official files: archives that cannot be trusted, annotations, and the full devkit."""

import gzip
import io
import random
import struct
import tarfile

import cv2
import numpy as np
import pytest

from distcam_jax.datasets import _archives, _ilsvrc_files
from distcam_jax.decoding import image_size
from tools.ilsvrc_files import Photograph, annotation, ilsvrc_ids, meta_mat, tar, write_tar

AGAIN = "; download the file again$"
WNID = "n01440764"


def read_one(tmp_path, xml):
    """Reads the boxes of one annotation in an archive."""
    write_tar(tmp_path / "boxes.tgz", [(f"{WNID}/{WNID}_1.xml", xml)])
    return _ilsvrc_files.read_annotations(tmp_path / "boxes.tgz", lambda stem: WNID)[f"{WNID}_1"]


def pack(path, member, data=b"evil"):
    """An archive of a good member and the given one."""
    with tarfile.open(path, "w") as archive:
        for info in (tarfile.TarInfo("good.txt"), member):
            info.size = len(data) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(data))


def evil(name="evil.txt", **attributes):
    member = tarfile.TarInfo(name)
    for attribute, value in attributes.items():
        setattr(member, attribute, value)
    return member


@pytest.mark.parametrize(
    ("member", "fault"),
    [
        (evil("/etc/evil.txt"), "leaves the folder"),
        (evil("../evil.txt"), "leaves the folder"),
        (evil("a/../../evil.txt"), "leaves the folder"),
        (evil("..", type=tarfile.DIRTYPE), "leaves the folder"),
        (evil(type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is neither a plain file nor a folder"),
        (evil(type=tarfile.LNKTYPE, linkname="good.txt"), "is neither a plain file nor a folder"),
        (evil(type=tarfile.CHRTYPE), "is neither a plain file nor a folder"),
        (evil(type=tarfile.FIFOTYPE), "is neither a plain file nor a folder"),
        (evil(type=tarfile.GNUTYPE_SPARSE), "is neither a plain file nor a folder"),
    ],
)
def test_members_refuses_dangerous_members(tmp_path, member, fault):
    pack(tmp_path / "a.tar", member)
    message = f"^{tmp_path / 'a.tar'}: the member '{member.name}' {fault}, so this is not the official file{AGAIN}"
    with pytest.raises(ValueError, match=message):
        list(_archives.members(tmp_path / "a.tar"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_members_refuses_a_damaged_header(tmp_path):
    data = bytearray(tar({"a": b"x" * 600, "b": b"y" * 600}))
    data[1536 + 150] ^= 1  # in the checksum of the second header; tarfile would end there as if all were well
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(ValueError, match=rf"a.tar: cannot be read to its end \(damaged at byte 1536\){AGAIN}"):
        list(_archives.members(tmp_path / "a.tar"))


def test_members_refuses_a_wrong_checksum(tmp_path):
    data = bytearray(gzip.compress(tar({"a": b"x"})))
    data[-6] ^= 1
    (tmp_path / "a.tgz").write_bytes(data)
    with pytest.raises(ValueError, match=rf"a.tgz: cannot be read to its end \(CRC check failed.*\){AGAIN}"):
        list(_archives.members(tmp_path / "a.tgz"))


def test_members_reads_what_a_browser_has_unzipped(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(tar({"./b": b"x", "c/d": b"y"}))
    found = {name: file.read() for name, file in _archives.members(tmp_path / "a.tar.gz")}
    assert found == {"b": b"x", "c/d": b"y"}


def test_nested_members_reads_in_place_and_forgets_the_headers(tmp_path):
    inner = {f"{i}.txt": bytes([i]) * 1000 for i in range(50)}
    write_tar(tmp_path / "a.tar", [("1.tar", tar(inner)), ("2.tar", tar(inner, "w:gz"))])
    for name, outer in _archives.members(tmp_path / "a.tar"):
        assert {n: file.read() for n, file in _archives.nested_members(outer, name)} == inner


ENTITIES = '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]><annotation>&b;</annotation>'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_read_annotations_refuses_a_document_type(tmp_path, encoding):
    with pytest.raises(ValueError, match=rf"boxes.tgz: {WNID}/{WNID}_1.xml: no annotation of boxes \(it has a DOCTYPE"):
        read_one(tmp_path, ENTITIES.encode(encoding))


def test_read_annotations_refuses_one_that_unzips_without_end(tmp_path):
    with pytest.raises(ValueError, match=r"_1.xml: more than \d+ bytes, so this is not the official file" + AGAIN):
        read_one(tmp_path, bytes(2**24 + 1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"<xmin>1</xmin>", b"", r"no annotation of boxes \("),
        (b"<xmin>1</xmin>", b"<xmin>one</xmin>", r"no annotation of boxes \("),
        (b"<xmin>1</xmin>", b"<xmin>nan</xmin>", r"got \[.*nan.*\], want finite numbers"),
        (b"<width>40</width>", b"<width>inf</width>", r"got \[inf.*\], want finite numbers"),
        (b"bndbox", b"box", r"no annotation of boxes \("),
    ],
)
def test_read_annotations_names_the_bad_one(tmp_path, old, new, message):
    xml = annotation("", WNID, Photograph(b"", [(1, 2, 5, 6)], (40, 30)))
    assert old in xml
    with pytest.raises(ValueError, match=f"boxes.tgz: {WNID}/{WNID}_1.xml: {message}.*{AGAIN}") as caught:
        read_one(tmp_path, xml.replace(old, new))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("boxes", "annotated", "stored", "expected", "dropped"),
    [
        ([(10, 20, 19, 29)], (100, 50), (100, 50), [[10, 20, 20, 30]], 0),
        ([(0, 0, 99, 49)], (100, 50), (100, 50), [[0, 0, 100, 50]], 0),
        ([(3, 4, 3, 4)], (100, 50), (100, 50), [[3, 4, 4, 5]], 0),  # one pixel
        ([(10, 20, 19, 29)], (100, 50), (200, 150), [[20, 60, 40, 90]], 0),  # each side on its own
        ([(10, 20, 19, 29)], (200, 100), (100, 50), [[5, 10, 10, 15]], 0),
        ([(10, 20, 19, 29)], (0, 0), (200, 150), [[10, 20, 20, 30]], 0),  # no size given
        ([(10, 20, 19, 29)], (0, 100), (200, 150), [[10, 20, 20, 30]], 0),
        ([(10, 20, 19, 29)], (50, 100), (100, 50), [[10, 20, 20, 30]], 0),  # swapped
        ([(10, 20, 19, 80)], (50, 100), (100, 50), [[10, 20, 20, 50]], 0),
        ([(-5, -1, 120, 30)], (100, 50), (100, 50), [[0, 0, 100, 31]], 0),
        ([(100, 10, 120, 30), (1, 1, 2, 2)], (100, 50), (100, 50), [[1, 1, 3, 3]], 1),
        ([(9, 10, 8, 30), (9, 30, 20, 10), (9, 9, 5, 20)], (100, 50), (100, 50), [], 3),
        ([], (100, 50), (100, 50), [], 0),
    ],
)
def test_boxes_in_image_by_hand(tmp_path, boxes, annotated, stored, expected, dropped):
    numbers = read_one(tmp_path, annotation("", WNID, Photograph(b"", boxes, annotated)))
    found, count = _ilsvrc_files.boxes_in_image(numbers, stored)
    np.testing.assert_array_equal(found, np.array(expected, np.float32).reshape(-1, 4), strict=True)
    assert count == dropped


def test_read_annotations_takes_the_own_class_alone(tmp_path):
    boxes = [(1, 1, 2, 2), (3, 3, 4, 4, "n02105855"), (5, 5, 6, 6)]
    numbers = read_one(tmp_path, annotation("", WNID, Photograph(b"", boxes, (40, 30))))
    assert _ilsvrc_files.boxes_in_image(numbers, (40, 30))[0].tolist() == [[1, 1, 3, 3], [5, 5, 7, 7]]


def test_read_devkit_of_full_size(tmp_path):
    draw = random.Random(0)
    classes = {f"n{number:08d}": f"thing {number}, Res {number}" for number in draw.sample(range(10**8), 1000)}
    numbers = ilsvrc_ids(classes)
    truth = [draw.choice(list(classes)) for _ in range(50_000)]
    files = [
        ("ILSVRC2012_devkit_t12/data/meta.mat", meta_mat(classes, {})),
        ("d/ILSVRC2012_validation_ground_truth.txt", "\r\n".join(str(numbers[wnid]) for wnid in truth).encode()),
    ]
    write_tar(tmp_path / "devkit.tar.gz", files)
    devkit = _ilsvrc_files.read_devkit(tmp_path / "devkit.tar.gz")
    assert list(devkit.classes.items()) == sorted(classes.items())
    assert devkit.ground_truth == truth


def test_read_devkit_of_one_class(tmp_path):
    files = [("meta.mat", meta_mat({WNID: "tench"}, {})), ("ILSVRC2012_validation_ground_truth.txt", b"1\n")]
    write_tar(tmp_path / "devkit.tar.gz", files)
    assert _ilsvrc_files.read_devkit(tmp_path / "devkit.tar.gz") == ({WNID: "tench"}, [WNID])


IMAGE = cv2.resize(np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8), (50, 40))


def jpeg(image=IMAGE, *options):
    return cv2.imencode(".jpg", image, list(options))[1].tobytes()


def with_segment(data, payload):
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + data[2:]


THUMBNAIL = jpeg(IMAGE[:9, :9])


@pytest.mark.parametrize(
    "data",
    [
        jpeg(),
        jpeg(IMAGE[..., 0]),
        jpeg(IMAGE, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        jpeg(IMAGE, cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
        with_segment(jpeg(), b"Exif\0\0" + THUMBNAIL),
        jpeg()[:2] + b"\xff" + jpeg()[2:],
        jpeg() + b"rest",
        cv2.imencode(".png", IMAGE)[1].tobytes(),
    ],
    ids=["plain", "grey", "progressive", "restarts", "thumbnail", "fill", "rest", "PNG"],
)
def test_image_size_is_that_of_the_decoded_image(data):
    assert image_size(data) == (50, 40)
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED).shape[:2] == (40, 50)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", r"no JPEG or PNG file \(0 bytes\)"),
        (b"BM123456", r"no JPEG or PNG file \(8 bytes\)"),
        (jpeg()[:-2], "truncated"),
        (jpeg()[:40], "truncated"),
        (jpeg()[:2], "truncated"),
        (with_segment(jpeg(), b"Exif\0\0" + THUMBNAIL)[:-99], "truncated"),
        (cv2.imencode(".png", IMAGE)[1].tobytes()[:-12], "truncated"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (jpeg().replace(b"\x00\x28\x00\x32", b"\x00\x28\x00\x00", 1), "damaged, 0 x 40 pixels"),
    ],
)
def test_image_size_says_what_is_wrong(data, fault):
    with pytest.raises(ValueError, match=f"^{fault}"):
        image_size(data)
