"""Every case that trains as a line of a CSV file, ablations too, for spreadsheets and other programs."""

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from mnist_dist.benchmarks.analysis.summary import CaseSummary
from mnist_dist.benchmarks.analysis.trained import TrainedCase
from mnist_dist.benchmarks.statistics.stats import Estimate

# A spreadsheet takes text that starts with one of these for a formula.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
VARIANCE = ("deviation_between_runs", "deviation_within_a_run", "runs_needed_for_2_percent")


def render_csv(cases: Sequence[TrainedCase]) -> str:
    """Returns every case that trains, ablations too, with all numbers in full and their units in the names."""
    table = [_csv_fields(each) for each in cases]
    names = list(dict.fromkeys(name for fields in table for name in fields))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    for fields in table:
        writer.writerow({name: _csv_value(value) for name, value in fields.items()})
    return text.getvalue()


def _csv_fields(each: TrainedCase) -> dict[str, Any]:
    summary, case = each.summary, each.case
    fields: dict[str, Any] = case.model_dump(exclude={"settings", "kind"})
    fields["settings"] = json.dumps(case.settings, sort_keys=True)
    fields["images_per_device"] = case.images_per_device
    fields |= {name: summary.measured_setting(name) for name in ("precision", "xla")}
    fields |= {"runs": len(summary.records), "failures": len(summary.failures), "unstable": summary.unstable}
    fields["oversubscribed"] = each.oversubscribed
    fields |= _of_estimate("images_per_second", summary.images_per_second)
    fields |= _of_estimate("images_per_second_per_device", each.images_per_second_per_device)
    fields |= _of_estimate("weak_efficiency", each.weak)
    fields |= _of_estimate("strong_efficiency", each.strong)
    for name, value in zip(VARIANCE, ("between", "within", "repeats_needed"), strict=True):
        fields[name] = getattr(summary.variance, value, None)
    fields |= _of_accuracy(summary)
    for percentile in ("p50", "p95", "p99"):
        fields[f"step_seconds_{percentile}"] = summary.step_seconds.get(percentile)
    fields |= _of_estimate("first_step_seconds", summary.first_step_seconds)
    fields |= _of_estimate("startup_seconds", summary.startup_seconds)
    fields["peak_memory_bytes_of_largest_rank"] = summary.peak_memory_bytes
    fields["peak_gpu_memory_bytes_of_largest_gpu"] = summary.peak_gpu_memory_bytes
    fields |= {"flops_per_image": summary.model_flops_per_image, "mfu": each.mfu}
    fields |= {"gpu_utilisation_percent": summary.gpu_utilisation_percent, "power_watts": summary.power_watts}
    return fields | {"images_per_joule": summary.images_per_joule, "case_id": case.case_id}


def _of_estimate(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    values = (estimate.value, estimate.low, estimate.high) if estimate else (None, None, None)
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def _of_accuracy(summary: CaseSummary) -> dict[str, Any]:
    accuracies = summary.seed_accuracies
    fields: dict[str, Any] = _of_estimate("test_accuracy", summary.test_accuracy) | {
        "test_accuracy_lowest_seed": min(accuracies, default=None),
        "test_accuracy_highest_seed": max(accuracies, default=None),
        "seeds": len(accuracies),
    }
    for target, found in summary.time_to_accuracy.items():
        for name in ("reached", "runs", "median_seconds", "expected_seconds", "median_tracing_seconds"):
            fields[f"to_{100 * target:g}_percent_{name}"] = getattr(found, name)
    return fields


def _csv_value(value: Any) -> Any:
    """A spreadsheet must not run what a record says: https://owasp.org/www-community/attacks/CSV_Injection."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value
