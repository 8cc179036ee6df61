"""Result tables: one description that the HTML page, the terminal and Markdown files show alike."""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

_MISSING = "—"


@dataclass(frozen=True)
class Measure:
    """A figure with its 95 % interval.

    Attributes:
        value: the figure; NaN is shown as missing.
        low: lower end of the interval, or None without one.
        high: upper end of the interval, or None without one.

    Example:
        >>> Measure(0.6, 0.5, 0.7)
        Measure(value=0.6, low=0.5, high=0.7)
    """

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Column:
    """A column of figures.

    Attributes:
        name: its heading.
        best: "max" or "min" where the best figure is to be marked, else None.
        decimals: digits after the point.
        percent: whether the figures are fractions that are shown in percent.

    Example:
        >>> Column("Top-1", best="max", percent=True).name
        'Top-1'
    """

    name: str
    best: str | None = None
    decimals: int = 1
    percent: bool = False

    def __post_init__(self):
        if self.best not in (None, "max", "min"):
            raise ValueError(f'best must be "max", "min" or None, got {self.best!r}')


Cell = Measure | float | int | str | None


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: its label, such as a method.
        cells: one for each column: a figure with or without an interval, a text, or None where there is none.
        muted: whether it stands back, as baselines do; its figures still compete for the best.

    Example:
        >>> Row("Dist-CAM", [Measure(0.55, 0.53, 0.57)]).name
        'Dist-CAM'
    """

    name: str
    cells: Sequence[Cell]
    muted: bool = False


@dataclass(frozen=True)
class Table:
    """A table of figures.

    Attributes:
        title: its heading.
        columns: the columns after the first, which holds the rows' names.
        rows: the rows, from top to bottom.
        note: a sentence below the table.

    Raises:
        ValueError: where a row has more or fewer cells than the table has columns.

    Example:
        >>> Table("Accuracy", [Column("Top-1")], [Row("ours", [0.5])]).title
        'Accuracy'
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    note: str = ""

    def __post_init__(self):
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(f"row {row.name!r} has {len(row.cells)} cells for {len(self.columns)} columns")


@dataclass(frozen=True)
class CellText:
    """A cell as it is shown: the figure, the interval in its own style, and whether it is the best of its column."""

    value: str
    interval: str = ""
    best: bool = False


def wilson_interval(successes: int, total: int, *, z: float = 1.96) -> Measure:
    """Returns a proportion with its Wilson score interval, which stays sound near 0, near 1 and for few samples.

    Args:
        successes: number of hits, from 0 to total.
        total: number of trials; 0 gives NaN without an interval.
        z: quantile of the normal distribution; 1.96 for 95 %.

    Returns:
        The proportion and its interval, within [0, 1].

    Raises:
        ValueError: where not 0 <= successes <= total.

    References:
        Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927.

    Example:
        >>> measure = wilson_interval(8, 10)
        >>> measure.value, round(measure.low, 3), round(measure.high, 3)
        (0.8, 0.49, 0.943)
    """
    if not 0 <= successes <= total:
        raise ValueError(f"successes must be in [0, total], got {successes} of {total}")
    if total == 0:
        return Measure(math.nan)
    share = successes / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # rounding may leave an end past 0, 1 or the proportion itself
    return Measure(share, max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share)))


def table_texts(table: Table) -> list[list[CellText]]:
    """Formats the cells of a table and marks the best figure of each column (all of them where they tie).

    Args:
        table: the table.

    Returns:
        One list a row, one text a column.

    Example:
        >>> table_texts(Table("", [Column("Top-1", best="max", percent=True)], [Row("a", [0.5]), Row("b", [0.25])]))
        [[CellText(value='50.0', interval='', best=True)], [CellText(value='25.0', interval='', best=False)]]
    """
    columns = []
    for index, column in enumerate(table.columns):
        texts = [_cell_text(row.cells[index], column) for row in table.rows]
        figures = [_figure(row.cells[index]) for row in table.rows]
        known = [figure for figure in figures if figure is not None]
        if column.best is None or len(known) < 2:
            columns.append(texts)
            continue
        best = max(known) if column.best == "max" else min(known)
        # figures that print alike are equally good to the reader
        shown = _cell_text(best, column).value
        columns.append(
            [
                CellText(text.value, text.interval, figure is not None and text.value == shown)
                for text, figure in zip(texts, figures, strict=True)
            ]
        )
    return [list(cells) for cells in zip(*columns, strict=True)] if columns else [[] for _ in table.rows]


