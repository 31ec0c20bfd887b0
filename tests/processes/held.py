"""Holds a run at a place of its code until a test goes on: on a busy machine, it might be over otherwise."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.harness import REPOSITORY
from tests.processes.conftest import Run, wait_until

HOOK = REPOSITORY / "tests" / "campaign" / "hook"


@dataclass(frozen=True)
class Held:
    """The first process that comes to its place stops there; what is said of places stands in campaign/hook/.

    Attributes:
        file: where the hook leaves the process' number.
        place: an audit event and a pattern for a name in its arguments.
        rank: the one that stops; None where there is one process.
    """

    file: Path
    place: str
    rank: int | None = None

    @property
    def variables(self) -> dict[str, str]:
        """The environment of the run."""
        rank = "" if self.rank is None else str(self.rank)
        held = {"CAMPAIGN_PLACE": self.place, "CAMPAIGN_RANK": rank, "CAMPAIGN_HELD": str(self.file)}
        return held | {"PYTHONPATH": f"{HOOK}{os.pathsep}{REPOSITORY}"}

    def wait(self, run: Run, seconds: float = 500.0) -> int:
        """Returns the process that has come to the place and stopped there."""
        arrived = wait_until(lambda: self._process() is not None or run.process.poll() is not None, seconds)
        process = self._process()
        if not arrived or process is None:
            run.kill_group()
            run.finish(seconds)
            raise AssertionError(f"it never came to {self.place}:\n{run.output}")
        return process

    def _process(self) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            process = int(self.file.read_text())
            if (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] == "T":
                return process
        return None
