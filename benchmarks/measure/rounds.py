"""A round: contenders that are alive at once and take turns on the same devices.

They are started one after another, so that each one's start-up and first step have the machine for themselves. Then
they wait, and one at a time has the turn. First those that train to an end do so; then, in cycles whose order is drawn
anew, every contender has one turn of each of its variants, and a baseline some more. What is compared is compared
within a cycle, so that whatever slows the machine for longer than that falls on all alike: duet benchmarking (Bulej et
al., ICPE 2020) with randomised multiple interleaved trials (Abedi and Brecht, ICPE 2017).
"""

import contextlib
import itertools
import math
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mnist_dist.benchmarks.measure.process import End, Running
from mnist_dist.benchmarks.measure.telemetry import Sample
from mnist_dist.benchmarks.measure.turns import Group, Harness
from mnist_dist.benchmarks.statistics.paired import mean_of_rounds
from mnist_dist.benchmarks.statistics.stats import CONFIDENCE, student_quantile
from mnist_dist.cpuinfo import busy_cpu_seconds
from mnist_dist.distributed.signals import signals_held
from mnist_dist.distributed.turns import FULL, Turn
from mnist_dist.errors import UserError

# A core may have two paces, of which each lasts for tenths of a second or many seconds: a cycle says as much of them
# however long its turns are, so more cycles say more. But each turn is a call that costs milliseconds, which many steps
# share in a training.
TURN_SECONDS, LONGEST_TURN_SECONDS, ENOUGH_STEPS = 0.1, 0.3, 10
TRAINING_TURN_SECONDS = 0.2  # Of trainings to an end, in which nothing is compared cycle by cycle.
LEAD_SECONDS = 0.02  # Of steps before those of a turn, which are not counted: the first find cold caches. Long ones
# would cost as much as the turn, and find them for a small part of their time.
CALIBRATIONS = 8  # At most, until a turn is about as long as it should be.
MOST_TURNS = 3  # Of a variant in a cycle, because it varies more than others.
FEWEST_CYCLES = 13  # Before anything is called known well enough: ten are left without a warm-up of a fifth.
ENDING_SECONDS = 60.0  # For a contender that is told to end, to write what it measured; launchers take seconds.

Ended = Literal["narrow", "time", "trained", "interrupted"]
Meter = Callable[[], "Sample | None"]
Key = tuple[str, str]  # A contender's name and one of its variants.
Ratio = tuple[Key, Key]  # Numerator and denominator.


@dataclass(frozen=True)
class Stage:
    """What a round is doing, for who waits for it.

    Attributes:
        half_width: of the widest interval of a ratio, as a share; None until it is known.
        training: how many trainings have not come to their end.
        other_cores: of this host, that other programs used while contenders started.
    """

    name: Literal["starting", "started", "training", "warming up", "measuring", "ending", "stopping"]
    contender: str | None = None
    cycle: int = 0
    half_width: float | None = None
    training: int = 0
    other_cores: float | None = None


@dataclass(frozen=True)
class Contender:
    """What takes part in a round.

    Attributes:
        start: starts it, with further variables in its environment.
        variants: of its step that are measured; none, where only a training to its end matters.
        together: starts at the same time as the one before it, with which it is alike.
    """

    name: str
    start: Callable[[Mapping[str, str]], Running]
    variants: Sequence[str] = (FULL,)
    together: bool = False


@dataclass(frozen=True)
class Limits:
    """When a round is over.

    Attributes:
        seconds: of measuring, once all trainings have ended.
        width: half of the 95 % interval, as a share, at which a ratio is known well enough.
        ratios: those that are to be known so well, each a numerator and a denominator.
        timeout_seconds: for a contender to become ready, for each turn, and for a training from its start to its end.
    """

    seconds: float
    width: float
    ratios: Sequence[Ratio]
    timeout_seconds: float

    def time_is_up(self, seconds: float, cycles: int) -> bool:
        """Whether it has been measured for long enough; too few cycles to tell anything from get twice as much more."""
        return seconds > self.seconds * (1 if cycles >= FEWEST_CYCLES else 3)