def _figure(cell: Cell) -> float | None:
    """Returns the number of a cell, or None for a text, a missing cell or NaN."""
    value = cell.value if isinstance(cell, Measure) else cell
    return None if value is None or isinstance(value, str) or math.isnan(value) else float(value)


def _cell_text(cell: Cell, column: Column) -> CellText:
    """Formats one cell."""
    if isinstance(cell, str):
        return CellText(cell)
    figure = _figure(cell)
    if figure is None:
        return CellText(_MISSING)
    if isinstance(cell, int) and not column.percent:
        return CellText(f"{cell:,}")
    scale = 100.0 if column.percent else 1.0
    value = f"{figure * scale:.{column.decimals}f}"
    if not isinstance(cell, Measure) or cell.low is None or cell.high is None:
        return CellText(value)
    below, above = (figure - cell.low) * scale, (cell.high - figure) * scale
    if math.isclose(below, above, rel_tol=1e-6, abs_tol=1e-9):
        return CellText(value, f"± {above:.{column.decimals}f}")
    return CellText(value, f"[{cell.low * scale:.{column.decimals}f}, {cell.high * scale:.{column.decimals}f}]")


def format_table(table: Table, *, markdown: bool = False) -> str:
    """Formats a table as text, with the same figures as the page.

    Args:
        table: the table.
        markdown: gives a Markdown table, with the best figures in bold; otherwise aligned columns for the terminal,
            with a star after the best.

    Returns:
        The text, ending in a line break.

    Example:
        >>> table = Table("Boxes, %", [Column("GT-known", best="max", percent=True)],
        ...               [Row("CAM", [Measure(0.5, 0.4, 0.6)]), Row("Dist-CAM", [Measure(0.62, 0.5, 0.7)])])
        >>> print(format_table(table))
        Boxes, %
                    GT-known
        --------  ------------------
        CAM       50.0  ± 10.0
        Dist-CAM  62.0* [50.0, 70.0]
    """
    texts = table_texts(table)
    names = [_plain(row.name) for row in table.rows]
    return _markdown(table, names, texts) if markdown else _terminal(table, names, texts)


def _markdown(table: Table, names: list[str], texts: list[list[CellText]]) -> str:
    """Formats a table as Markdown."""

    def escape(text: str) -> str:
        return _plain(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")

    def cell(text: CellText) -> str:
        value = f"**{escape(text.value)}**" if text.best else escape(text.value)
        return f"{value} {escape(text.interval)}".strip()

    lines = [f"**{escape(table.title)}**", ""] if table.title else []
    lines.append(" | ".join(["|  ", *(escape(column.name) for column in table.columns)]) + " |")
    lines.append("|:---|" + "---:|" * len(table.columns))
    for name, row in zip(names, texts, strict=True):
        lines.append(" | ".join([f"| {escape(name)}", *map(cell, row)]) + " |")
    lines += ["", escape(table.note)] if table.note else []
    return "\n".join(lines) + "\n"


def _terminal(table: Table, names: list[str], texts: list[list[CellText]]) -> str:
    """Formats a table with aligned columns: figures to the right, intervals in a column of their own."""
    columns = [[_pad("", max(map(_width, ["", *names]))), *(names)]]
    for index, column in enumerate(table.columns):
        cells = [row[index] for row in texts]
        starred = any(cell.best for cell in cells)
        values = [_plain(cell.value) + ("*" if cell.best else " " * starred) for cell in cells]
        widest = max(map(_width, ["", *values]))
        columns.append([_plain(column.name)])
        for value, cell in zip(values, cells, strict=True):
            columns[-1].append(_pad(value, widest, right=True) + (f" {cell.interval}" if cell.interval else ""))
    widths = [max(map(_width, column)) for column in columns]
    grid = [[column[line] for column in columns] for line in range(len(names) + 1)]
    grid.insert(1, ["-" * width for width in widths])
    lines = ["  ".join(map(_pad, line, widths)).rstrip() for line in grid]
    head = [_plain(table.title)] if table.title else []
    return "\n".join([*head, *lines, *([_plain(table.note)] if table.note else [])]) + "\n"


def _plain(text: str) -> str:
    """Replaces line breaks and control characters, which could take over a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _width(text: str) -> int:
    """Returns how many terminal cells a text takes; East Asian letters take two."""
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text
    )


def _pad(text: str, width: int, *, right: bool = False) -> str:
    """Fills a text up to a width in terminal cells."""
    fill = " " * (width - _width(text))
    return fill + text if right else text + fill
