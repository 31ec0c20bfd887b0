import json
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from mnist_dist.benchmarks.records.record import Record, parse_record
from mnist_dist.benchmarks.report.exports import points, run_name, write_mlperf_log, write_tensorboard
from mnist_dist.config import Config
from tests.benchmarks.factory import collectives, input_case, make_study, matmul, train

TRAINED = train("horovod", 2, measure_seconds=None, global_batch_size=256)
TIMED = train("single", 1)


def make_record(**changes: Any) -> Record:
    """Two ranks that train 469 steps, the first of which is in no window, and evaluate at steps 234 and 469."""
    content = make_study([TRAINED], 1)[0].to_json()
    evaluation = {"split": "test", "loss": 0.1}
    content["measurements"] |= {
        "startup_seconds": [4.0, 5.0],
        "first_step_seconds": [1.0, 2.0],
        "window_steps": [58] * 8 + [4],
        "window_seconds": [[0.5] * 8 + [0.04], [0.58] * 8 + [0.02]],
        "evaluations": [
            evaluation | {"step": 234, "training_seconds": 4.4, "evaluation_seconds": 0.5, "accuracy": 0.98},
            evaluation | {"step": 469, "training_seconds": 6.7, "evaluation_seconds": 1.0, "accuracy": 0.99},
        ],
    }
    content["identity"]["config"] = Config().model_dump(mode="json") | changes
    return parse_record(content, "made up")


def read_log(file: Path) -> list[tuple[str, float, Any, dict[str, Any]]]:
    """Key, seconds since the start of the case, value and metadata of each line, through MLPerf's own parser."""
    from mlperf_logging.compliance_checker import mlp_parser

    lines, errors = mlp_parser.parse_file(str(file), ruleset="5.1.0")
    assert errors == []
    began = datetime.fromisoformat(make_record().started_at).timestamp()
    return [
        (line.key, round(line.timestamp / 1000 - began, 3), line.value["value"], line.value["metadata"])
        for line in lines
    ]


def test_the_log_of_a_training(tmp_path: Path) -> None:
    (file,) = write_mlperf_log([make_record()], tmp_path / "logs")
    lines = read_log(file)
    assert {key: value for key, seconds, value, _ in lines if seconds == 0} == {
        "submission_benchmark": "mnist",
        "submission_platform": "1 x (Example CPU @ 2.50GHz, 8 cores)",
        "seed": 0,
        "global_batch_size": 256,
        "gradient_accumulation_steps": 1,
        "opt_name": "adam",
        "train_samples": 60_000,
        "eval_samples": 10_000,
        "init_start": None,
    }
    timed = [(key, seconds, metadata.get("step_num")) for key, seconds, _, metadata in lines if seconds > 0]
    assert timed == [
        ("init_stop", 5.0, None),
        ("run_start", 5.0, None),
        ("block_start", 5.0, 0),
        ("block_stop", 9.4, 234),
        ("eval_start", 9.4, 234),
        ("eval_accuracy", 9.9, 234),
        ("eval_stop", 9.9, 234),
        ("block_start", 9.9, 234),
        ("block_stop", 12.2, 469),
        ("eval_start", 12.2, 469),
        ("eval_accuracy", 12.7, 469),
        ("eval_stop", 12.7, 469),
        ("run_stop", 12.7, 469),
    ]
    accuracies = [(value, metadata) for key, _, value, metadata in lines if key == "eval_accuracy"]
    assert [value for value, _ in accuracies] == [0.98, 0.99]
    assert accuracies[0][1]["epoch_num"] == 1
    assert accuracies[0][1]["samples_count"] == 234 * 256
    assert lines[-1][3]["status"] == "success"