@dataclass
class Standing:
    """A contender in its round.

    Attributes:
        end: how it ended, once it has; None where the round was interrupted before there was anything to keep.
        ended: what ended its measuring, where that is not what ended the round.
        step_seconds: of each variant, in its last turn.
        rates: steps per second by variant and cycle.
        done: the steps and seconds of each variant and cycle.
        waiting_cores: that its processes used while others had the turn, on average.
        own_seconds: from its start until it was ready, and in its turns.
        turn_seconds: in its turns since measuring began, and the processor time of its own in them.
    """

    contender: Contender
    running: Running
    began: float
    own_seconds: float = 0.0
    group: Group | None = None
    end: End | None = None
    ended: Ended | None = None
    step_seconds: dict[str, float] = field(default_factory=dict)
    rates: dict[str, dict[int, float]] = field(default_factory=dict)
    done: dict[tuple[str, int], tuple[int, float]] = field(default_factory=dict)
    waiting_cores: float = 0.0
    turn_seconds: float = 0.0
    turn_cpu_seconds: float = 0.0
    measured_from: tuple[float, float] | None = None  # When measuring began, and the processor time used until then.
    energy: list[tuple[Sample, Sample]] = field(default_factory=list)  # At the start and the end of each turn.

    @property
    def is_measured(self) -> bool:
        """Whether any of its turns counts."""
        return any(cycle >= 0 for rates in self.rates.values() for cycle in rates)


