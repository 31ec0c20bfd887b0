from collections.abc import Callable
from typing import Any

import pytest

from mnist_dist.config import Config, load_config
from mnist_dist.errors import UserError
from mnist_dist.training.plan import MAX_STEPS, PROFILED_STEPS, Plan, make_plan


def configure(**settings: Any) -> Config:
    """Settings of training by name, and the number of devices."""
    devices = settings.pop("devices", 1)
    overrides = {f"training.{name}": value for name, value in settings.items()}
    return load_config("default", overrides | {"runtime.devices": devices})


@pytest.mark.parametrize(
    ("settings", "train_images", "expected"),
    [
        ({"epochs": 3, "batch_size": 128}, 60_000, Plan(60_000, 468, 1404)),
        ({"epochs": 1, "batch_size": 100}, 100, Plan(100, 1, 1)),
        ({"epochs": 2, "batch_size": 100}, 199, Plan(199, 1, 2)),
        ({"epochs": 3, "steps": 7, "batch_size": 100}, 1000, Plan(1000, 10, 7)),
        ({"steps": 2000, "batch_size": 100}, 1000, Plan(1000, 10, 2000)),
        ({"epochs": 1, "batch_size": 48, "devices": 3}, 2003, Plan(2003, 41, 41)),
        ({"epochs": 1, "batch_size": 48, "devices": 3, "accumulation_steps": 4}, 2003, Plan(2003, 41, 41)),
        ({"steps": MAX_STEPS, "batch_size": 1}, 10, Plan(10, 10, MAX_STEPS)),
    ],
)
def test_epochs_become_steps(settings: dict[str, Any], train_images: int, expected: Plan) -> None:
    assert make_plan(configure(**settings), train_images) == expected


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"batch_size": 101}, "training.batch_size: received 101, expected at most the 100 training images."),
        (
            {"batch_size": 50, "devices": 4},
            "training.batch_size: received 50 for 4 replicas, expected a multiple of 4; for example --batch-size 48.",
        ),
        (
            {"batch_size": 3, "devices": 4},
            "training.batch_size: received 3 for 4 replicas, expected a multiple of 4; for example --batch-size 4.",
        ),
        (
            {"batch_size": 50, "devices": 2, "accumulation_steps": 3},
            "training.batch_size: received 50 for 2 replicas in 3 accumulation steps, expected a multiple of 6; for "
            "example --batch-size 48.",
        ),
        (
            {"batch_size": 50, "accumulation_steps": 3},
            "training.batch_size: received 50 for 1 replica in 3 accumulation steps, expected a multiple of 3; for "
            "example --batch-size 48.",
        ),
        (
            {"steps": MAX_STEPS + 1, "batch_size": 1},
            "training: 10,000,001 steps were asked for, expected at most 10,000,000.",
        ),
        (
            {"epochs": 10**9, "batch_size": 1},
            "training: 100,000,000,000 steps were asked for, expected at most 10,000,000.",
        ),
    ],
)
def test_what_cannot_be_trained(settings: dict[str, Any], line: str, user_error: Callable[..., str]) -> None:
    assert user_error(make_plan, configure(**settings), 100) == line


def test_replicas_that_share_nothing_leave_no_model() -> None:
    apart = {"runtime.all_reduce": False}
    with pytest.raises(UserError, match=r"^runtime\.all_reduce: received false, expected it together with training\."):
        make_plan(load_config("default", apart), 60_000)
    assert make_plan(load_config("default", apart | {"training.measure_seconds": 1.0}), 60_000).steps_per_epoch == 468


@pytest.mark.parametrize(("steps", "is_enough"), [(PROFILED_STEPS, True), (PROFILED_STEPS - 1, False)])
def test_a_profile_takes_steps_enough_for_its_second_half(steps: int, is_enough: bool) -> None:
    config = load_config("default", {"training.steps": steps, "logging.profile": True})
    if is_enough:
        assert make_plan(config, 1000).total_steps == steps
    else:
        with pytest.raises(UserError, match=r"logging\.profile: received for 39 steps, expected at least 40\."):
            make_plan(config, 1000)
