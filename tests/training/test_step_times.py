"""Windows of training steps: what they hold and what they leave out."""

import subprocess
import sys
import time
from types import ModuleType

import pytest

from mnist_dist.distributed.strategies.single import Single
from mnist_dist.training.step_times import StepClock, gather_step_times, peak_memory_bytes, seconds_since_process_start


def test_windows_hold_everything_between_their_edges_but_the_pauses() -> None:
    clock = StepClock()
    clock.start()
    time.sleep(0.05)
    began = time.perf_counter()
    first = clock.stop_window(1)
    time.sleep(0.03)
    with clock.paused():
        time.sleep(0.2)
    with clock.paused():
        time.sleep(0.1)
    second = clock.stop_window(50)
    elapsed = time.perf_counter() - began
    time.sleep(0.02)
    third = clock.stop_window(7)
    since_first = time.perf_counter() - began
    assert clock.first_step_seconds == first >= 0.05
    assert clock.window_steps == [50, 7]
    assert clock.window_seconds == [second, third]
    assert 0.03 <= second < elapsed - 0.29, "the pauses are left out, and nothing else"
    assert 0.02 <= third < since_first - second - 0.29, "a pause counts once"
    assert clock.measured_seconds == second + third


def test_a_pause_that_ends_with_an_error_ends() -> None:
    clock = StepClock()
    clock.start()
    with pytest.raises(KeyError), clock.paused():
        raise KeyError
    time.sleep(0.02)
    assert clock.stop_window(1) >= 0.02


def test_the_age_of_a_process() -> None:
    script = "import time; time.sleep(0.5); from mnist_dist.training import step_times as t; "
    script += "print(t.seconds_since_process_start())"
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 0.5 <= float(done.stdout) <= time.perf_counter() - began + 0.02


def test_the_peak_of_memory_stays_when_the_memory_is_gone() -> None:
    before = peak_memory_bytes()
    ballast = bytearray(300_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])
    del ballast
    assert peak_memory_bytes() >= max(before, 300_000_000)


def test_the_step_times_of_one_rank(tf: ModuleType) -> None:
    clock = StepClock(startup_seconds=3.0, first_step_seconds=0.5, window_steps=[50, 7], window_seconds=[1.25, 0.25])
    content = gather_step_times(clock, Single(), ["here"])
    assert content.pop("peak_memory_bytes") == [pytest.approx(peak_memory_bytes(), rel=0.2)]
    has_gpu = bool(tf.config.list_logical_devices("GPU"))
    assert (content.pop("peak_device_memory_bytes") is not None) == has_gpu
    assert content == {
        "hosts": ["here"],
        "window_steps": [50, 7],
        "window_seconds": [[1.25, 0.25]],
        "startup_seconds": [3.0],
        "first_step_seconds": [0.5],
    }
    assert seconds_since_process_start() > 0
