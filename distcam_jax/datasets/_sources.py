"""Finds a data set in `manual_dir` and walks through its files, in a folder or an archive; nothing is unpacked."""

import functools
import lzma
import os
import pathlib
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator

from distcam_jax.datasets._image_folders import AGAIN, is_stray

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)


def find_source(manual_dir: pathlib.Path, *, marker: str, pattern: str, title: str, instructions: str) -> pathlib.Path:
    """The data set's folder, or its archive, that a user meant by `manual_dir`.

    Args:
      manual_dir: the archive, the folder, or a folder that holds one of them.
      marker: a file or folder by which the data set's folder is known.
      pattern: what archive and folder are called, such as `tiny-imagenet*`.
      title: of the data set.
      instructions: where to get it.

    Raises:
      FileNotFoundError: it is not there.
      ValueError: there are several archives.
    """
    if manual_dir.is_file():
        return manual_dir
    folders = [manual_dir, *sorted(path for path in manual_dir.glob(pattern) if path.is_dir())]
    archives = [path for path in sorted(manual_dir.glob(pattern)) if path.name.endswith(_ARCHIVES)]
    found = [folder for folder in folders if (folder / marker).exists()][:1] or archives
    if not found:
        raise FileNotFoundError(f"{manual_dir}: no {title} here; {instructions}")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{manual_dir}: more than one archive ({names}); pass the one you want as manual_dir")
    return found[0]


def members(source: pathlib.Path, root: str, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes | None]]:
    """Walks through the files of a data set.

    Args:
      source: a folder, or an archive: zip, tar, or a compressed tar.
      root: of the data inside an archive: "" or such as "tiny-imagenet-200/".
      is_wanted: whether the content of a file is asked for, by its name below the root.

    Yields:
      A name below the root, and the content of a wanted file, otherwise None. What operating systems put there is left
      out.

    Raises:
      ValueError: the source cannot be read to its end.
    """
    try:
        reader = _folder if source.is_dir() else _zip if _is_zip(source) else _tar
        for path, read in reader(source):
            if path.startswith(root) and not any(is_stray(part) for part in path.split("/")):
                name = path.removeprefix(root)
                yield name, read() if is_wanted(name) else None
    except _DAMAGE as error:
        raise ValueError(
            f"{source}: cannot be read to its end ({str(error) or type(error).__name__}); {AGAIN}"
        ) from error


def find_root(paths: Iterable[str], marker: str) -> str | None:
    """What stands before the marker, a file or folder, in the shortest path that has it; None where none has.

    Examples:
        >>> find_root(["readme.txt", "birds/images/list.txt", "birds/list.txt"], "list.txt")
        'birds/'
        >>> find_root(["query/1.jpg"], "query"), find_root(["1.jpg"], "query")
        ('', None)
    """
    parts = [path.split("/") for path in paths]
    roots = [own[: own.index(marker)] for own in parts if marker in own]
    return "".join(f"{part}/" for part in min(roots, key=len)) if roots else None


def _is_zip(source: pathlib.Path) -> bool:
    with open(source, "rb") as file:
        return file.read(2) == b"PK"


def _folder(source: pathlib.Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    for folder, _, names in os.walk(source, onerror=_raise, followlinks=True):
        for name in names:
            path = pathlib.Path(folder, name)
            yield path.relative_to(source).as_posix(), path.read_bytes


def _raise(error: OSError) -> None:
    raise error


def _zip(source: pathlib.Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    with zipfile.ZipFile(source) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                yield member.filename.removeprefix("./"), functools.partial(archive.read, member)


def _tar(source: pathlib.Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    with tarfile.open(source, "r|*") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                yield member.name.removeprefix("./"), file.read
