import json
import logging

import pytest

from distcam_jax.evaluators.pieces import Pieces


def counted(result):
    """A measurement, and the list of its calls."""
    calls = []

    def measure():
        calls.append(1)
        return result

    return measure, calls


def test_get_measures_once_and_gives_the_same_ever_after(tmp_path):
    measure, calls = counted({"value": (0.1, None), "by class": {"a": 1}})
    folder = tmp_path / "some" / "pieces"
    first = Pieces(folder).get("resnet", {"eps": 0.1, "splits": ("a", 2)}, measure)
    again = Pieces(folder).get("resnet", {"splits": ["a", 2], "eps": 0.1}, measure)  # as JSON gives it back
    same = Pieces(folder).get("resnet", {"eps": 0.1, "splits": ("a", 2)}, measure)
    assert first == again == same == {"value": [0.1, None], "by class": {"a": 1}}
    assert calls == [1]
    assert [path.name for path in folder.iterdir()] == ["resnet.json"]
    assert json.loads((folder / "resnet.json").read_text())["result"] == first


def test_get_keeps_pieces_apart(tmp_path):
    pieces = Pieces(tmp_path)
    assert pieces.get("a", {}, lambda: {"x": 1}) == {"x": 1}
    assert pieces.get("b", {}, lambda: {"x": 2}) == {"x": 2}
    assert pieces.get("a", {}, lambda: {"x": 3}) == {"x": 1}


@pytest.mark.parametrize("changed", [{"eps": 0.2, "hash": "a"}, {"eps": 0.1}, {"eps": 0.1, "hash": "a", "seed": 0}])
def test_get_measures_what_was_made_from_something_else_again(changed, tmp_path):
    pieces = Pieces(tmp_path)
    pieces.get("a", {"eps": 0.1, "hash": "a"}, lambda: {"x": 1})
    assert pieces.get("a", changed, lambda: {"x": 2}) == {"x": 2}
    assert pieces.get("a", changed, lambda: {"x": 3}) == {"x": 2}  # the newer one is kept in its place


@pytest.mark.parametrize(
    "content",
    [b"", b'{"made_from": {}, "resu', b"\xff\xfe", b"[1, 2]", b"null", b'{"made_from": {}}', b'{"result": {"x": 0}}'],
)
def test_get_measures_again_where_the_file_does_not_read(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    assert Pieces(tmp_path).get("a", {}, lambda: {"x": 1}) == {"x": 1}
    assert Pieces(tmp_path).get("a", {}, lambda: {"x": 2}) == {"x": 1}


def test_get_tells_of_a_file_that_does_not_read(tmp_path, caplog):
    (tmp_path / "a.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        Pieces(tmp_path).get("a", {}, lambda: {"x": 1})
    assert "a.json does not read" in caplog.text
    assert "measuring it again" in caplog.text


def test_get_writes_nothing_of_a_measurement_that_was_stopped(tmp_path):
    def stopped():
        raise KeyboardInterrupt

    pieces = Pieces(tmp_path / "pieces")
    with pytest.raises(KeyboardInterrupt):
        pieces.get("a", {}, stopped)
    assert not (tmp_path / "pieces").exists()
    pieces.get("a", {"seed": 0}, lambda: {"x": 1})
    with pytest.raises(KeyboardInterrupt):
        pieces.get("a", {"seed": 1}, stopped)
    assert pieces.get("a", {"seed": 0}, stopped) == {"x": 1}  # the one before still stands


def test_get_writes_nothing_of_a_result_that_json_does_not_take(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        Pieces(tmp_path).get("a", {}, lambda: {"x": {1, 2}})
    assert not list(tmp_path.iterdir())
