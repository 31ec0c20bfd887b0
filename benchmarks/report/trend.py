"""Trends for a terminal and as a page: what the words and charts of templates/trend.* need."""

from collections.abc import Sequence
from datetime import date
from itertools import pairwise, zip_longest
from typing import Any

import numpy as np

from mnist_dist.benchmarks.analysis.trend import Trend
from mnist_dist.benchmarks.labels import label_briefly
from mnist_dist.benchmarks.report.pages import render_template
from mnist_dist.benchmarks.statistics.change_points import FEWEST_VALUES

MOST_CHARTS, MOST_MARKS = 60, 500  # Of a page, and of a chart, where a mark then spans several studies.
WIDTH, HEIGHT = 560, 150  # Of a chart's plane, in units of its view box.
PERCENTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # Between two lines of a chart, of which there are five at most.


def render_trends(trends: Sequence[Trend]) -> tuple[str, str]:
    """Returns the text for a terminal, whose first line is the verdict, and the page."""
    settings = [trend.setting for trend in trends]
    shared, labels = label_briefly([(each.case, each.gpus) for each in settings])
    if len({each.machine for each in settings}) > 1:
        labels = [f"{label} ({each.machine})" for label, each in zip(labels, settings, strict=True)]
    charts = [_chart(trend) if trend.days[1:] else None for trend in trends[:MOST_CHARTS]]
    rows = list(zip_longest(labels, trends, charts))
    content = {"rows": rows, "shared": shared, "fewest": FEWEST_VALUES}
    return render_template("trend.txt.j2", **content).strip(), render_template("trend.html.j2", **content)


def _chart(trend: Trend) -> dict[str, Any]:
    """Returns where things are in a plane of WIDTH x HEIGHT: rates in percent of the first level, over the days."""
    days = np.array([date.fromisoformat(each).toordinal() for each in trend.days])
    percent = 100 * np.exp(trend.log_rates - trend.log_rates[: trend.edges[1]].mean())
    low, high = np.quantile(percent, [0.002, 0.998]) + np.array([-1, 1])  # A few wild ones stand on the edge.
    step = next(each for each in PERCENTS if (high - low) / each <= 5 or each == PERCENTS[-1])
    x = WIDTH * (days - days[0]) / max(days[-1] - days[0], 1)
    y = HEIGHT * np.clip((high - percent) / (high - low), 0, 1)
    share = -(-len(days) // MOST_MARKS)  # Studies of one mark.
    marks = [slice(start, start + share) for start in range(0, len(days), share)]
    lines = range(int(low // step + 1) * step, int(high) + 1, step)
    return {
        "lines": [(each, HEIGHT * (high - each) / (high - low)) for each in lines],
        "marks": [(x[each].mean(), y[each].min(), y[each].max()) for each in marks],
        "levels": [(x[low], x[high - 1], y[low:high].mean()) for low, high in pairwise(trend.edges)],
    }
