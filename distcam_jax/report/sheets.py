"""Words, pictures and frames on a sheet whose sizes are inches from its top left corner."""

import numpy as np
from jaxtyping import Array, Shaped, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

INK, QUIET = "#17181a", "#62666d"
RIGHT_COLOR, WRONG_COLOR = "#0b7a4b", "#b3261e"


class Sheet:
    """A white sheet to draw on.

    Attributes:
        width: in inches.
        height: in inches.
        figure: of matplotlib, to be saved.

    Example:
        >>> Sheet(4.0, 3.0).figure.get_size_inches().tolist()
        [4.0, 3.0]
    """

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), facecolor="white")
        FigureCanvasAgg(self.figure)

    def text(self, x: float, y: float, words: str, *, color: str = INK, size: float = 9.0, **style) -> None:
        """Writes words literally, by default from x to the right, on the line y."""
        x, y = x / self.width, 1 - y / self.height
        self.figure.text(x, y, words, parse_math=False, color=color, size=size, **style)

    def lines(self, x: float, middle: float, lines: list[tuple[str, dict]]) -> None:
        """Writes lines, each with its style, that end at x, around a height."""
        for index, (words, style) in enumerate(lines):
            height = middle + 0.19 * (index - len(lines) / 2 + 0.5)
            self.text(x, height, words, ha="right", va="center", **style)

    def picture(self, picture: UInt8[np.ndarray, "_ _ 3"], left: float, top: float, width: float) -> None:
        """Draws a picture of a given width."""
        tall = tallness(picture) * width
        place = (left / self.width, 1 - (top + tall) / self.height, width / self.width, tall / self.height)
        axes = self.figure.add_axes(place)
        axes.imshow(picture, interpolation="antialiased", aspect="auto")
        axes.set_axis_off()

    def frame(
        self, left: float, top: float, width: float, height: float, *, color: str, style="solid", line: float = 2.0
    ) -> None:
        """Draws a frame whose line, in points, runs along the given border."""
        place = (left / self.width, 1 - (top + height) / self.height)
        size = (width / self.width, height / self.height)
        self.figure.add_artist(Rectangle(place, *size, fill=False, color=color, linestyle=style, linewidth=line))


def shorten(name: str, letters: int = 17) -> str:
    """Cuts a name that is too long.

    Args:
        name: of any length.
        letters: how many may be shown, the ellipsis among them.

    Example:
        >>> shorten("cat"), shorten("Yellow-bellied Flycatcher")
        ('cat', 'Yellow-bellied F…')
    """
    return name if len(name) <= letters else name[: letters - 1] + "…"


def tallness(picture: Shaped[Array | np.ndarray, "h w ..."]) -> float:
    """Returns the height of a picture as a multiple of its width.

    Args:
        picture: of any shape that begins with height and width.

    Example:
        >>> tallness(np.zeros((128, 64, 3)))
        2.0
    """
    height, width = np.shape(picture)[:2]
    return height / width
