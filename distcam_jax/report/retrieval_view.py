"""What the page's template needs to show queries with their most similar images."""

import math
from importlib import resources
from typing import Any

import numpy as np
from jaxtyping import Array, Shaped, UInt8

from distcam_jax.report.episode_view import score_texts
from distcam_jax.report.overlays import NO_HEAT, data_uri, enlarge, has_heat, overlay_heatmap
from distcam_jax.report.retrieval import Match, Retrieval, RetrievalQuery

SIDE = 168  # of a square picture; others get as many pixels
_LONGEST = 420  # pixels; very long pictures are smaller
_WEBP_QUALITY = 75  # about 4 kB of the page for an overlay
_COLUMN, _NARROW, _WIDE = 8.8, 5.6, 11.6  # rem: a column of square pictures, the narrowest and the widest


def retrieval_view(retrieval: Retrieval, *, alpha: float = 0.5, colormap: str = "turbo") -> dict[str, Any]:
    """Draws queries and their matches for the page.

    Args:
        retrieval: what to show.
        alpha: weight of the heatmaps' colours over the images, 0 to 1.
        colormap: name of a matplotlib colour map.

    Returns:
        The retrieval, its scale in words, the number and width of its columns, and its queries in their order, with
        all pictures as `data:` addresses.

    Example:
        >>> image, maps = np.zeros((128, 64, 3)), {"Dist-CAM": np.ones((16, 8))}
        >>> match = Match(image, "0002", 3.5, False, maps, maps)
        >>> view = retrieval_view(Retrieval("Persons", "", [RetrievalQuery(image, "0007", [match], 0.25)]))
        >>> view["queries"][0]["precision"], view["queries"][0]["matches"][0]["mark"], view["column"]
        ('0.25', 'wrong', 6.22)
    """
    pictures = [shown.image for query in retrieval.queries for shown in (query, *query.matches)]
    aspect = float(np.median([np.shape(picture)[1] / np.shape(picture)[0] for picture in pictures]))
    return {
        "retrieval": retrieval,
        "scale": scale_text(retrieval),
        "columns": max(len(query.matches) for query in retrieval.queries),
        "column": round(min(max(_COLUMN * math.sqrt(aspect), _NARROW), _WIDE), 2),
        "queries": [
            {"given": index} | _query_view(retrieval, retrieval.queries[index], alpha, colormap)
            for index in retrieval.order
        ],
    }


def retrieval_script() -> str:
    """Returns the program that orders queries and chooses a method; without it all methods stand on the page.

    Example:
        >>> "</script" in retrieval_script()
        False
    """
    text = (resources.files("distcam_jax.report") / "templates" / "retrieval.js").read_text(encoding="utf-8")
    return '\n(() => {\n"use strict";\n' + text + "})();\n"