@dataclass(eq=False)
class Round:
    """Takes contenders from their start to their end.

    Attributes:
        tick: called at least once a turn, to show the time.
        seed: of the order in which turns are given.
        meter: reads the energy that the devices have used; None where it cannot be read.
        host: an address of this host at which all ranks reach it.
        tell: learns what the round is doing, whenever that changes.
        ended: what ended it: "narrow" (all ratios are known as well as was asked for), "time", "trained" (there was
            nothing more to measure) or "interrupted".
        interruption: what ended the round early, if anything did; to be raised again when the results are safe.
        other_cores: of this host, that other programs have used since the round began, on average; None where that is
            not known.
    """

    contenders: Sequence[Contender]
    limits: Limits
    tick: Callable[[], None] = lambda: None
    seed: int = 0
    meter: Meter | None = None
    host: str = "127.0.0.1"
    tell: Callable[[Stage], None] = lambda stage: None
    standings: dict[str, Standing] = field(default_factory=dict, init=False)
    ended: Ended = field(default="trained", init=False)
    interruption: BaseException | None = field(default=None, init=False)
    other_cores: float | None = field(default=None, init=False)
    _watched_from: tuple[float, float] | None = field(default=None, init=False)
    _cycles: int = field(default=0, init=False)

    def run(self) -> Mapping[str, Standing]:
        """Returns how each contender fared; whatever happens, none of them is left alive."""
        self._random = random.Random(self.seed)  # noqa: S311 - an order, not a secret.
        with Harness(self.host) as self._harness:
            try:
                self._note_others()
                for contender, following in itertools.zip_longest(self.contenders, self.contenders[1:]):
                    self._start(contender)
                    if not (following and following.together):
                        self._wait_until_ready()
                self._note_others()
                self.tell(Stage("started", other_cores=self.other_cores))
                self._train()
                self._calibrate()
                self._measure()
                self._note_others()
                self._end_all()
            except (KeyboardInterrupt, SystemExit, UserError) as interruption:  # Ctrl-C, a signal, or a full disk.
                self.interruption, self.ended = interruption, "interrupted"
                # Another Ctrl-C: who has not ended is killed, and what has is kept.
                with contextlib.suppress(KeyboardInterrupt, SystemExit, UserError):
                    self.tell(Stage("stopping"))
                    for standing in self._alive():
                        standing.ended = "interrupted"
                    self._end_all()
            finally:
                for standing in self._alive():
                    standing.running.kill()
        return self.standings

    def _start(self, contender: Contender) -> None:
        self.tell(Stage("starting", contender.name))
        with signals_held():
            running = contender.start(self._harness.variables(contender.name))
            self.standings[contender.name] = Standing(contender, running, began=time.monotonic())

    def _wait_until_ready(self) -> None:
        """Waits for those that have started since."""
        limit = self.limits.timeout_seconds
        for standing in (each for each in self._alive() if each.group is None):
            name = standing.contender.name
            standing.group = self._harness.wait_until_ready(name, limit, self._is_alive(standing))
            standing.own_seconds = time.monotonic() - standing.began
            if standing.group is None:
                self._close(standing, f"not ready after {limit:g} s")

    def _note_others(self) -> None:
        """Notes how much of the host's cores was used, since the round began, by what is not part of it."""
        now, ended = time.monotonic(), sum(os.times()[:4])  # Of the harness, and of those of its children that ended.
        busy = busy_cpu_seconds()
        seconds = busy - ended - sum(each.running.cpu_seconds() for each in self._alive())
        self._watched_from = self._watched_from or (now, seconds)
        began, before = self._watched_from
        self.other_cores = max(seconds - before, 0.0) / max(now - began, 1e-3) if busy else None

    def _train(self) -> None:
        """Lets those train that train to an end, in turns, until each has come to it."""
        limit = self.limits.timeout_seconds
        while training := [each for each in self._alive() if _is_training(each)]:
            self.tell(Stage("training", training=len(training)))
            for standing in self._random.sample(training, len(training)):
                self._give(standing, FULL, self._cycles, is_training=True)
                if standing.end is None and not _is_training(standing) and not standing.contender.variants:
                    standing.ended = "trained"
                    self._end(standing)
                elif standing.end is None and _is_training(standing) and standing.own_seconds > limit:
                    self._close(standing, f"not done after {limit:g} s")
            self._cycles += 1

    def _calibrate(self) -> None:
        """Compiles every variant, and learns how long its steps take."""
        self.tell(Stage("warming up"))
        for standing in self._alive():
            for variant in standing.contender.variants:
                for _ in range(CALIBRATIONS):
                    seconds = self._give(standing, variant, -1)
                    if seconds is None or seconds > TURN_SECONDS / 2:
                        break

    def _measure(self) -> None:
        """Cycles until all ratios are known well enough or the time is up."""
        began, before, halves = time.monotonic(), self._cycles, self._half_widths()
        for standing in self._alive():
            standing.measured_from = (began, standing.running.cpu_seconds())
            standing.turn_seconds = standing.turn_cpu_seconds = 0.0
        while keys := self._turns_of_a_cycle(halves):
            widest = max(halves.values(), default=math.inf)
            known = widest if widest < math.inf else None
            self.tell(Stage("measuring", cycle=self._cycles - before, half_width=known))
            for standing, variant in self._random.sample(keys, len(keys)):
                if standing.end is None:
                    self._give(standing, variant, self._cycles)
            self._cycles += 1
            halves = self._half_widths()
            if max(halves.values(), default=math.inf) <= self.limits.width:
                self.ended = "narrow"
                break
            if self.limits.time_is_up(time.monotonic() - began, self._cycles - before):
                self.ended = "time"
                break

    def _turns_of_a_cycle(self, halves: Mapping[Ratio, float]) -> list[tuple[Standing, str]]:
        """Returns who has them, of which variants: what varies more, and what more is compared with, has more of them.

        The variance of a mean falls with the number of turns (Neyman, "On the two different aspects of the
        representative method", 1934). What m others are compared with has about the root of m, as its own deviation is
        in each of the m ratios (Dunnett, "A multiple comparison procedure for comparing several treatments with a
        control", J. Am. Stat. Assoc. 50, 1955).
        """
        compared = Counter(denominator for _, denominator in halves)
        times = {key: round(math.sqrt(count)) for key, count in compared.items()}
        known = {ratio: half for ratio, half in halves.items() if 0 < half < math.inf}
        for (numerator, denominator), half in known.items():
            enough = min(round((half / min(known.values())) ** 2), MOST_TURNS)
            times[numerator] = max(enough, times.get(numerator, 1))
            if compared[denominator] == 1:
                times[denominator] = max(enough, times[denominator])
        keys = [(standing, variant) for standing in self._alive() for variant in standing.contender.variants]
        return [(each, variant) for each, variant in keys for _ in range(times.get((each.contender.name, variant), 1))]

    def _give(self, standing: Standing, variant: str, cycle: int, is_training: bool = False) -> float | None:
        """Gives a turn, and notes what came of it; returns its seconds, or None if the contender is out."""
        group = standing.group
        if group is None or standing.end is not None:
            return None
        step_seconds = standing.step_seconds.get(variant, LONGEST_TURN_SECONDS)
        lead = 0 if is_training or step_seconds > TURN_SECONDS else max(round(LEAD_SECONDS / step_seconds), 1)
        turn = Turn(steps_of_turn(step_seconds, is_training), lead, variant, cycle)
        began, cpu_before = time.monotonic(), standing.running.cpu_seconds()
        energy_before = self.meter() if self.meter else None
        seconds = self._harness.give(group, turn, self.limits.timeout_seconds, self._is_alive(standing))
        standing.turn_seconds += time.monotonic() - began
        standing.own_seconds += time.monotonic() - began
        standing.turn_cpu_seconds += standing.running.cpu_seconds() - cpu_before
        if self.meter and energy_before and (energy_after := self.meter()):
            standing.energy.append((energy_before, energy_after))
        if seconds is None:
            if standing.running.is_alive and group.is_complete:
                self._close(standing, f"a turn took longer than {self.limits.timeout_seconds:g} s")
            else:
                standing.running.wait(ENDING_SECONDS)
                self._close(standing, f"it left the round, but had not ended {ENDING_SECONDS:g} s later")
            return None
        if group.steps and seconds:
            standing.step_seconds[variant] = seconds / group.steps
            steps_before, seconds_before = standing.done.get((variant, cycle), (0, 0.0))
            done = steps_before + group.steps, seconds_before + seconds
            standing.done[variant, cycle] = done
            standing.rates.setdefault(variant, {})[cycle] = done[0] / done[1]
        if group.signal:
            standing.ended = "interrupted"
            self._end(standing)
        return seconds

    def _end(self, standing: Standing, seconds: float = ENDING_SECONDS) -> None:
        """Tells a contender that there is no turn any more, and waits until it has written what it measured."""
        self._dismiss(standing)
        standing.running.wait(seconds, self.tick)
        self._close(standing, f"it was told to end, but had not {ENDING_SECONDS:g} s later")

    def _close(self, standing: Standing, timed_out: str) -> None:
        """Notes how a contender ended, which it must have by now."""
        standing.end = standing.running.end(timed_out)
        if standing.end.status == "ok" and standing.ended is None:  # A later interruption is none of its own.
            standing.ended = self.ended
        self._harness.hang_up(standing.contender.name)

    def _dismiss(self, standing: Standing) -> None:
        """Notes what a contender used while it waited, and tells it that there is no turn any more."""
        if standing.measured_from is not None:
            began, cpu_before = standing.measured_from
            used = standing.running.cpu_seconds() - cpu_before - standing.turn_cpu_seconds
            waited = time.monotonic() - began - standing.turn_seconds
            standing.waiting_cores, standing.measured_from = max(used, 0.0) / max(waited, 1e-3), None
        if standing.group is not None:
            self._harness.dismiss(standing.group)

    def _end_all(self) -> None:
        """Ends all that are alive: those that measured something with it, and others without waiting for them."""
        measured = [each for each in self._alive() if each.is_measured and not _is_training(each)]
        if measured and not self.interruption:
            self.tell(Stage("ending"))
        for standing in self._alive():
            if standing not in measured:
                standing.running.terminate()
            self._dismiss(standing)  # Who waits for a turn does not end by a signal alone.
        until = time.monotonic() + ENDING_SECONDS
        for standing in measured:
            # After an interruption all have the same time: who sent it will not wait for one after another.
            self._end(standing, max(until - time.monotonic(), 0.0) if self.interruption else ENDING_SECONDS)

    def _alive(self) -> list[Standing]:
        return [standing for standing in self.standings.values() if standing.end is None]

    def _is_alive(self, standing: Standing) -> Callable[[], bool]:
        def is_alive() -> bool:
            self.tick()
            return standing.running.is_alive

        return is_alive

    def _half_widths(self) -> dict[Ratio, float]:
        """Returns half of the interval of each ratio whose sides are both still there."""
        alive = {each.contender.name for each in self._alive()}
        ratios = [ratio for ratio in self.limits.ratios if {name for name, _ in ratio} <= alive]
        return {ratio: self._half_width(*ratio) for ratio in ratios}

    def _half_width(self, numerator: Key, denominator: Key) -> float:
        """Returns half of the 95 % interval of a ratio, as a share; inf until there are cycles enough to tell."""
        above, below = (self.standings[name].rates.get(variant, {}) for name, variant in (numerator, denominator))
        cycles = sorted(cycle for cycle in above.keys() & below.keys() if cycle >= 0)
        if len(cycles) < FEWEST_CYCLES:
            return math.inf
        ratios = np.log([above[cycle] / below[cycle] for cycle in cycles])
        _, variance, freedom = mean_of_rounds([ratios])
        return math.inf if math.isnan(variance) else student_quantile((1 + CONFIDENCE) / 2, freedom) * variance**0.5


def steps_of_turn(step_seconds: float, is_training: bool = False) -> int:
    """Returns how many steps a turn has, where one takes so long."""
    if is_training:
        return max(round(TRAINING_TURN_SECONDS / step_seconds), 1)
    enough = min(ENOUGH_STEPS, LONGEST_TURN_SECONDS / step_seconds)
    return max(round(max(TURN_SECONDS / step_seconds, enough)), 1)


def _is_training(standing: Standing) -> bool:
    return standing.group is not None and standing.group.is_training
