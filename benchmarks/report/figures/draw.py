"""The report's pictures. Each function returns one, or None where the study has no data for it."""

from mnist_dist.benchmarks.analysis.study import Analysis
from mnist_dist.benchmarks.report.figures.accuracy import draw_accuracy, draw_time_to_accuracy
from mnist_dist.benchmarks.report.figures.all_reduces import draw_all_reduces
from mnist_dist.benchmarks.report.figures.drawing import Picture
from mnist_dist.benchmarks.report.figures.losses import draw_losses
from mnist_dist.benchmarks.report.figures.scaling import draw_efficiency, draw_predictions, draw_throughput
from mnist_dist.benchmarks.report.figures.step_times import draw_step_times


def draw_all(analysis: Analysis) -> list[Picture]:
    """Returns the pictures for which the study has data."""
    import matplotlib

    cases = analysis.main_cases
    with matplotlib.rc_context({"text.parse_math": False}):  # A setting may hold a dollar sign.
        drawn = [
            draw_accuracy(cases),
            draw_time_to_accuracy(cases),
            draw_throughput(analysis.curves),
            draw_efficiency(analysis.curves),
            draw_losses(analysis.attributions),
            draw_step_times(analysis.summaries),
            draw_predictions(analysis.predictions),
            draw_all_reduces(analysis.all_reduces),
        ]
    return [picture for picture in drawn if picture]
