"""Training in turns with other groups of processes: to its end, and then, variant by variant, to be measured."""

from collections.abc import Callable

from mnist_dist.distributed.signals import Preemption
from mnist_dist.distributed.turns import Turn, Turns
from mnist_dist.training.step_times import StepClock
from mnist_dist.training.steps import StepCall


class ByTurns:
    """One rank's part, a turn after another; without others to take turns with, it may train as it likes."""

    def __init__(self, turns: Turns | None, clock: StepClock, preemption: Preemption) -> None:
        self._turns, self._clock, self._preemption = turns, clock, preemption
        self._left = 0

    def allow(self, count: int) -> int:
        """Returns how many of so many steps may be taken now, as soon as one may; 0 if none may be any more."""
        if self._turns is None:
            return count
        if self._left == 0:
            turn = self._next(self._turns)
            self._left = turn.steps if turn else 0
        allowed = min(count, self._left)
        self._left -= allowed
        return allowed

    def measure(self, call_of: Callable[[str], StepCall]) -> None:
        """Takes steps of the variants that a harness asks for until it asks for no more.

        What the weights become does not matter any more: without all-reduce, they are not those of any training.
        """
        if self._turns is None:
            return
        self._turns.is_training = False
        while (turn := self._next(self._turns)) is not None:
            take_steps = call_of(turn.variant)
            if turn.lead:
                with self._clock.paused():
                    take_steps(turn.lead)
            take_steps(turn.steps)
            self._clock.stop_window(turn.steps)

    def _next(self, turns: Turns) -> Turn | None:
        """Ends this turn and returns the next, once it has come; the wait is in no time that counts."""
        with self._clock.paused():
            turns.done(*self._clock.end_turn())
            self._clock.turn = turns.wait(lambda: self._preemption.received)
        return self._clock.turn