@pytest.mark.parametrize("ruleset", ["5.1.0", "6.0.0"])
def test_the_log_lacks_only_what_would_be_untrue(tmp_path: Path, ruleset: str) -> None:
    """Checked with MLPerf's rules for all benchmarks; those of each benchmark do not know MNIST."""
    from mlperf_logging.compliance_checker.mlp_compliance import make_checker

    (file,) = write_mlperf_log([make_record()], tmp_path)
    checker = make_checker("training", ruleset, quiet=False, werror=True)
    checker.check_file(str(file), f"training_{ruleset}/common.yaml")
    assert checker.not_overwritable == []
    # Which limit holds for the time until init_stop follows from the division.
    assert set(checker.overwritable) == {"submission_org", "submission_division", "cache_clear", "init_stop"}


def test_a_run_without_evaluations_has_one_block(tmp_path: Path) -> None:
    record = make_record()
    (record.measurements or {})["evaluations"].clear()
    (file,) = write_mlperf_log([record], tmp_path)
    timed = [(key, seconds, metadata.get("step_num")) for key, seconds, _, metadata in read_log(file) if seconds > 0]
    assert timed == [
        ("init_stop", 5.0, None),
        ("run_start", 5.0, None),
        ("block_start", 5.0, 0),
        ("block_stop", 11.66, 469),
        ("run_stop", 11.66, 469),
    ]


def test_held_out_images_are_not_trained_on(tmp_path: Path) -> None:
    record = make_record(data={"kind": "mnist", "path": None, "holdout_images": 5000})
    for evaluation in (record.measurements or {})["evaluations"]:
        evaluation["split"] = "holdout"
    (file,) = write_mlperf_log([record], tmp_path)
    values = {key: value for key, _, value, _ in read_log(file)}
    assert (values["train_samples"], values["eval_samples"]) == (55_000, 5000)


@pytest.mark.parametrize("data", [{}, {"kind": "synthetic"}, {"kind": "mnist", "path": "/data/own.npz"}])
def test_the_size_of_other_data_is_not_made_up(tmp_path: Path, data: dict[str, Any]) -> None:
    (file,) = write_mlperf_log([make_record(data=data)], tmp_path)
    text = file.read_text()
    assert "samples_count" in text
    assert not any(key in text for key in ("train_samples", "eval_samples", "epoch_num"))


def test_a_failed_training_is_aborted(tmp_path: Path) -> None:
    records = make_study([TIMED], 2, failing=[TIMED])
    for file, record in zip(write_mlperf_log(records, tmp_path), records, strict=True):
        lines = read_log(file)
        assert [key for key, *_ in lines[-2:]] == ["init_start", "run_stop"]
        metadata = lines[-1][3]
        assert (metadata["status"], metadata["reason"]) == ("aborted", record.reason)
        assert "run_start" not in file.read_text()


