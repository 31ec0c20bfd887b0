"""Checks the report of the quick suite that a container wrote: check_report.py FOLDER."""

import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mnist_dist.strategies import STRATEGIES


def find_problems(folder: Path) -> list[str]:
    """Returns what is wrong with a study's report; nothing, if every strategy trained and every file is there."""
    missing = [name for name in ("report.html", "report.md", "report.csv") if not (folder / name).is_file()]
    if missing:
        return [f"{folder} has no {name}" for name in missing]
    rows = list(csv.DictReader((folder / "report.csv").open(newline="", encoding="utf-8")))
    measured = {row["strategy"] for row in rows}
    problems = [f"report.csv: no row of {strategy}" for strategy in sorted(STRATEGIES.keys() - measured)]
    for row in rows:
        what = f"report.csv: {row['strategy']} on {row['devices']} devices, case {row['case_id']}"
        if row["failures"] != "0" or row["runs"] == "0":
            problems.append(f"{what}: {row['runs']} runs, {row['failures']} failures")
    accuracies = [float(row["test_accuracy"]) for row in rows if row["test_accuracy"]]
    if not accuracies or min(accuracies) < 0.97:
        problems.append(f"report.csv: test accuracies {accuracies}, expected some, and all of at least 0.97")
    return problems


if __name__ == "__main__":
    found = find_problems(Path(sys.argv[1]))
    print("\n".join(found), end="\n" if found else "", file=sys.stderr)
    sys.exit(bool(found))
