"""How to read the report: what each of its words means, from definitions.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from mnist_dist.benchmarks.report.sections import Section
    from mnist_dist.benchmarks.report.table import Table


@dataclass(frozen=True)
class Definition:
    """What a word means; `shown_with` is a section, a picture, or a column or group of columns of the main table."""

    term: str
    shown_with: str
    text: str
    source: str = ""


def needed_definitions(table: Table, sections: Sequence[Section]) -> list[Definition]:
    """Returns those of what a report shows."""
    shown = {name for section in sections for name in (section.name, *section.pictures)}
    shown |= {name for column in table.columns for name in (column.head, column.group)}
    text = (resources.files("mnist_dist.benchmarks.report") / "definitions.yaml").read_text(encoding="utf-8")
    return [Definition(**each) for each in yaml.safe_load(text) if each["shown_with"] in shown]
