"""Trends as read on a terminal and on the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest

from mnist_dist.benchmarks.analysis.trend import Setting, Summaries, Trend, find_trends
from mnist_dist.benchmarks.analysis.trend import Study as StudySummary
from mnist_dist.benchmarks.command import main
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.report.trend import MOST_CHARTS, MOST_MARKS, render_trends
from tests.benchmarks.analysis.test_trend import write_nights

ANY = r"[-+]\d\.\d"


def trends(levels: Sequence[Sequence[float]], fact: str = "6.2") -> list[Trend]:
    """Returns a case for each row of times, one study a day, with another kernel where they are not 1."""
    rng, settings, studies = np.random.default_rng(0), {}, {}
    for number in range(len(levels)):
        case = Case(global_batch_size=100 * (number + 1))
        for key, kernel in ((f"{number}", "6.1"), (f"{number} new", fact)):
            settings[key] = Setting(case=case, gpus=False, machine="m", facts={"kernel": kernel})
    for night in range(max(map(len, levels))):
        day = (date(2020, 1, 1) + timedelta(days=night)).isoformat()
        points = [
            (f"{number}{' new' * (row[night] != 1)}", float(0.002 * rng.standard_normal() - np.log(row[night])), "n1")
            for number, row in enumerate(levels)
            if night < len(row)
        ]
        studies[day] = StudySummary(stamp="", started_at=f"{day}T02:00:00+00:00", points=points)
    return find_trends(Summaries(settings=settings, studies=studies))


def test_the_verdict_comes_first_and_then_what_changed_last() -> None:
    text, page = render_trends(trends([[1.0] * 60, [1.0] * 40 + [1.1] * 20, [1.0] * 30 + [0.9] * 30]))
    verdict, *lines = text.splitlines()
    assert verdict == "2 of 3 cases changed; slower: 200 images; faster: 300 images"
    slower, faster = lines
    interval = rf"\({ANY} to {ANY}\)"
    told = r"what else changed: kernel 6\.1 → 6\.2"
    assert re.fullmatch(rf"200 images: slower: -9\.\d % {interval} since 2020-02-10; {told}", slower), slower
    assert re.fullmatch(rf"300 images: faster: \+1\d\.\d % \(\S+ to \S+\) since 2020-01-31; {told}", faster), faster
    assert verdict in page and page.count("<svg") == 3
    assert page.index("<h3>200 images") < page.index("<h3>300 images") < page.index("<h3>100 images")


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ([[1.0] * 30] * 2, "0 of 2 cases changed"),
        ([[1.0] * 5], "Nothing can be judged: none of 1 case has a rate in 20 studies"),
        ([[1.0] * 5, [1.0] * 30], "0 of 2 cases changed\n100 images: not judged: rates in 5 studies, 20 needed"),
    ],
)
def test_where_nothing_changed(levels: list[list[float]], said: str) -> None:
    assert said in render_trends(trends(levels))[0]


def test_what_a_record_holds_cannot_become_markup() -> None:
    text, page = render_trends(trends([[1.0] * 40 + [1.1] * 20], fact="<script>&"))
    assert "6.1 → <script>&" in text
    assert "<script" not in page and "6.1 → &lt;script&gt;&amp;" in page
    assert "default-src 'none'" in page and " style=" not in page


def test_what_there_is_no_room_for_is_folded() -> None:
    many = trends([[1.0] * 3] * (MOST_CHARTS + 5))
    assert render_trends(many)[1].count("<svg") == MOST_CHARTS
    assert len(re.findall(r"<li>\d+ images: too few, 3 studies", render_trends(many)[1])) == 5
    (marks,) = re.findall(r'class="marks" d="([^"]*)"', render_trends(trends([[1.0] * 999]))[1])
    assert marks.count("M") == 500 <= MOST_MARKS


@pytest.mark.parametrize(("levels", "code"), [([1.0] * 10, 3), ([1.0] * 30, 0), ([1.0] * 40 + [1.2] * 10, 1)])
def test_the_command(levels: list[float], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_nights(tmp_path, levels)
    assert main(["trend", str(tmp_path)]) == code
    first, *_ = capsys.readouterr().out.splitlines()
    page = (tmp_path / "trend.html").read_text()
    assert first in page
    (tmp_path / "trend.html").unlink()
    (tmp_path / "trend.html").mkdir()
    assert main(["trend", str(tmp_path)]) == code, "the verdict needs no page"
    assert "trend.html: not written: " in capsys.readouterr().err


def test_many_cases_without_studies_enough_take_one_line() -> None:
    text, _ = render_trends(trends([[1.0] * 3] * 4 + [[1.0] * 30]))
    assert text == "0 of 5 cases changed\n4 cases not judged: rates in at most 3 studies, 20 needed"
