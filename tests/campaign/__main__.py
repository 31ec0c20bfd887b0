"""Runs a campaign and prints a line for each fault, and a table by kind.

python -m tests.campaign --faults 30 --seed 0
python -m tests.campaign --only 17
python -m tests.campaign inputs --examples 5000
"""

from __future__ import annotations

import argparse
import functools
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mnist_dist.config import DataConfig
from mnist_dist.data.dataset import load_arrays
from tests.campaign import faults
from tests.campaign.checks import Reference, check_end, read_reference
from tests.campaign.trial import BATCH_SIZE, Plan, Trial

TRAIN_IMAGES, TEST_IMAGES = 10 * BATCH_SIZE, 100


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.campaign", description="Faults and bad input, drawn by seeds."
    )
    parser.add_argument("what", nargs="?", choices=("faults", "inputs"), default="faults")
    parser.add_argument("--faults", type=int, default=30, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--examples", type=int, default=5000, metavar="N", help="of inputs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the first one's; others follow it")
    parser.add_argument("--only", type=int, nargs="+", metavar="SEED", help="the faults of these seeds, again")
    parser.add_argument("--plan", action="store_true", help="say what would be done, and do nothing")
    args = parser.parse_args(arguments)
    if args.what == "inputs":
        from tests.campaign import inputs

        return inputs.run(args.examples, args.seed)
    seeds = args.only or list(range(args.seed, args.seed + args.faults))
    if args.plan:
        print(*map(faults.make_plan, seeds), sep="\n")
        return 0
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # Else the processes of a trial live on.
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        return 1 if run_faults(seeds, Path(folder)) else 0


def run_faults(seeds: Iterable[int], folder: Path) -> list[Plan]:
    """Plays the faults of some seeds, says how each went, and returns the plans of those that went wrong."""
    data = folder / "data.npz"
    arrays = load_arrays(DataConfig())
    parts = {"train": TRAIN_IMAGES, "test": TEST_IMAGES}
    images = {f"x_{part}": getattr(arrays, f"{part}_images")[:count] for part, count in parts.items()}
    np.savez(
        data, **images, **{f"y_{part}": getattr(arrays, f"{part}_labels")[:count] for part, count in parts.items()}
    )

    @functools.cache
    def reference_of(strategy: str, devices: int) -> Reference:
        plan = Plan(0, "none", strategy, devices, "", "", 0)
        with Trial(plan, folder / f"{strategy}-{devices}", data) as trial:
            run = trial.start()
            check_end(trial, run, {0})
            return read_reference(run)

    failed, outcomes = [], Counter[tuple[str, str]]()
    for seed in seeds:
        plan = faults.make_plan(seed)
        started = time.monotonic()
        outcome, problem = "ok", ""
        try:
            faults.skip_unless_here(plan)
            reference = reference_of(plan.strategy, plan.devices) if plan.strategy else None
            with Trial(plan, folder / f"seed-{seed}", data) as trial:
                faults.play(trial, reference)
                outcome = "late" if trial.late else "ok"
        except faults.UnableError as reason:
            outcome, problem = "skipped", f" ({reason})"
        except Exception as error:  # Whatever it is, the other faults have their turns.
            outcome, problem = "FAILED", f"\n{type(error).__name__}: {error}\n  again: --only {seed}"
            failed.append(plan)
        outcomes[plan.kind, outcome] += 1
        print(f"{plan}: {outcome}, {time.monotonic() - started:.0f} s{problem}", flush=True)
    print(render_table(outcomes))
    return failed


def render_table(outcomes: Counter[tuple[str, str]]) -> str:
    """Returns how often each kind was played, with which outcome; late: the run had done all of its work before."""
    columns = ("ok", "late", "skipped", "FAILED")
    rows = [f"{'kind':28}" + "".join(f"{column:>8}" for column in columns)]
    for kind in sorted({kind for kind, _ in outcomes}):
        rows.append(f"{kind:28}" + "".join(f"{outcomes[kind, column]:8}" for column in columns))
    totals = [sum(count for (_, outcome), count in outcomes.items() if outcome == column) for column in columns]
    return "\n".join([*rows, f"{'all':28}" + "".join(f"{total:8}" for total in totals)])


if __name__ == "__main__":
    sys.exit(main())
