"""Files that appear whole or not at all."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(path: str | os.PathLike, write: Callable[[Path], Any]) -> Path:
    """Writes a file under a temporary name in its folder and then renames it, so that nobody finds half of it.

    Args:
        path: of the file. Its folder is made where it does not exist.
        write: writes to the path that it is given.

    Returns:
        The path.

    Raises:
        OSError: where the file cannot be written; the message names it. A file that was there before stays as it was.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(f"{folder}/a.txt", lambda temporary: temporary.write_text("a")).read_text()
        'a'
    """
    path, temporary = Path(path), _temporary(path)
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise _named(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def check_writable(path: str | os.PathLike) -> None:
    """Finds out whether a file can be written, before the work is done that makes its content.

    Args:
        path: of the file. Its folder is made where it does not exist; the file itself is not touched.

    Raises:
        OSError: where it cannot be written; the message names it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     check_writable(f"{folder}/a.txt")
    """
    temporary = _temporary(path)
    try:
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise _named(path, error) from error


def _temporary(path: str | os.PathLike) -> Path:
    """Returns a free name in the folder of the file, and makes the folder."""
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _named(path, error) from error
    return path.parent / f".{secrets.token_hex(8)}{path.suffix}"


def _named(path: str | os.PathLike, error: OSError) -> OSError:
    reason = error.strerror or str(error)
    return OSError(f"cannot write {os.fspath(path)}: {reason}; name a file in a folder that you may write to")
