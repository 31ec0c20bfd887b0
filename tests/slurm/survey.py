"""A survey of the cluster, whose nodes share this machine: one is slow, a link is slow, and a node dies on the way.

`python -m tests.slurm.survey 20` plays as many surveys; each takes two and a half minutes of two cores.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from mnist_dist.slurm.submission import read_submitted
from tests.slurm.cluster import ALL, FEW_AT_A_TIME, NODES, Cluster, start_cluster, wait_until
from tests.slurm.conftest import ROOT

SUITE = """
description: Short measurements.
minutes: 1
repeats: 2
devices: all
blocks:
  - {kind: matmul, strategies: single, devices: 1, measure_seconds: 0.3}
  - {kind: collectives, strategies: [mirrored, multiworker], measure_seconds: 0.1}
"""
SLOW_NODE, SLOW_LINK, LOST = "n2-ib", ("n10", "rack2n1"), "rack1n1"
SLOWER, NOISE = 1.3, 0.01  # Times as long as the others; standard deviation, as a share.
STEP_SECONDS = 0.2  # Of a matrix product or a sum over all ranks: a turn has one of them.
# What is injected into all that Python runs. Workers do their work and tell the time by it, at a pace that is planted,
# with the noise of a quiet fleet: 1 % between processes, and between their turns. No clock of this machine would do:
# others on its hardware slow a process by half or more, in processor time too, and where devices differ by so much, no
# survey can tell who is slow. A survey hides Slurm from what it starts, but no other variable.
PLANT = f"""
import os, random, sys, time
node = os.environ["PLANTED_NODE"] = os.environ.get("SLURMD_NODENAME") or os.environ.get("PLANTED_NODE", "")
if "mnist_dist.benchmarks.measure.worker" in sys.orig_argv:
    from mnist_dist.benchmarks.measure import timing
    from mnist_dist.distributed.cluster import expand_node_list

    nodes = set(expand_node_list(os.environ.get("SLURM_JOB_NODELIST", "")))
    factor = {SLOWER} if node == {SLOW_NODE!r} or nodes == {set(SLOW_LINK)!r} else 1.0
    step_seconds = {STEP_SECONDS} * factor * random.gauss(1.0, {NOISE})
    now = 0.0

    def clocked(run):
        def work(count):
            global now
            result = run(count)
            now += count * step_seconds * random.gauss(1.0, {NOISE})
            return result

        return work

    take_timings = timing.take_timings
    timing.take_timings = lambda runs, turns: take_timings({{name: clocked(run) for name, run in runs.items()}}, turns)
    time.perf_counter = lambda: now
"""


def play(slurm: Cluster, tmp_path: Path, rounds: int) -> None:
    """Surveys all nodes, and links in so many rounds of pairs; fails unless those planted are named, and they alone."""
    (tmp_path / "short.yaml").write_text(SUITE)
    (tmp_path / "plant").mkdir()
    (tmp_path / "plant" / "sitecustomize.py").write_text(PLANT)
    (tmp_path / "site.yaml").write_text(f'time: "00:15:00"\nsbatch_flags: [{FEW_AT_A_TIME}]\n')
    results = tmp_path / "survey"
    survey = [sys.executable, "-m", "mnist_dist", "slurm", "survey"]
    flags = ["--partition", ALL, "--devices-per-node", "1", "--pairs", str(rounds), "--results", str(results)]
    flags += ["--suite", str(tmp_path / "short.yaml"), "--site", str(tmp_path / "site.yaml")]
    environment = {"PYTHONPATH": str(tmp_path / "plant")}
    slurm.run(*survey, *flags, cwd=ROOT, env=environment)
    submitted = read_submitted(results)
    assert len(submitted.jobs) == len(NODES) + rounds * len(NODES) // 2
    try:
        assert wait_until(lambda: (results / "nodes" / LOST).exists(), 2000), logs(results)
        slurm.cut_power(LOST)
        slurm.run("scontrol", "update", f"NodeName={LOST}", "State=DOWN", "Reason=power")
        number = next(job.job for job in submitted.jobs if job.name == LOST)
        assert slurm.wait(number)["JobState"] == "NODE_FAIL"
        slurm.restore_power(LOST)
        slurm.wait(submitted.report_job, 3000)
    finally:
        slurm.run("scancel", "--partition", ALL, check=False)
    done = slurm.run(*survey, "--report", str(results), cwd=ROOT, check=False)
    told = json.loads((results / "verdict.json").read_text())
    print(done.stdout)
    assert done.returncode == 1, done.stdout + done.stderr
    found = {tuple(each["nodes"]): each["ways"] for each in told["findings"]}
    planted = {(SLOW_NODE,), (LOST,), *([SLOW_LINK] if rounds else [])}
    assert set(found) == planted, done.stdout + logs(results)
    assert told["exclude"] == sorted([SLOW_NODE, LOST])
    assert "NODE_FAIL" in found[LOST,][0]
    left = slurm.run(*survey, *flags, "--dry-run", cwd=ROOT).stdout.splitlines()
    assert len(left) == 1 and f"--nodelist={LOST} " in left[0], "a second survey goes on with what is missing"


def logs(results: Path) -> str:
    return "\n".join(file.read_text()[-3000:] for file in sorted((results / "logs").iterdir()))


def main(count: int) -> None:
    for number in range(1, count + 1):
        with tempfile.TemporaryDirectory() as folder:
            cluster_folder, survey_folder = Path(folder, "cluster"), Path(folder, "survey")
            cluster_folder.mkdir()
            survey_folder.mkdir()
            with start_cluster(cluster_folder) as cluster:
                play(cluster, survey_folder, rounds=2)
        print(f"{number} of {count}: those planted are named, and nobody else", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
