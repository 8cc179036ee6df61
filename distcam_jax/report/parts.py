"""What a report page is made of, as plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Array, Num, Shaped

from distcam_jax.report.episodes import Episode
from distcam_jax.report.explorer import Explorer
from distcam_jax.report.retrieval import Retrieval
from distcam_jax.report.tables import Table

Image = Shaped[Array | np.ndarray, "_ _ 3"]
Heatmap = Shaped[Array | np.ndarray, "_ _"]
Boxes = Num[Array | np.ndarray, "_ 4"]


@dataclass(frozen=True, eq=False)
class Panel:
    """One heatmap of a case.

    Attributes:
        title: what it shows, such as "Dist-CAM"; panels of one title stand in one column.
        heatmap: values of any range, or None for a picture without one.
        box: the box derived from the heatmap, in pixels of the image; None or an empty box draws nothing.
        iou: intersection over union of that box with the true one, or None.
        caption: a line below the panel.
        image: a picture of its own, such as the nearest neighbour, instead of the case's.

    Example:
        >>> Panel("Dist-CAM", np.eye(7), box=[8, 8, 60, 60], iou=0.7).title
        'Dist-CAM'
    """

    title: str
    heatmap: Heatmap | None = None
    box: Num[Array | np.ndarray, "4"] | Sequence[Any] | None = None
    iou: float | None = None
    caption: str = ""
    image: Image | None = None


@dataclass(frozen=True, eq=False)
class Case:
    """An image with its explanations.

    Attributes:
        image: uint8, or floats in [0, 1].
        panels: the heatmaps; the input with its true boxes is always shown before them.
        file_name: or another name for the image.
        predicted_class: name of the predicted class.
        true_class: name of the true class, or None where it is not known.
        distance: of the image to the predicted class.
        iou: the figure that the case is ranked by, or None.
        true_boxes: `x0, y0, x1, y1` in pixels of the image, exclusive end, or None.
        note: a line below the names.

    Example:
        >>> case = Case(np.zeros((64, 64, 3)), [Panel("CAM", np.eye(7))], predicted_class="zebra", true_class="horse")
        >>> case.correct
        False
    """

    image: Image
    panels: Sequence[Panel] = ()
    file_name: str = ""
    predicted_class: str | None = None
    true_class: str | None = None
    distance: float | None = None
    iou: float | None = None
    true_boxes: Boxes | Sequence[Any] | None = None
    note: str = ""

    @property
    def correct(self) -> bool | None:
        """Whether the prediction is right; None where one of the two classes is not known."""
        if self.true_class is None or self.predicted_class is None:
            return None
        return self.true_class == self.predicted_class

    @property
    def name(self) -> str:
        """The file name, or what else identifies the image."""
        return self.file_name or self.true_class or self.predicted_class or "image"


@dataclass(frozen=True)
class Section:
    """A group of cases.

    Attributes:
        title: its heading, also in the page's navigation.
        text: a sentence below the heading.
        cases: from top to bottom; a section without any is left out.

    Example:
        >>> Section("Best cases", "Largest overlap first.", []).title
        'Best cases'
    """

    title: str
    text: str
    cases: Sequence[Case]


@dataclass(frozen=True, eq=False)
class ComparisonRow:
    """One image against several class prototypes.

    Attributes:
        image: uint8, or floats in [0, 1].
        heatmaps: one for each class of the comparison.
        distances: of the image to each class, likewise.
        file_name: or another name for the image.
        true_class: name of the true class, or None.

    Raises:
        ValueError: where there are more or fewer distances than heatmaps.

    Example:
        >>> ComparisonRow(np.zeros((64, 64, 3)), [np.eye(7), np.eye(7)], [3.0, 1.5]).nearest
        1
    """

    image: Image
    heatmaps: Sequence[Heatmap] | Shaped[np.ndarray, "_ _ _"]
    distances: Sequence[Any] | Num[np.ndarray, "_"]
    file_name: str = ""
    true_class: str | None = None

    def __post_init__(self):
        if len(self.heatmaps) != len(self.distances) or not len(self.heatmaps):
            raise ValueError(f"got {len(self.heatmaps)} heatmaps and {len(self.distances)} distances; want one a class")

    @property
    def nearest(self) -> int:
        """Index of the nearest class."""
        return int(np.argmin(self.distances))


@dataclass(frozen=True)
class Comparison:
    """Images against class prototypes, as in Fig. 3 of the paper: a row an image, a column a class.

    Attributes:
        title: its heading, such as the method.
        text: a sentence below the heading.
        class_names: the columns.
        rows: the images.
        shared_scale: whether the maps of a row are divided by the largest value of the whole row, so that they can be
            compared, and not each by its own.

    Raises:
        ValueError: where a row has more or fewer heatmaps than there are classes.

    Example:
        >>> row = ComparisonRow(np.zeros((64, 64, 3)), [np.eye(7), np.eye(7)], [3.0, 1.5])
        >>> Comparison("Dist-CAM", "", ["cat", "dog"], [row]).class_names
        ['cat', 'dog']
    """

    title: str
    text: str
    class_names: Sequence[str]
    rows: Sequence[ComparisonRow]
    shared_scale: bool = True

    def __post_init__(self):
        for row in self.rows:
            if len(row.heatmaps) != len(self.class_names):
                raise ValueError(f"a row has {len(row.heatmaps)} heatmaps for {len(self.class_names)} classes")


@dataclass(frozen=True)
class Report:
    """A whole page.

    Attributes:
        title: the page's heading.
        subtitle: a line below it, such as model, data set and number of images.
        tables: result tables, first on the page.
        settings: names and values of what the figures depend on.
        comparisons: images against class prototypes.
        sections: groups of cases.
        alpha: weight of the heatmaps' colours over the images, 0 to 1.
        colormap: name of a matplotlib colour map.
        explorer: images, classes, methods and thresholds to choose from in the browser, or None.
        episodes: few-shot episodes, between comparisons and sections.
        retrievals: queries with their most similar images, after the episodes.

    Example:
        >>> Report("Dist-CAM", subtitle="ResNet-50").sections
        ()
    """

    title: str
    subtitle: str = ""
    tables: Sequence[Table] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    comparisons: Sequence[Comparison] = ()
    sections: Sequence[Section] = ()
    alpha: float = 0.5
    colormap: str = "turbo"
    explorer: Explorer | None = None
    episodes: Sequence[Episode] = ()
    retrievals: Sequence[Retrieval] = ()