def picture_size(image: Shaped[Array | np.ndarray, "_ _ 3"]) -> tuple[int, int]:
    """Returns the height and width, in pixels, of a picture among matches.

    Pictures of all shapes get about as many pixels, so that portraits and squares weigh the same.

    Args:
        image: what is shown.

    Example:
        >>> [picture_size(np.zeros((height, width, 3))) for height, width in ((64, 64), (128, 64), (9, 90))]
        [(168, 168), (238, 119), (42, 420)]
    """
    height, width = np.shape(image)[:2]
    factor = min(SIDE / math.sqrt(height * width), _LONGEST / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def pair_pictures(
    retrieval: Retrieval, query: RetrievalQuery, method: str, *, alpha: float = 0.5, colormap: str = "turbo"
) -> tuple[list[UInt8[np.ndarray, "_ _ 3"]], list[UInt8[np.ndarray, "_ _ 3"]]]:
    """Draws one method's maps of a query and its matches, both ways.

    Args:
        retrieval: whose query it is; tells whether the maps over the query share a scale.
        query: one of its queries.
        method: title of one of its methods.
        alpha: weight of the heatmaps' colours over the images, 0 to 1.
        colormap: name of a matplotlib colour map.

    Returns:
        For each match the query explained by it; and for each match itself, explained by the query.

    Example:
        >>> maps = {"Dist-CAM": np.ones((8, 8))}
        >>> match = Match(np.zeros((128, 64, 3)), "0002", 3.5, False, maps, maps)
        >>> query = RetrievalQuery(np.zeros((64, 64, 3)), "0007", [match], 0.25)
        >>> over_query, over_match = pair_pictures(Retrieval("", "", [query]), query, "Dist-CAM")
        >>> over_query[0].shape, over_match[0].shape
        ((168, 168, 3), (238, 119, 3))
    """
    maps = [match.query_heatmaps[method] for match in query.matches]
    tops = [float(np.asarray(heatmap).max()) for heatmap in maps if has_heat(heatmap)]
    shared = max(tops) if tops and retrieval.shared_scale else None
    look, size = {"alpha": alpha, "colormap": colormap}, picture_size(query.image)
    return (
        [overlay_heatmap(query.image, heatmap, maximum=shared, size=size, **look) for heatmap in maps],
        [
            overlay_heatmap(match.image, match.heatmaps[method], size=picture_size(match.image), **look)
            for match in query.matches
        ],
    )


def precision_text(query: RetrievalQuery) -> str:
    """Returns the average precision of a query with two decimals, or a dash where it is not known.

    Args:
        query: whose it is.

    Example:
        >>> image, maps = np.zeros((64, 64, 3)), {"Dist-CAM": np.ones((8, 8))}
        >>> matches = [Match(image, "cat", 2.0, True, maps, maps)]
        >>> [precision_text(RetrievalQuery(image, "cat", matches, precision)) for precision in (0.257, None)]
        ['0.26', '—']
    """
    return "—" if query.average_precision is None else f"{float(query.average_precision):.2f}"


def scale_text(retrieval: Retrieval) -> str:
    """Returns a sentence about which maps share a scale.

    Args:
        retrieval: whose maps they are.

    Example:
        >>> image, maps = np.zeros((64, 64, 3)), {"Dist-CAM": np.ones((8, 8))}
        >>> query = RetrievalQuery(image, "cat", [Match(image, "cat", 2.0, True, maps, maps)], 1.0)
        >>> scale_text(Retrieval("", "", [query], shared_scale=False))
        'Each map is divided by its own maximum'
    """
    if retrieval.shared_scale:
        return "Maps over one query share one scale; a map over a match is divided by its own maximum"
    return "Each map is divided by its own maximum"


def _query_view(retrieval: Retrieval, query: RetrievalQuery, alpha: float, colormap: str) -> dict[str, Any]:
    """Returns one query with its matches, and two rows of maps a method."""
    name = _name(query, "query")
    rows = []
    for place, method in enumerate(query.methods):
        over_query, over_match = pair_pictures(retrieval, query, method, alpha=alpha, colormap=colormap)
        cells = {"query": [], "match": []}
        for match, rank, *pictures in zip(query.matches, query.ranks, over_query, over_match, strict=True):
            found = f"match {rank}, {_name(match, 'match')}, {_mark(match)}"
            alts = [f"over the query {name}, explained by {found}", f"over {found}, explained by the query {name}"]
            maps = [match.query_heatmaps[method], match.heatmaps[method]]
            for cell, picture, alt, heatmap in zip(cells.values(), pictures, alts, maps, strict=True):
                caption = "" if has_heat(heatmap) else NO_HEAT
                cell.append(_picture_view(picture, f"{method} heatmap {alt}") | {"caption": caption})
        rows += [{"title": method, "method": place, "over": over, "cells": cell} for over, cell in cells.items()]
    matches = [
        {
            "match": match,
            "rank": rank,
            "mark": _mark(match),
            "distance": distance,
            "picture": _image_view(match, f"Match {rank}, {_mark(match)}: {_name(match, 'match')}"),
        }
        for match, rank, distance in zip(
            query.matches, query.ranks, score_texts([match.distance for match in query.matches]), strict=True
        )
    ]
    return {
        "query": query,
        "picture": _image_view(query, f"Query: {name}"),
        "precision": precision_text(query),
        "sorts": "" if query.average_precision is None else repr(float(query.average_precision)),
        "matches": matches,
        "rows": rows,
    }


def _mark(match: Match) -> str:
    return "right" if match.correct else "wrong"


def _name(shown: Match | RetrievalQuery, what: str) -> str:
    return shown.file_name or f"{what} of {shown.class_name}"


def _image_view(shown: Match | RetrievalQuery, alt: str) -> dict[str, Any]:
    return _picture_view(enlarge(shown.image, size=picture_size(shown.image)), alt)


def _picture_view(picture: np.ndarray, alt: str) -> dict[str, Any]:
    """Returns the attributes of an img element, and how many rem wide it is where its column has the room."""
    source = data_uri(picture, kind="webp", quality=_WEBP_QUALITY)
    height, width = picture.shape[:2]
    return {"source": source, "alt": alt, "width": width, "height": height, "wide": round(_COLUMN * width / SIDE, 2)}
