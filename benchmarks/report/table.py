"""A table, and how it looks on a terminal and as Markdown; templates/report.html.j2 shows the same on the page."""

import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from mnist_dist.benchmarks.labels import MISSING, label_range
from mnist_dist.benchmarks.statistics.stats import Estimate

Item = TypeVar("Item")

MISSING_ORDER = math.inf  # Sorts behind every number.
TERMINAL_WIDTH = 120
WRAPPED_WIDTH = 8  # To which text may be wrapped, numbers never.
MANY_COLUMNS = 10  # More stand closer to each other.
TERMINAL_STYLES = {MISSING: "dim", "skipped": "dim", "unstable": "yellow", "failed": "red"}
MARKS = {"plain": "", "strong": "**", "code": "`"}


@dataclass(frozen=True)
class Cell:
    """What a table shows: a value, what qualifies it, and by what it sorts (a number or text)."""

    text: str = MISSING
    detail: str = ""
    order: float | str = MISSING_ORDER
    style: Literal["plain", "strong", "code"] = "plain"

    @property
    def line(self) -> str:
        return f"{self.text} ({self.detail})" if self.detail else self.text


@dataclass(frozen=True)
class Column(Generic[Item]):
    """One column, and what it shows of an item."""

    head: str
    cell: Callable[[Item], Cell | str]
    unit: str = ""
    group: str = ""
    numeric: bool = True  # Whether it stands on the right.
    telling: bool = False  # Whether it is shown only where it tells items apart.
    minor: bool = False  # Whether a narrow page leaves it out.


@dataclass(frozen=True)
class Table:
    """Cells by row and column, the first of each row naming it; `folded` is shown on demand only."""

    columns: Sequence[Column[Any]]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    folded: bool = False


def make_table(
    columns: Iterable[Column[Item]], items: Iterable[Item], caption: str = "", folded: bool = False
) -> Table:
    """Returns a row for each item, without the columns that say nothing of any of them."""
    items = list(items)
    filled = [(column, [_as_cell(column.cell(item)) for item in items]) for column in columns]
    shown = [(column, cells) for column, cells in filled if not items or _says_something(column, cells)]
    rows = list(zip(*(cells for _, cells in shown), strict=True))
    return Table([column for column, _ in shown], rows, caption, folded)


def _as_cell(content: Cell | str) -> Cell:
    """A text sorts by itself; an empty one says nothing."""
    if isinstance(content, Cell):
        return content
    return Cell(content, order=content) if content else Cell()


def _says_something(column: Column[Any], cells: Sequence[Cell]) -> bool:
    texts = {cell.text for cell in cells}
    return len(texts) > 1 if column.telling else bool(texts - {MISSING})


def number_cell(value: float | None, form: Callable[[float], str]) -> Cell:
    return Cell() if value is None or math.isnan(value) else Cell(form(value), order=value)


def estimate_cell(estimate: Estimate | None, form: Callable[[float], str]) -> Cell:
    """Returns the value with its interval, where that is known and not empty."""
    if estimate is None:
        return Cell()
    interval = "" if estimate.low == estimate.high else label_range(estimate.low, estimate.high, form)
    return Cell(form(estimate.value), interval, estimate.value)


def render_terminal(table: Table, width: int = TERMINAL_WIDTH, colour: bool = False) -> str:
    """Returns a table whose rows take one line each where `width` columns suffice; no number is ever cut."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as Drawing
    from rich.text import Text

    many = len(table.columns) > MANY_COLUMNS
    gap = 0 if many else 1  # One more comes from the box.
    drawn = Drawing(box=SIMPLE_HEAD, padding=(0, gap, 0, 0), pad_edge=False, show_edge=False)
    widths = []
    for index, column in enumerate(table.columns):
        head = Text(column.head, style="bold").append(f"\n{column.unit}" if column.unit else "", "not bold dim")
        widths.append(_least_width([row[index].line for row in table.rows], column.numeric))
        most = max(widths[-1], WRAPPED_WIDTH) if many and not column.numeric else None
        side: Literal["right", "left"] = "right" if column.numeric else "left"
        drawn.add_column(head, justify=side, overflow="fold", min_width=widths[-1], max_width=most)
    for row in table.rows:
        drawn.add_row(*(Text(cell.line, _terminal_style(cell)) for cell in row))
    console = Console(
        file=io.StringIO(),
        width=max(width, sum(widths) + len(widths) * (gap + 1)),  # Rather too wide than without a column.
        force_terminal=colour,
        color_system="standard" if colour else None,
    )
    with console.capture() as capture:
        if table.caption:
            console.print(Text(table.caption, style="bold"))
        console.print(drawn)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _terminal_style(cell: Cell) -> str:
    return "bold" if cell.style == "strong" else TERMINAL_STYLES.get(cell.text, "")


def _least_width(texts: Sequence[str], is_numeric: bool) -> int:
    longest = max(map(len, texts), default=0)
    longest_word = max((len(word) for text in texts for word in text.split()), default=0)
    return longest if is_numeric else max(longest_word, min(longest, WRAPPED_WIDTH))


def render_markdown(table: Table) -> str:
    """Returns the table without its caption; what the cells hold is escaped."""
    heads = [column.head + (f" ({column.unit})" if column.unit else "") for column in table.columns]
    sides = ["---:" if column.numeric else "---" for column in table.columns]
    rows = [[_markdown_cell(cell) for cell in row] for row in table.rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, sides, *rows])


def _markdown_cell(cell: Cell) -> str:
    mark = MARKS[cell.style]
    return mark + escape_markdown(cell.text) + mark + (f" ({escape_markdown(cell.detail)})" if cell.detail else "")


def escape_markdown(text: str) -> str:
    """Returns one line that shows any text as it is, with no markup or HTML of its own."""
    line = " ".join(text.split())
    for mark in "\\`*_[]|~":
        line = line.replace(mark, "\\" + mark)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
