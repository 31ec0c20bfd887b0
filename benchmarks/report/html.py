"""The report as one HTML page that needs no network, and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
import math
from importlib import resources
from itertools import groupby
from typing import TYPE_CHECKING, Any

from mnist_dist.benchmarks.report.table import Cell, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mnist_dist.benchmarks.report.definitions import Definition
    from mnist_dist.benchmarks.report.figures.drawing import Picture
    from mnist_dist.benchmarks.report.findings import Findings
    from mnist_dist.benchmarks.report.sections import Section


def render_html(
    findings: Findings,
    cases: Sequence[Table],
    sections: Sequence[Section],
    pictures: Sequence[Picture],
    definitions: Sequence[Definition],
) -> str:
    """Returns the page. All text from records is escaped; script and style are allowed by their hashes only.

    Args:
        cases: the parts of the main table. The page sorts and filters the first, whose first column names the
            strategy, and folds the others.
    """
    return render_template(
        "report.html.j2",
        findings=findings,
        cases=cases,
        strategies=list(dict.fromkeys(row[0].text for table in cases[:1] for row in table.rows)),
        sections=sections,
        pictures={picture.name: picture for picture in pictures},
        definitions=definitions,
        groups=_groups,
        order=_order,
        words=_words,
        data_uri=_data_uri,
    )


def render_template(name: str, **content: Any) -> str:
    """Returns what a template makes of the content, of the style and script of reports, and of their hashes."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mnist_dist.benchmarks.report"),
        autoescape=name.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    style, script = _read("report.css"), _read("report.js")
    hashes = {"style_hash": _hash(style), "script_hash": _hash(script)}
    return environment.get_template(name).render(**content, **hashes, style=style, script=script)


def _read(name: str) -> str:
    return (resources.files("mnist_dist.benchmarks.report") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _groups(table: Table) -> list[tuple[str, int]]:
    """Returns each group of columns and how many it has; none where the columns have no groups."""
    groups = [(name, len(list(of_group))) for name, of_group in groupby(column.group for column in table.columns)]
    return [] if [name for name, _ in groups] == [""] else groups


def _words(table: Table, cells: Sequence[Cell]) -> str:
    """What the page finds a row by: what names the case, and what is no number, such as `unstable`."""
    pairs = zip(table.columns, cells, strict=True)
    return " ".join(cell.line for column, cell in pairs if column.group == "Case" or _order(cell) == "")


def _order(cell: Cell) -> Any:
    """What the page sorts a cell by; empty sorts behind all."""
    missing = isinstance(cell.order, float) and not math.isfinite(cell.order)
    return "" if missing else cell.order


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
