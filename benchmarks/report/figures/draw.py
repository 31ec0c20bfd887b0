"""The report's pictures. Each function returns one, or None where the study has no data for it."""

from mnist_dist.benchmarks.analysis.study import Analysis
from mnist_dist.benchmarks.report.figures import accuracy, all_reduces, losses, scaling, step_times
from mnist_dist.benchmarks.report.figures.drawing import Picture


def draw_all(analysis: Analysis) -> list[Picture]:
    """Returns the pictures for which the study has data."""
    import matplotlib

    cases = analysis.main_cases
    with matplotlib.rc_context({"text.parse_math": False}):  # A setting may hold a dollar sign.
        drawn = [
            accuracy.draw_accuracy(cases),
            accuracy.draw_time_to_accuracy(cases),
            accuracy.draw_rates(cases),
            scaling.draw_throughput(analysis.curves),
            scaling.draw_efficiency(analysis.curves),
            losses.draw_losses(analysis.attributions),
            step_times.draw_step_times(analysis.summaries),
            scaling.draw_predictions(analysis.predictions),
            all_reduces.draw_all_reduces(analysis.all_reduces),
        ]
    return [picture for picture in drawn if picture]
