"""N replicas on a global batch compute what one replica computes on it, whatever makes them work together."""

import numpy as np
import pytest

from tests.processes.conftest import STRATEGIES, TEST_IMAGES, StartRun, assert_close
from tests.speeds import thorough_but_for

pytestmark = pytest.mark.slow

# Plain momentum shows an error of the gradients in proportion. Adam blows up rounding errors of gradients near zero.
SGD = ["--optimizer", "sgd", "--learning-rate", "0.02"]


@pytest.mark.parametrize("devices", thorough_but_for(2, [2, 3]))
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_equal_weights(start: StartRun, start_once: StartRun, strategy: str, devices: int) -> None:
    settings = [*SGD, "--set", "data.shift_pixels=2"]
    expected = start_once("single", *settings)
    actual = start("several", *settings, "--strategy", strategy, "--devices", str(devices)).succeed()
    assert actual.result["replicas"] == devices
    assert_close(actual.weights, expected.weights, tolerance=1e-4)
    assert actual.result["test_accuracy"] == pytest.approx(expected.result["test_accuracy"], abs=1.01 / TEST_IMAGES)


@pytest.mark.thorough
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_resident_images_train_to_the_same_weights(start: StartRun, strategy: str) -> None:
    """Each replica takes its own part of the indices, from its own copy of the images."""
    settings = ["--set", "data.shift_pixels=2", "--strategy", strategy, "--devices", "2"]
    delivered, resident = (
        start(where, *settings, "--set", f"data.resident={where}").succeed() for where in ("off", "on")
    )
    assert resident.result["resident"] == "on"
    assert all(np.array_equal(array, resident.weights[name]) for name, array in delivered.weights.items())


@pytest.mark.thorough
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_xla_before_and_after_the_all_reduce(start: StartRun, start_once: StartRun, strategy: str) -> None:
    settings = [*SGD, "--set", "data.shift_pixels=2"]
    expected = start_once("single", *settings)
    compiled = ["--xla", "on", "--set", "runtime.deterministic=false", "--set", "data.resident=on"]
    actual = start("several", *settings, *compiled, "--strategy", strategy, "--devices", "2").succeed()
    assert_close(actual.weights, expected.weights, tolerance=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("devices", [2, 3])
def test_multiworker_gathers_what_horovod_sums(start: StartRun, devices: int) -> None:
    """Gradients that are computed in bfloat16 travel as such under multiworker, and the sum is the same."""
    settings = [*SGD, "--precision", "mixed_bfloat16", "--devices", str(devices)]
    runs = [start(name, *settings, "--strategy", name).succeed() for name in ("multiworker", "horovod")]
    gathered, summed = (run.weights for run in runs)
    if devices == 2:
        assert all(np.array_equal(gathered[name], summed[name]) for name in summed)
    assert_close(gathered, summed, tolerance=0.01)  # Sums of three depend on their order, and bfloat16 is coarse.


@pytest.mark.parametrize("strategy", thorough_but_for("mirrored", STRATEGIES))
def test_batch_norm_sees_the_global_batch(start: StartRun, start_once: StartRun, strategy: str) -> None:
    # One step: batch normalisation subtracts large, nearly equal gradients, and float32 loses three digits in each
    # step (float64 agrees to 1e-13 after twelve). Statistics or gradients of the replica's own images differ by more
    # than a tenth.
    settings = [*SGD, "--batch-norm", "--steps", "1", "--set", "schedule.warmup_percent=0"]
    expected = start_once("single with batch norm", *settings)
    actual = start("several", *settings, "--strategy", strategy, "--devices", "2").succeed()
    assert_close(actual.weights, expected.weights, tolerance=0.01)


@pytest.mark.thorough
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_cannot_be_equal_still_learns(start: StartRun, strategy: str) -> None:
    """Dropout, 16-bit gradients and accumulation change the numbers, not the meaning; the guard watches."""
    run = start(
        "several",
        *["--dropout", "0.2", "--steps", "80", "--strategy", strategy, "--devices", "2"],
        *["--set", "optimizer.gradient_compression=float16", "--set", "training.accumulation_steps=4"],
    ).succeed()
    assert run.result["test_accuracy"] > 0.8
