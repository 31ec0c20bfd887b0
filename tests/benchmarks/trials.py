"""Comparisons of real commits, one after another: how often two equal ones are called the same, and a slow one slower.

    python -m tests.benchmarks.trials [--tries 10] [--slower 3] [--smallest-effect 2] [--disturb]

The slow commit sleeps after the steps of each turn for this share of what they took. A disturbance keeps one core busy
for 2 s in every 5.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.harness import COMMAND, REPOSITORY

IDENTITY = ["-c", "user.name=A Trial", "-c", "user.email=trial@example.org", "-c", "commit.gpgsign=false"]
SUITE = {
    "description": "One case on one device.",
    "minutes": 2,
    "repeats": 8,  # Fresh processes of one program differ by about 1 % for life.
    "strategies": ["single"],
    "devices": [1],
    "blocks": [{"measure_seconds": 4}],
}
STEPS = "            take_steps(turn.steps)\n"
SLOWER_STEPS = """            import time

            began = time.perf_counter()
            take_steps(turn.steps)
            time.sleep({share} * (time.perf_counter() - began))
"""
DISTURBANCE = """
import time
while True:
    began = time.monotonic()
    while time.monotonic() - began < 2: pass
    time.sleep(3)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--slower", type=float, default=0.0, metavar="PERCENT")
    parser.add_argument("--smallest-effect", default="2", metavar="PERCENT")
    parser.add_argument("--disturb", action="store_true")
    options = parser.parse_args()
    verdicts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, disturbed() if options.disturb else contextlib.nullcontext():
        checkout = Path(folder, "checkout")
        make_commits(checkout, options.slower / 100)
        Path(folder, "suite.yaml").write_text(json.dumps(SUITE))
        for number in range(1, options.tries + 1):
            began = time.monotonic()
            command = [*COMMAND, "compare", "--interleave", "HEAD~1", "HEAD", "--suite", f"{folder}/suite.yaml"]
            command += ["--results", f"{folder}/try-{number}", "--smallest-effect", options.smallest_effect]
            variables = {**os.environ, "PYTHONPATH": ""}
            done = subprocess.run(command, cwd=checkout, env=variables, capture_output=True, text=True, check=False)
            row = next((line for line in done.stdout.splitlines() if line.startswith("single")), done.stderr[-300:])
            verdicts[row.split()[-1] if done.stdout else f"exit {done.returncode}"] += 1
            print(f"{number}: exit {done.returncode} after {time.monotonic() - began:.0f} s: {row}", flush=True)
    print(", ".join(f"{verdict} {count} of {options.tries}" for verdict, count in verdicts.most_common()))


def make_commits(checkout: Path, share: float) -> None:
    """Clones this repository and adds a commit: an empty one, or one whose steps take longer by this share."""

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", str(checkout), *IDENTITY, *arguments], check=True)

    subprocess.run(["git", "clone", "--quiet", "--local", str(REPOSITORY), str(checkout)], check=True)
    if share:
        turns = checkout / "mnist_dist" / "training" / "by_turns.py"
        text = turns.read_text()
        assert text.count(STEPS) == 1
        turns.write_text(text.replace(STEPS, SLOWER_STEPS.format(share=share)))
    git("commit", "--quiet", "--all", "--allow-empty", "--message", f"slower by {share:.1%}")


@contextlib.contextmanager
def disturbed() -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", DISTURBANCE]) as process:
        try:
            yield
        finally:
            process.kill()


if __name__ == "__main__":
    main()
