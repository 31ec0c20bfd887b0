"""The report of a study: report.md, report.csv, report.html and figures/*.png in its folder."""

from __future__ import annotations

import html
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mnist_dist.benchmarks.analysis.study import Analysis
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.report.csv_table import render_csv
from mnist_dist.benchmarks.report.definitions import needed_definitions
from mnist_dist.benchmarks.report.figures.draw import draw_all
from mnist_dist.benchmarks.report.figures.drawing import Picture
from mnist_dist.benchmarks.report.findings import Caveat, Findings, collect_findings
from mnist_dist.benchmarks.report.html import render_html
from mnist_dist.benchmarks.report.main_table import main_table, main_table_in_parts, render_terminal_table
from mnist_dist.benchmarks.report.sections import Section, build_sections, prediction_section
from mnist_dist.benchmarks.report.table import TERMINAL_WIDTH, escape_markdown, render_terminal
from mnist_dist.benchmarks.report.table import render_markdown as render_markdown_table
from mnist_dist.errors import UserError
from mnist_dist.files import atomic_write, write_text, writing

FIGURES = "figures"


@dataclass(frozen=True)
class Report:
    """What was written, and what to print.

    Attributes:
        html: the page; report.md, report.csv and figures/ lie beside it.
        terminal_text: throughput against accuracy, and the warnings; with colours if the output is a terminal.
    """

    html: Path
    terminal_text: str


def write_report(folder: Path, records: Sequence[Record], warnings: Sequence[str] = ()) -> Report:
    """Analyses the records of a study and writes what it says; each file is whole or not there.

    Args:
        folder: where the report goes; an older one there is replaced.
        warnings: further ones for the top of the report, a sentence each.

    Raises:
        UserError: there are no records, or the folder cannot be written.
    """
    if not records:
        raise UserError(f"--results: no records in '{folder}', expected at least one; run a suite with it first.")
    folder = Path(folder)
    analysis = Analysis(records)
    findings = collect_findings(analysis, warnings)
    sections, pictures = build_sections(analysis), draw_all(analysis)
    page = folder / "report.html"
    with writing(folder):
        for picture in pictures:
            with atomic_write(folder / FIGURES / f"{picture.name}.png") as file:
                file.write(picture.png)
        write_text(folder / "report.md", render_markdown(analysis, findings, sections, pictures))
        write_text(folder / "report.csv", render_csv(analysis.trained))
        tables = list(main_table_in_parts(analysis.main_cases, grouped=True))
        definitions = needed_definitions(main_table(analysis.main_cases), sections)
        write_text(page, render_html(findings, tables, sections, pictures, definitions))
        for figure in (folder / FIGURES).glob("*.png"):
            if figure.stem not in {picture.name for picture in pictures}:
                figure.unlink()  # Of an earlier report.
    return Report(page, render_terminal_text(analysis, findings, sections, colour=sys.stdout.isatty()))


def render_terminal_text(
    analysis: Analysis, findings: Findings, sections: Sequence[Section], colour: bool = False
) -> str:
    """Returns the main table and that of input pipelines that differ, or all tables where nothing was trained, what
    came out, and the warnings."""
    cases = analysis.main_cases
    parts = [render_terminal_table(cases, TERMINAL_WIDTH, colour)] if cases else []
    for section in sections:
        if not cases or section.on_terminal:
            parts += [render_terminal(table, TERMINAL_WIDTH, colour) for table in section.tables if not table.folded]
    warnings = [
        textwrap.fill(caveat.text, TERMINAL_WIDTH, initial_indent="! ", subsequent_indent="  ")
        for caveat in findings.caveats
    ]
    result = [textwrap.fill(sentence, TERMINAL_WIDTH) for sentence in findings.result]
    return "\n\n".join(filter(None, [*parts, "\n".join(result), "\n".join(warnings)]))


def render_predictions(records: Sequence[Record], colour: bool = False) -> str:
    """Returns, for a terminal, what the models say of each curve of a study.

    Raises:
        UserError: there is no curve.
    """
    analysis = Analysis(records)
    if not analysis.predictions:
        raise UserError(
            "DIR: its records hold no scaling curve, expected steady runs of `single` on one device and of a strategy "
            "on several, with equal cores and settings; run the suite scaling."
        )
    section = prediction_section(analysis.predictions, len(analysis.curves))
    overview, *forecasts = [render_terminal(table, TERMINAL_WIDTH, colour) for table in section.tables] or [""]
    points = [textwrap.fill(f"- {point}", width=TERMINAL_WIDTH, subsequent_indent="  ") for point in section.points]
    return "\n\n".join(filter(None, [*forecasts, overview, "\n".join(points)]))


def render_markdown(
    analysis: Analysis, findings: Findings, sections: Sequence[Section], pictures: Sequence[Picture]
) -> str:
    """Returns report.md, whose pictures lie in figures/ beside it."""
    by_name = {picture.name: picture for picture in pictures}
    blocks = [f"# {escape_markdown(findings.title)}", *map(escape_markdown, (findings.origin, *findings.result))]
    if analysis.main_cases:
        blocks += ["## Results", *_markdown_pictures(("throughput_accuracy", "time_to_accuracy"), by_name)]
        for table in main_table_in_parts(analysis.main_cases):
            blocks += [f"### {table.caption}", render_markdown_table(table)]
    if findings.caveats:
        blocks += ["## Warnings", "\n".join(map(_markdown_caveat, findings.caveats))]
    for section in sections:
        blocks += _markdown_section(section, by_name)
    blocks.append("## How to read this")
    for definition in needed_definitions(main_table(analysis.main_cases), sections):
        blocks.append(f"**{definition.term}**: {' '.join(map(escape_markdown, (definition.text, definition.source)))}")
    blocks.append("## What was measured, when and where")
    blocks.append("\n".join(f"- {name}: {escape_markdown(value)}" for name, value in findings.facts))
    return "\n\n".join(block.strip() for block in blocks) + "\n"


def _markdown_section(section: Section, pictures: dict[str, Picture]) -> Iterator[str]:
    yield f"## {section.title}"
    if section.points:
        yield "\n".join(f"- {escape_markdown(point)}" for point in section.points)
    yield from _markdown_pictures(section.pictures, pictures)
    for table in section.tables:
        text = render_markdown_table(table)
        if table.folded:
            yield f"<details><summary>{html.escape(table.caption)}</summary>\n\n{text}\n\n</details>"
        else:
            yield f"{escape_markdown(table.caption)}:\n\n{text}"


def _markdown_pictures(names: Sequence[str], pictures: dict[str, Picture]) -> Iterator[str]:
    for name in names:
        if name in pictures:
            yield f"![{escape_markdown(pictures[name].alternative)}]({FIGURES}/{name}.png)"
            yield escape_markdown(pictures[name].caption)


def _markdown_caveat(caveat: Caveat) -> str:
    if not caveat.details:
        return f"- {escape_markdown(caveat.text)}"
    # Within <pre>, Markdown changes nothing; it must start on a line of its own, indented like the list's text.
    lines = [html.escape(line) for line in caveat.details]
    text = "\n".join(f"  {line}" for line in ("<details><summary>output</summary><pre>", *lines, "</pre></details>"))
    return f"- {escape_markdown(caveat.text)}\n{text}"
