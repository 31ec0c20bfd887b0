"""How often `slurm survey` names who is like the others, and who is not; and a large survey to look at.

    python -m tests.benchmarks.adversary_survey             false alarms and power on simulated fleets
    python -m tests.benchmarks.adversary_survey make DIR    200 nodes with a slow device, a slow link, a lost node
    python -m tests.benchmarks.adversary_survey scale       time and memory to plan, judge and draw 1,000 nodes

The noise is a process' own, Student's t with three freedoms, beside what devices differ by themselves.
"""

from __future__ import annotations

import math
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mnist_dist.benchmarks.analysis.survey import WHOLE, Part, Surveyed, find, judge, units_of
from mnist_dist.files import write_json
from mnist_dist.slurm.command import main as slurm
from mnist_dist.slurm.scheduler import Node
from mnist_dist.slurm.site import load_site
from mnist_dist.slurm.survey import Plan, Request, plan_file, plan_jobs, tournament

ASPECTS = {"compute": 30.0, "memory": 28.0, "copies": 24.0, "training": 12.0}  # Log rates.
REPEATS = 3
PACES = ((0.01, 0.005), (0.02, 0.01), (0.03, 0.0))  # Noise of a repeat, and between devices.


def fleet(
    rng: np.random.Generator,
    nodes: int,
    devices: int = 1,
    rounds: int = 3,
    noise: float = 0.01,
    between: float = 0.005,
    slow: dict[tuple[str, ...], float] | None = None,
) -> dict[tuple[str, ...], Surveyed]:
    """Returns a survey of nodes n1, n2, ...

    Args:
        noise: of each repeat, heavy-tailed, as a share.
        between: standard deviation between devices, as a share.
        slow: log rates to take away: of devices (node, number), and of links (node, node), in rising order.
    """
    slow = slow or {}
    names = [f"n{number}" for number in range(1, nodes + 1)]

    def part(key: tuple[str, ...], aspects: dict[str, float]) -> Part:
        rates = {}
        for aspect, level in aspects.items():
            own = level + between * rng.standard_normal() - slow.get(key, 0.0)
            rates[aspect] = (own + noise * rng.standard_t(3, REPEATS)).tolist()
        return Part(log_rates=rates)

    found = {
        (name,): Surveyed(machine="m", parts={str(each): part((name, str(each)), ASPECTS) for each in range(devices)})
        for name in names
    }
    if devices > 1:
        for name in names:
            found[(name,)].parts[WHOLE] = part((name,), {"all-reduce": 5.0})
    for pairs in tournament(sorted(names), rounds):
        for pair in pairs:
            key = tuple(sorted(pair))
            found[key] = Surveyed(machine="m", parts={WHOLE: part(key, {"all-reduce": 4.0})})
    return found


def named(surveyed: dict[tuple[str, ...], Surveyed]) -> set[tuple[str, ...]]:
    """Returns nodes with their device, and links, as `slow` has them."""
    findings = find(surveyed, judge(units_of(surveyed)), {})
    return {nodes if part == WHOLE else (*nodes, part) for nodes, part in findings}


def write_survey(folder: Path, surveyed: dict[tuple[str, ...], Surveyed], lost: Sequence[str] = ()) -> None:
    plan = Plan(partition="a100", nodes={key[0]: "idle" for key in surveyed if len(key) == 1})
    write_json(plan_file(folder), plan.model_dump())
    for name in lost:
        (folder / "nodes" / name).mkdir(parents=True)
    for key, each in surveyed.items():
        if not set(key) & set(lost):
            file = folder / ("pairs" if len(key) > 1 else "nodes") / f"{'+'.join(key)}.json"
            file.parent.mkdir(exist_ok=True, parents=True)
            file.write_text(each.model_dump_json())


def main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["make"]:
        link = next(key for key in fleet(np.random.default_rng(0), 200) if "n12" in key and len(key) == 2)
        slow = {("n7", "2"): 0.12, link: 0.5}
        write_survey(Path(arguments[1]), fleet(np.random.default_rng(0), 200, 4, slow=slow), ["n33"])
        return
    if arguments[:1] == ["scale"]:
        measure_scale()
        return
    print("Equal fleets that name somebody; of those with a device that is 10 % slow, who name it, and it alone")
    rows = [(nodes, count, *pace) for nodes, count in ((8, 100), (32, 100), (1000, 10)) for pace in PACES]
    for nodes, count, noise, between in [(nodes, 400, 0.005, 0.02) for nodes in (5, 6, 7, 8)] + rows:
        equal, ill = (
            [
                named(fleet(np.random.default_rng([seed, number]), nodes, noise=noise, between=between, slow=slow))
                for seed in range(count)
            ]
            for number, slow in ((1, {}), (2, {("n3", "0"): -math.log(0.9)}))
        )
        alarms, hits = sum(map(bool, equal)) / count, sum(("n3", "0") in each for each in ill) / count
        alone = sum(each == {("n3", "0")} for each in ill) / count
        print(
            f"{nodes} nodes, {noise:.1%} noise, {between:.1%} between: alarms {alarms:.1%}, "
            f"named {hits:.0%}, alone {alone:.0%}",
            flush=True,
        )


def measure_scale() -> None:
    names = [Node(f"n{number}", "idle", 8) for number in range(1, 1001)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        request = Request("gpu", folder, "survey", None, 3, 60, load_site(None, {}, {}))
        began, spent = time.monotonic(), time.process_time()
        print(f"{len(plan_jobs(request, names)):,} jobs planned in {time.process_time() - spent:.1f} s")
        write_survey(folder, fleet(np.random.default_rng(0), 1000, 8, slow={("n7", "2"): 0.12}))
        began, spent = time.monotonic(), time.process_time()
        code = slurm(["survey", "--report", name])
        size = (folder / "survey.html").stat().st_size
    print(
        f"code {code}; judged and drawn in {time.process_time() - spent:.1f} s of processor time, "
        f"{time.monotonic() - began:.0f} s in all, at most "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB; a page of {size:,} bytes"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
