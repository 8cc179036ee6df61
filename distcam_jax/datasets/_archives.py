"""Walks through tar archives, also tars inside tars, without unpacking and with one member in memory at a time."""

import contextlib
import gzip
import io
import pathlib
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

import tqdm

AGAIN = "download the file again"
_DAMAGE = (tarfile.TarError, EOFError, OSError, zlib.error)
_GZIP_SIGNATURE = b"\x1f\x8b"
_CHUNK = 2**20


def members(path: pathlib.Path) -> Iterator[tuple[str, io.BufferedReader]]:
    """Walks through the plain files of an archive, .tar or gzip of it, in their order.

    On a terminal, a bar shows how much of the archive has been read.

    Args:
      path: of the archive.

    Yields:
      The member's name and its content, to be read before the next one is asked for. Folders and the shadow files of
      macOS are left out.

    Raises:
      ValueError: the archive is damaged or truncated, or a member is a link or a device or leaves the folder.
    """
    with _readable(str(path)), io.BufferedReader(io.FileIO(path), _CHUNK) as raw:
        size = path.stat().st_size
        # disable=None: only on a terminal
        with tqdm.tqdm.wrapattr(raw, "read", total=size, desc=path.name, leave=False, disable=None) as counted:
            yield from _walk(counted, str(path), zipped=_is_zipped(raw))


def nested_members(file: io.BufferedReader, where: str) -> Iterator[tuple[str, io.BufferedReader]]:
    """Walks through an archive that is itself a member; `where` names it in errors. See `members`."""
    with _readable(where):
        yield from _walk(file, where, zipped=_is_zipped(file))


def read(file: io.BufferedReader, where: str, limit: int | None = None) -> bytes:
    """Reads a member's content; `where` names it in errors.

    Raises:
      ValueError: the archive ends before the member does, or the content has more than `limit` bytes.
    """
    with _readable(where):
        data = file.read() if limit is None else file.read(limit + 1)
    if limit is not None and len(data) > limit:
        raise ValueError(f"{where}: more than {limit} bytes, so this is not the official file; {AGAIN}")
    return data


def base_name(member: str) -> str:
    """The last part of a member's name."""
    return member.rpartition("/")[2]


def _is_zipped(file: Any) -> bool:
    start = file.read(len(_GZIP_SIGNATURE))
    file.seek(0)
    return start == _GZIP_SIGNATURE


@contextlib.contextmanager
def _readable(where: str) -> Iterator[None]:
    """Turns what damaged archives raise into one line that names the archive."""
    try:
        yield
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{where}: cannot be read to its end ({reason}); {AGAIN}") from error


def _walk(file: Any, where: str, *, zipped: bool) -> Iterator[tuple[str, io.BufferedReader]]:
    if not zipped:
        yield from _walk_plain(file, where)
        return
    with gzip.GzipFile(fileobj=file, mode="rb") as unzipped:
        yield from _walk_plain(unzipped, where)
        while unzipped.read(_CHUNK):  # its checksum is at its end
            pass


def _walk_plain(file: Any, where: str) -> Iterator[tuple[str, io.BufferedReader]]:
    blocks: Any = _Blocks(file)
    archive: Any = tarfile.open(fileobj=blocks, mode="r:")  # noqa: SIM115 (the next line)
    with archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # it would keep every member's header
            _check(member, where)
            content = archive.extractfile(member)
            if isinstance(content, io.BufferedReader) and not base_name(member.name).startswith("."):
                yield member.name.removeprefix("./"), content
        # tarfile takes a damaged header for the end of the archive; the true end is a block of zeros
        if blocks.last.strip(b"\0"):
            raise tarfile.ReadError(f"damaged at byte {archive.offset}")


class _Blocks:
    """A file that remembers what was read last."""

    def __init__(self, file: Any):
        self._file = file
        self.last = b""
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        self.last = self._file.read(size)
        return self.last


def _check(member: tarfile.TarInfo, where: str) -> None:
    """Refuses what no data set needs and what is dangerous to whoever unpacks it."""
    fault = None
    if member.name.startswith("/") or ".." in member.name.split("/"):
        fault = "leaves the folder"
    elif member.issparse() or not (member.isreg() or member.isdir()):
        fault = "is neither a plain file nor a folder"
    if fault:
        raise ValueError(f"{where}: the member {member.name!r} {fault}, so this is not the official file; {AGAIN}")
