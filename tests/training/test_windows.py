"""Windows and agreements of fast steps, on a simulated clock, and whether suites get a rate from them."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mnist_dist.benchmarks.measure.rounds import TURN_SECONDS, steps_of_turn
from mnist_dist.benchmarks.measure.suite import Machine, load_suite, plan_cases, shipped_suites, training_settings
from mnist_dist.benchmarks.records.kinds import kind
from mnist_dist.benchmarks.statistics.steady_state import find_steady_state
from mnist_dist.config import Config, load_config
from mnist_dist.training import trainer
from mnist_dist.training.actions import Progress
from mnist_dist.training.by_turns import ByTurns
from mnist_dist.training.step_times import StepClock

STEP_SECONDS = 1e-4  # Of a GPU.


class SimulatedClock(StepClock):
    """A step takes 0.1 ms, the first one a second."""

    def stop_window(self, steps: int) -> float:
        if self.first_step_seconds == 0.0:
            self.first_step_seconds = 1.0
            return 1.0
        self.window_steps.append(steps)
        self.window_seconds.append(steps * STEP_SECONDS)
        return steps * STEP_SECONDS


def run_fast(config: Config, total_steps: int, monkeypatch: pytest.MonkeyPatch) -> tuple[SimulatedClock, list[int]]:
    """Returns the clock, and the steps after which ranks agreed, of a run by the real loop that logs, at most."""
    from mnist_dist.distributed.strategies.single import Single

    clock, progress, agreements, strategy = SimulatedClock(), Progress(), [], Single()
    strategy.is_chief = False  # Which writes nothing.
    nothing = SimpleNamespace(enter=lambda phase: None, advance=lambda step, seconds: None, received=None, agreed=None)
    plan = SimpleNamespace(total_steps=total_steps, steps_per_epoch=468)
    session: Any = SimpleNamespace(
        **{"config": config, "plan": plan, "strategy": strategy, "turns": None, "clock": clock},
        **{"watchdog": nothing, "preemption": nothing, "console": nothing},
    )
    really_agree = trainer.agree

    def agree(session: Any, step_seconds: float) -> tuple[bool, float]:
        agreements.append(progress.step)
        return really_agree(session, step_seconds)

    monkeypatch.setattr(trainer, "agree", agree)
    monkeypatch.setattr(trainer, "make_evaluate", lambda session, model, writers: SimpleNamespace(period=total_steps))
    model: Any = None
    actions = trainer.make_actions(session, model, model, np.zeros(total_steps, np.float32), progress)
    logging = [action for action in actions if isinstance(action, trainer.LogMetrics)]
    alone: Any = ByTurns(None, clock, session.preemption)
    trainer.train_steps_to_the_end(session, lambda count: np.zeros([count, 2], np.float32), progress, logging, alone)
    return clock, agreements


def test_a_training_agrees_by_time(tf: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 steps of 0.1 ms are two seconds: ten agreements or so, not one after each call of 50 steps."""
    clock, agreements = run_fast(load_config("default", {}), 20_000, monkeypatch)
    assert sum(clock.window_steps) == 20_000 - 1
    assert len(agreements) <= 13
    assert max(np.diff(agreements)) * STEP_SECONDS <= 1.1 * trainer.AGREEMENT_SECONDS


def test_windows_of_a_measurement_are_bound_by_time_alone(tf: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever steps_per_call and logging say."""
    config = load_config("default", {"training.measure_seconds": 4.0, "logging.every_steps": 10})
    clock, agreements = run_fast(config, 10**6, monkeypatch)
    assert clock.measured_seconds == pytest.approx(4.0, abs=0.5)
    assert np.median(clock.window_seconds) == pytest.approx(trainer.AGREEMENT_SECONDS, rel=0.1)
    assert len(agreements) <= 4.0 / 0.2 + 3
    assert find_steady_state(clock.window_steps, [clock.window_seconds]).reason_unstable is None


@pytest.mark.parametrize("name", shipped_suites())
def test_every_suite_gets_a_rate_of_fast_steps_on_gpus(name: str) -> None:
    """As the turns of a case measure it, in which a window is a turn; its training, if any, lasts but a moment."""
    for planned in plan_cases(load_suite(name), Machine(16, 2, 2)):
        case = planned.case
        if kind(case.kind).name != "train" or planned.skip_reason:
            continue
        epochs = load_config("default", training_settings(case, 0)).training.epochs
        trained = 0 if case.measure_seconds else epochs * 60_000 // case.global_batch_size
        turns = int(planned.measuring_seconds / max(len(planned.variants), 1) / TURN_SECONDS)
        steps = [50] * (trained // 50) + [steps_of_turn(STEP_SECONDS)] * turns
        found = find_steady_state(steps, [[each * STEP_SECONDS for each in steps]])
        assert found.reason_unstable is None, f"{case}: {found.reason_unstable}"