def test_only_what_trained_has_a_log(tmp_path: Path) -> None:
    skipped = make_study([TIMED], 1, failing=[TIMED])[0].model_copy(update={"status": "skipped"})
    records = [skipped, *make_study([input_case(), matmul(1), collectives("horovod", 2)], 1)]
    assert write_mlperf_log(records, tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_logs_say_nothing_of_this_machine(tmp_path: Path) -> None:
    (file,) = write_mlperf_log([make_record()], tmp_path)
    assert {json.loads(line.partition(" ")[2])["metadata"]["file"] for line in file.read_text().splitlines()} == {
        "mnist_dist/benchmarks/report/exports.py"
    }


def test_logs_without_the_package(
    tmp_path: Path, user_error: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_logging", None)
    monkeypatch.setitem(sys.modules, "mlperf_logging.mllog", None)
    line = user_error(write_mlperf_log, [make_record()], tmp_path)
    assert line.startswith("mlperf-logging: the package is not installed")
    assert "pip install" in line
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line(
    small_disk: Path, fill: Callable[[Path], None], user_error: Callable[..., str]
) -> None:
    fill(small_disk)
    for write in (write_mlperf_log, write_tensorboard):
        line = user_error(write, [make_record()], small_disk)
        assert line.startswith(f"results: cannot write '{small_disk}/train-horovod-2-")
        assert "No space left on device" in line


def test_points_of_a_training() -> None:
    record = make_record()
    began = datetime.fromisoformat(record.started_at).timestamp()
    found: dict[str, list[tuple[int, float, float]]] = {}
    for point in points(record):
        found.setdefault(point.tag, []).append((point.step, round(point.unix_seconds - began, 3), point.value))
    rate = 58 * 256 / 0.58  # The slowest rank's.
    assert found["images_per_second/total"] == [
        *((1 + 58 * n, round(7 + 0.58 * n + 0.5 * (1 + 58 * n > 234), 3), pytest.approx(rate)) for n in range(1, 9)),
        (469, round(7 + 8 * 0.58 + 0.04 + 0.5, 3), pytest.approx(4 * 256 / 0.04)),
    ]
    assert [value for *_, value in found["images_per_second/per_device"]] == [
        value / 2 for *_, value in found["images_per_second/total"]
    ]
    assert found["accuracy/test"] == [(234, 9.9, 0.98), (469, 12.7, 0.99)]
    assert found["loss/test"] == [(234, 9.9, 0.1), (469, 12.7, 0.1)]


def test_what_is_measured_when_the_training_has_ended_is_no_part_of_it(tmp_path: Path) -> None:
    record = make_record()
    measured = dict(record.measurements or {})
    measured["window_variants"] = ["full"] * 10 + ["resident"]
    measured["window_cycles"] = list(range(11))
    measured["window_steps"] = [*measured["window_steps"], 10, 10]
    measured["window_seconds"] = [[*rank, 0.1, 0.1] for rank in measured["window_seconds"]]
    on = record.model_copy(update={"measurements": measured})
    assert list(points(on)) == list(points(record))
    logs = [read_log(write_mlperf_log([each], tmp_path / name)[0]) for each, name in ((record, "a"), (on, "b"))]
    assert logs[0] == logs[1]


def test_points_of_a_training_that_tells_no_loss() -> None:
    record = make_record()
    for evaluation in (record.measurements or {})["evaluations"]:
        del evaluation["loss"]
    assert [point.tag for point in points(record) if "test" in point.tag] == ["accuracy/test"] * 2


def test_points_of_the_input_pipeline() -> None:
    (record,) = make_study([input_case()], 1)
    measured = record.measurements or {}
    total = [point for point in points(record) if point.tag == "images_per_second/total"]
    assert [point.step for point in total] == [sum(measured["window_steps"][: n + 1]) for n in range(len(total))]
    assert len(total) == len(measured["window_steps"])


@pytest.mark.slow
def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    failing = train("single", 1, global_batch_size=64)
    records = [make_record(), *make_study([TIMED, input_case(), failing, matmul(1)], 2, failing=[failing])]
    for _ in range(2):  # The second time must not double the values.
        runs = write_tensorboard(records, tmp_path)
    assert [run.name for run in runs] == [
        run_name(record) for record in records if "window_steps" in (record.measurements or {})
    ]
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    assert set(multiplexer.Runs()) == {run.name for run in runs}
    for record in records:
        if run_name(record) in multiplexer.Runs():
            expected: dict[str, list[tuple[int, Any]]] = {}
            for point in points(record):
                expected.setdefault(point.tag, []).append((point.step, pytest.approx(point.value, rel=1e-6)))
            assert set(multiplexer.Runs()[run_name(record)]["scalars"]) == set(expected)
            for tag, values in expected.items():
                read = [(event.step, event.value) for event in multiplexer.Scalars(run_name(record), tag)]
                assert read == values


@pytest.mark.slow
def test_nothing_here_starts_tensorflow(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from mnist_dist.benchmarks.report.exports import write_mlperf_log, write_tensorboard\n"
        "from tests.benchmarks.factory import make_study, train\n"
        "records = make_study([train('single', 1)], 1)\n"
        "assert write_mlperf_log(records, Path(sys.argv[1])) and write_tensorboard(records, Path(sys.argv[1]))\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
