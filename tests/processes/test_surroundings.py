"""A training among what other programs and other people have set, as on a cluster behind a proxy."""

import json
import os
from pathlib import Path

import pytest

from tests.processes.conftest import StartRun, assert_close

pytestmark = pytest.mark.slow

NOBODY = "http://127.0.0.1:9"
SETTINGS = ["--optimizer", "sgd", "--learning-rate", "0.02", "--set", "data.shift_pixels=2"]


def test_what_is_set_for_others_changes_nothing(start: StartRun, start_once: StartRun, tmp_path: Path) -> None:
    """A proxy for all, another backend of Keras and its file of years ago, a backend of Matplotlib that is gone."""
    home = tmp_path / "keras"
    home.mkdir()
    old = {"floatx": "float16", "epsilon": 1, "backend": "theano", "image_data_format": "channels_first"}
    (home / "keras.json").write_text(json.dumps(old))
    environment = dict.fromkeys(("grpc_proxy", "https_proxy", "http_proxy"), NOBODY)
    environment |= {"KERAS_BACKEND": "jax", "KERAS_HOME": str(home), "TF_USE_LEGACY_KERAS": "1"}
    environment |= {"MPLBACKEND": "Qt4Agg", "PYTHONIOENCODING": "ascii"}
    flags = ["--strategy", "multiworker", "--devices", "2", "--set", "runtime.join_timeout_seconds=60"]
    run = start("Größe", *SETTINGS, *flags, environment=environment).succeed()
    assert "Größe" not in run.output and "Gr??e" in run.output
    assert len(list((run.workdir / "plots").iterdir())) == 3
    assert_close(run.weights, start_once("single", *SETTINGS).weights, tolerance=1e-4)


@pytest.mark.thorough
def test_a_training_goes_on_without_a_reader(start: StartRun) -> None:
    run = start("run", "--set", "logging.every_steps=1")
    run.read_until("workdir")
    assert run.process.stdout
    run.process.stdout.close()
    assert run.process.wait(timeout=240) == 0
    assert (run.result["status"], run.result["steps"]) == ("completed", 12)


@pytest.mark.thorough
def test_replicas_that_share_a_core_are_told_of_it_before_the_first_step(start: StartRun) -> None:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        run = start("run", "--devices", "3", "--steps", "1")
    finally:
        os.sched_setaffinity(0, cores)
    first, *_ = run.succeed().output.splitlines()
    assert first.startswith("cores: 3 replicas share 1 physical core of this host and are slower for it; ")
