"""The report of a study: report.md, report.csv, report.html and figures/*.png in its folder."""

import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from mnist_dist.benchmarks.analysis.study import Analysis
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.report.csv_table import render_csv
from mnist_dist.benchmarks.report.figures.draw import draw_all
from mnist_dist.benchmarks.report.figures.drawing import Picture
from mnist_dist.benchmarks.report.findings import Findings, collect_findings
from mnist_dist.benchmarks.report.main_table import main_table, main_table_in_parts, render_terminal_table
from mnist_dist.benchmarks.report.pages import read_resource, render_template
from mnist_dist.benchmarks.report.sections import Section, build_sections, prediction_section
from mnist_dist.benchmarks.report.table import TERMINAL_WIDTH, render_terminal
from mnist_dist.errors import UserError
from mnist_dist.files import atomic_write, write_text, writing


class Report(NamedTuple):
    """What was written, and what to print."""

    html: Path  # The page; report.md, report.csv and figures/ lie beside it.
    terminal_text: str  # Throughput against accuracy, and the warnings; with colours if the output is a terminal.


def write_report(folder: Path, records: Sequence[Record], warnings: Sequence[str] = ()) -> Report:
    """Analyses the records of a study and replaces the report in a folder; each file is whole or not there.

    Args:
        warnings: further ones for the top of the report, a sentence each.

    Raises:
        UserError: there are no records, or the folder cannot be written.
    """
    if not records:
        raise UserError(f"--results: no records in '{folder}', expected at least one; run a suite with it first.")
    analysis = Analysis(records)
    findings = collect_findings(analysis, warnings)
    sections, pictures = list(build_sections(analysis)), draw_all(analysis)
    page = folder / "report.html"
    with writing(folder):
        for picture in pictures:
            with atomic_write(folder / "figures" / f"{picture.name}.png") as file:
                file.write(picture.png)
        write_text(folder / "report.md", render_report("report.md.j2", analysis, findings, sections, pictures))
        write_text(folder / "report.csv", render_csv(analysis.trained))
        write_text(page, render_report("report.html.j2", analysis, findings, sections, pictures))
        for figure in (folder / "figures").glob("*.png"):
            if figure.stem not in {picture.name for picture in pictures}:
                figure.unlink()  # Of an earlier report.
    return Report(page, render_terminal_text(analysis, findings, sections, colour=sys.stdout.isatty()))


def render_report(
    template: str, analysis: Analysis, findings: Findings, sections: Sequence[Section], pictures: Sequence[Picture]
) -> str:
    """Returns report.md or report.html, each from its template.

    The page sorts and filters the first part of the main table, whose first column names the strategy, and folds the
    others. What its words mean is in definitions.yaml: `shown_with` is a section, a picture, or a column or group of
    columns of the main table.
    """
    trained = analysis.main_cases
    shown = {name for section in sections for name in (section.name, *section.pictures)}
    if trained:
        shown |= {name for column in main_table(trained).columns for name in (column.head, column.group)}
    definitions = [{"source": ""} | each for each in yaml.safe_load(read_resource("definitions.yaml"))]
    return render_template(
        template,
        findings=findings,
        cases=list(main_table_in_parts(trained, grouped=template.endswith(".html.j2"))) if trained else [],
        sections=sections,
        pictures={picture.name: picture for picture in pictures},
        definitions=[each for each in definitions if each["shown_with"] in shown],
    )


def render_terminal_text(
    analysis: Analysis, findings: Findings, sections: Iterable[Section], colour: bool = False
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
