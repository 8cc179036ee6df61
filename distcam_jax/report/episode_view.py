"""What the page's template needs to show a few-shot episode."""

from typing import Any

import numpy as np
from jaxtyping import Array, Shaped, UInt8

from distcam_jax.report.episodes import Episode, EpisodeQuery
from distcam_jax.report.overlays import NO_HEAT, data_uri, enlarge, has_heat, overlay_heatmap

CELL_SIDE = 168  # short side of a query's pictures: twice the 84 pixels of miniImageNet
THUMBNAIL_SIDE = 112  # of support images that share a cell
_WEBP_QUALITY = 75  # about 3.5 kB of the page for an overlay
_SPOKEN = {"right": ", chosen and right", "wrong": ", chosen and wrong", "missed": ", true but not chosen", "": ""}


def episode_view(episode: Episode, *, alpha: float = 0.5, colormap: str = "turbo") -> dict[str, Any]:
    """Draws an episode for the page.

    Args:
        episode: what to show.
        alpha: weight of the heatmaps' colours over the images, 0 to 1.
        colormap: name of a matplotlib colour map.

    Returns:
        The episode, its rows of support images, and its shown queries, with all pictures as `data:` addresses.

    Example:
        >>> image = np.zeros((84, 84, 3))
        >>> query = EpisodeQuery(image, {"Dist-CAM": np.ones((2, 5, 5))}, [3.0, 5.0], 0, true=1)
        >>> view = episode_view(Episode("Episode 0", "", ["cat", "dog"], [[image], [image]], [query]))
        >>> [cell["mark"] for cell in view["queries"][0]["rows"][0]["cells"]]
        ['wrong', 'missed']
    """
    queries = [episode.queries[index] for index in episode.order[: episode.max_queries]]
    return {
        "episode": episode,
        "shots": shots_text(episode),
        "supports": _support_rows(episode, alpha, colormap),
        "queries": [_query_view(episode, query, alpha, colormap) for query in queries],
    }


def support_pictures(
    episode: Episode, *, method: str | None = None, alpha: float = 0.5, colormap: str = "turbo"
) -> list[list[UInt8[np.ndarray, "_ _ 3"]]]:
    """Draws the support images of each class.

    Args:
        episode: whose they are.
        method: title of the one whose `support_heatmaps` lie over the images, or None for the images alone.
        alpha: weight of the heatmaps' colours over the images, 0 to 1.
        colormap: name of a matplotlib colour map.

    Returns:
        For each class its pictures, smaller where it has several.

    Example:
        >>> image = np.zeros((84, 84, 3))
        >>> query = EpisodeQuery(image, {"Dist-CAM": np.ones((1, 5, 5))}, [3.0], 0, true=0)
        >>> [[picture]] = support_pictures(Episode("Episode 0", "", ["cat"], [[image]], [query]))
        >>> picture.shape
        (168, 168, 3)
    """
    pictures = []
    for way, images in enumerate(episode.supports):
        side = CELL_SIDE if len(images) == 1 else THUMBNAIL_SIDE
        pictures.append([])
        for shot, image in enumerate(images):
            if method is None:
                picture = enlarge(image, size=cell_size(image, side))
            else:
                heatmap = (episode.support_heatmaps or {})[method][way][shot]
                picture = overlay_heatmap(image, heatmap, alpha=alpha, colormap=colormap, size=cell_size(image, side))
            pictures[-1].append(picture)
    return pictures


def query_pictures(
    episode: Episode, query: EpisodeQuery, method: str, *, alpha: float = 0.5, colormap: str = "turbo"
) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """Draws one method's maps of a query over it, a picture a class.

    Args:
        episode: whose query it is; tells whether the maps share a scale.
        query: one of its queries.
        method: title of one of its methods.
        alpha: weight of the heatmaps' colours over the image, 0 to 1.
        colormap: name of a matplotlib colour map.

    Returns:
        The pictures.

    Example:
        >>> image = np.zeros((84, 84, 3))
        >>> query = EpisodeQuery(image, {"Dist-CAM": np.ones((2, 5, 5))}, [3.0, 5.0], 0, true=1)
        >>> episode = Episode("Episode 0", "", ["cat", "dog"], [[image], [image]], [query])
        >>> len(query_pictures(episode, query, "Dist-CAM"))
        2
    """
    maps = query.heatmaps[method]
    tops = [float(np.asarray(heatmap).max()) for heatmap in maps if has_heat(heatmap)]
    shared = max(tops) if tops and episode.shared_scale else None
    size = cell_size(query.image)
    return [
        overlay_heatmap(query.image, heatmap, alpha=alpha, colormap=colormap, maximum=shared, size=size)
        for heatmap in maps
    ]


def shots_across(shots: int) -> int:
    """Returns how many of a class's support images stand side by side.

    Args:
        shots: how many there are.

    Example:
        >>> [shots_across(shots) for shots in (1, 2, 4, 5)]
        [1, 2, 2, 3]
    """
    return 1 if shots == 1 else 2 if shots <= 4 else 3


