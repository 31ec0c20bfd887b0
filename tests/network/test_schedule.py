from typing import Any

import numpy as np
import pytest

from mnist_dist.config import OptimizerConfig, ScheduleConfig
from mnist_dist.network.schedule import doubt_peak, learning_rates, peak_learning_rate

NAMES = ("constant", "cosine", "one_cycle")


def rates(name: Any, warmup_percent: float, total_steps: int, **options: Any) -> np.ndarray:
    config = ScheduleConfig(name=name, warmup_percent=warmup_percent, **options)
    return learning_rates(config, 1.0, config.reference_batch_size, total_steps)


@pytest.mark.parametrize(
    ("scaling", "batch_size", "factor"),
    [("none", 512, 1), ("sqrt", 512, 2), ("linear", 512, 4), ("sqrt", 32, 0.5), ("linear", 32, 0.25), ("sqrt", 128, 1)],
)
def test_the_peak_follows_the_batch_size(scaling: Any, batch_size: int, factor: float) -> None:
    config = ScheduleConfig(scaling=scaling, reference_batch_size=128, name="constant", warmup_percent=0.0)
    assert peak_learning_rate(config, 0.004, batch_size) == pytest.approx(0.004 * factor)
    assert learning_rates(config, 0.004, batch_size, 3) == pytest.approx(0.004 * factor)


@pytest.mark.parametrize(
    ("scaling", "optimizer", "learning_rate", "batch_size", "said"),
    [
        ("linear", "adam", 0.004, 1024, ()),
        ("linear", "adam", 0.004, 8192, ("0.256 lies", "8 times", "set schedule.scaling=sqrt")),
        ("linear", "sgd", 0.05, 8192, ("3.2 lies", "8 times")),
        ("sqrt", "adam", 0.004, 8192, ()),
        ("none", "adam", 0.5, 128, ("0.5 lies", "0.1 with adam", "lower --learning-rate")),
        ("none", "sgd", 0.5, 128, ()),
    ],
)
def test_a_peak_beyond_what_was_tried_is_said(
    scaling: Any, optimizer: Any, learning_rate: float, batch_size: int, said: tuple[str, ...]
) -> None:
    doubt = doubt_peak(
        ScheduleConfig(scaling=scaling), OptimizerConfig(name=optimizer, learning_rate=learning_rate), batch_size
    )
    assert (doubt is not None) == bool(said) and all(part in (doubt or "") for part in said)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [0.04, 0.52, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("one_cycle", [0.04, 0.52, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("cosine", [0.04, 0.52, 1, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060]),
    ],
)
def test_known_values(name: str, expected: list[float]) -> None:
    assert rates(name, 20.0, 10) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("warmup_percent", [0.0, 7.3, 50.0, 99.9])
@pytest.mark.parametrize("total_steps", [1, 2, 3, 469, 1407])
def test_shape_of_the_curve(name: str, warmup_percent: float, total_steps: int) -> None:
    series = rates(name, warmup_percent, total_steps)
    assert series.shape == (total_steps,) and series.dtype == np.float32
    assert np.all(series > 0) and series.max() <= 1
    peak = int(total_steps * warmup_percent / 100)
    assert series[peak] == 1, "the first step after the warm-up has the peak"
    assert np.all(np.diff(series[: peak + 1]) > 0)
    after = np.diff(series[peak:])
    assert np.all(after == 0) if name == "constant" else np.all(after < 0)
    if peak:
        assert series[0] == pytest.approx(1 / 25)


@pytest.mark.parametrize("name", NAMES)
def test_without_warmup_the_first_step_has_the_peak(name: str) -> None:
    assert rates(name, 0.0, 10)[0] == 1


@pytest.mark.parametrize("name", ["cosine", "one_cycle"])
def test_the_last_step_has_almost_nothing(name: str) -> None:
    assert 0 < rates(name, 20.0, 1407)[-1] < 1e-3
