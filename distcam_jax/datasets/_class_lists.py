"""Lists of classes by name, from a JSON file: which classes a split has."""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

OPTION = "class_splits"
Lists = Mapping[str, Sequence[str]]


def read(lists: Lists | os.PathLike[str] | str) -> tuple[str, Lists]:
    """Reads lists of classes by name where they are a file's path.

    Returns:
      What errors call them, and the lists.

    Raises:
      ValueError: the file is none, or holds something else.
    """
    if not isinstance(lists, str | os.PathLike):
        return OPTION, lists
    path = pathlib.Path(lists)
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{OPTION}: got {str(path)!r}, want a JSON file of lists of ids ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{OPTION}: {path} holds {type(content).__name__}, want lists of ids by name")
    return f"{OPTION}: {path}", content


def choose(lists: Lists, names: Sequence[str], where: str, *, option: str, example: str) -> list[tuple[str, ...]]:
    """The lists of these names, each sorted; no class may come twice.

    Args:
      lists: classes by name.
      names: of the lists to take.
      where: the lists are, for errors.
      option: what errors call the names.
      example: of a class, for errors.

    Raises:
      ValueError: a list is missing or empty, or has a class twice or of another list.
    """
    list_of: dict[str, str] = {}
    for name in names:
        if name not in lists:
            raise ValueError(f"{option}: got {name!r}, want names of lists in {where}: {', '.join(lists)}")
        ids = lists[name]
        if isinstance(ids, str) or not ids or not all(isinstance(class_id, str) for class_id in ids):
            raise ValueError(f"{where}: {name!r} is {ids!r}, want a list of ids, such as [{example!r}]")
        for class_id in ids:
            if class_id in list_of:
                other = list_of[class_id]
                fault = f"in {other!r} and in {name!r}" if other != name else f"twice in {name!r}"
                raise ValueError(f"{where}: {class_id} is {fault}, want every class once")
            list_of[class_id] = name
    return [tuple(sorted(lists[name])) for name in names]


def digest(lists: Iterable[Sequence[str]]) -> str:
    """Twelve letters and digits that stand for these lists in the name of a folder."""
    return hashlib.sha256(json.dumps([list(ids) for ids in lists]).encode()).hexdigest()[:12]
