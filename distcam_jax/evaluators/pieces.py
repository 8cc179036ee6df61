"""Results of a long evaluation, kept piece by piece, so that one that was stopped goes on where it stood."""

import json
from collections.abc import Callable
from pathlib import Path

from absl import logging

from distcam_jax.files import write_atomically


class Pieces:
    """A folder of finished pieces, one JSON file each.

    A piece is measured again where its file does not read, or was made from something else.

    Args:
        folder: where they are kept; made on the first write.
    """

    def __init__(self, folder: str | Path):
        self._folder = Path(folder)

    def get(self, name: str, made_from: dict, measure: Callable[[], dict]) -> dict:
        """A piece from its file, or measured now and kept.

        Args:
            name: of the piece; the file's name.
            made_from: all that decides the result, as JSON takes it: weights' hash, options, data.
            measure: gives the result, as JSON takes it.

        Returns:
            The result.
        """
        path, identity = self._folder / f"{name}.json", json.loads(json.dumps(made_from))
        kept = _read(path)
        if kept is not None and kept.get("made_from") == identity and "result" in kept:
            return kept["result"]
        if kept is not None:
            logging.info("%s was made from something else; measuring it again", path)
        result = measure()
        text = json.dumps({"made_from": identity, "result": result}, indent=1) + "\n"
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: temporary.write_text(text))
        return json.loads(text)["result"]


def _read(path: Path) -> dict | None:
    """What a file holds; None where there is none, or none that reads."""
    try:
        kept = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logging.warning("%s does not read (%s); measuring it again", path, error)
        return None
    return kept if isinstance(kept, dict) else None