def cell_size(image: Shaped[Array | np.ndarray, "_ _ 3"], side: int = CELL_SIDE) -> tuple[int, int]:
    """Returns the height and width, in pixels, of a picture in an episode.

    Args:
        image: what is shown.
        side: pixels of its short side, unless the long one would pass twice as many.

    Example:
        >>> cell_size(np.zeros((84, 84, 3))), cell_size(np.zeros((400, 500, 3))), cell_size(np.zeros((10, 90, 3)))
        ((168, 168), (168, 210), (37, 336))
    """
    height, width = np.shape(image)[:2]
    factor = min(side / min(height, width), 2 * side / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def score_texts(scores: Any) -> list[str]:
    """Formats the scores of a query with equally many decimals.

    Args:
        scores: finite numbers `[ways]`.

    Returns:
        The texts: three significant digits of the largest, or up to three more where different scores would read
        alike.

    Example:
        >>> score_texts([12.34, 9.8, 105.0]), score_texts([0.91, -0.052]), score_texts([7.301, 7.302])
        (['12', '10', '105'], ['0.910', '-0.052'], ['7.301', '7.302'])
    """
    values = np.asarray(scores, np.float64)
    largest = np.abs(values).max()
    least = max(0, 2 - int(np.floor(np.log10(largest)))) if largest > 0 else 0
    texts = []
    for decimals in range(least, least + 4):
        texts = [f"{value:.{decimals}f}" for value in np.round(values, decimals) + 0.0]  # + 0.0: no "-0"
        if len(set(texts)) == len(np.unique(values)):
            break
    return texts


def shots_text(episode: Episode) -> str:
    """Returns how many support images a class has.

    Args:
        episode: whose they are.

    Example:
        >>> image = np.zeros((84, 84, 3))
        >>> query = EpisodeQuery(image, {"Dist-CAM": np.ones((2, 5, 5))}, [3.0, 5.0], 0, true=1)
        >>> shots_text(Episode("Episode 0", "", ["cat", "dog"], [[image], [image] * 3], [query]))
        '1 to 3'
    """
    shots = [len(images) for images in episode.supports]
    return str(shots[0]) if min(shots) == max(shots) else f"{min(shots)} to {max(shots)}"


def cell_mark(query: EpisodeQuery, way: int) -> str:
    """Returns what a class is to a query.

    Args:
        query: one query.
        way: position of the class.

    Returns:
        "right" or "wrong" for the class that was chosen, "missed" for the true class where another was chosen, else "".

    Example:
        >>> query = EpisodeQuery(np.zeros((84, 84, 3)), {"Dist-CAM": np.ones((3, 5, 5))}, [3.0, 5.0, 9.0], 0, true=1)
        >>> [cell_mark(query, way) for way in range(3)]
        ['wrong', 'missed', '']
    """
    if way == query.predicted:
        return "right" if query.correct else "wrong"
    return "missed" if way == query.true else ""


def _support_rows(episode: Episode, alpha: float, colormap: str) -> list[dict[str, Any]]:
    """Returns the images, and for each method their overlays."""
    rows = []
    for method in [None, *(episode.support_heatmaps or {})]:
        drawn = support_pictures(episode, method=method, alpha=alpha, colormap=colormap)
        what = "Support image" if method is None else f"{method} heatmap over support image"
        rows.append(
            {
                "title": method or "Images",
                "cells": [
                    [_picture_view(picture, f"{what} {shot} of class {name}") for shot, picture in enumerate(cell, 1)]
                    for name, cell in zip(episode.class_names, drawn, strict=True)
                ],
            }
        )
    return rows


def _query_view(episode: Episode, query: EpisodeQuery, alpha: float, colormap: str) -> dict[str, Any]:
    """Returns one query with its rows of maps."""
    name = query.file_name or f"query of class {episode.class_names[query.true]}"
    rows = []
    for method in episode.methods:
        cells = []
        pictures = query_pictures(episode, query, method, alpha=alpha, colormap=colormap)
        for way, picture in enumerate(pictures):
            mark = cell_mark(query, way)
            alt = f"{method} heatmap over {name} for class {episode.class_names[way]}{_SPOKEN[mark]}"
            caption = "" if has_heat(query.heatmaps[method][way]) else NO_HEAT
            cells.append(_picture_view(picture, alt) | {"mark": mark, "caption": caption})
        rows.append({"title": method, "cells": cells})
    return {
        "query": query,
        "true_class": episode.class_names[query.true],
        "chosen_class": episode.class_names[query.predicted],
        "input": _picture_view(enlarge(query.image, size=cell_size(query.image)), f"Query: {name}"),
        "scores": score_texts(query.scores),
        "rows": rows,
    }


def _picture_view(picture: np.ndarray, alt: str) -> dict[str, Any]:
    """Returns the attributes of an img element."""
    source = data_uri(picture, kind="webp", quality=_WEBP_QUALITY)
    return {"source": source, "alt": alt, "width": picture.shape[1], "height": picture.shape[0]}
