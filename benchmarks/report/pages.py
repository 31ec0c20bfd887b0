"""Pages and texts from templates; a page needs no network, and runs no script but its own."""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import math
from importlib import resources
from itertools import groupby
from typing import TYPE_CHECKING, Any

from mnist_dist.benchmarks.report.table import Cell, Table, escape_markdown, render_markdown

if TYPE_CHECKING:
    from collections.abc import Sequence

    import jinja2


def render_template(name: str, **content: Any) -> str:
    """Returns what a template makes of some content; that of a page escapes all of it.

    Pages hold the style and script of reports, and allow those only that have their hashes.
    """
    return _environment(name.endswith(".html.j2")).get_template(name).render(**content)


@functools.cache
def _environment(is_page: bool) -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mnist_dist.benchmarks.report"),
        autoescape=jinja2.select_autoescape(default=is_page),  # Of what a page includes, too.
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    style, script = read_resource("templates/report.css"), read_resource("templates/report.js")
    environment.globals |= {"style": style, "style_hash": _hash(style), "script": script, "script_hash": _hash(script)}
    environment.globals |= {"groups": _groups, "order": _order, "words": _words, "data_uri": _data_uri}
    environment.filters |= {"markdown": escape_markdown, "table": render_markdown, "html": html.escape}
    return environment


def read_resource(name: str) -> str:
    """Returns the text of a file beside this module."""
    return (resources.files("mnist_dist.benchmarks.report") / name).read_text(encoding="utf-8")


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
