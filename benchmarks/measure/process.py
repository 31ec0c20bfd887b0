"""A command as a process group of its own: started on some cores, ended in time, its end put into words."""

import contextlib
import ctypes
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mnist_dist.benchmarks.records.record import Status, one_line

TAIL_LINES = 30
TICK_SECONDS = 1.0  # Between two looks at the clock.
GRACE_SECONDS = 10.0  # For the ranks to end by themselves when they are told to.
LOG_BYTES = 100_000  # Of the end of a command's output, in which errors are looked for.
OUT_OF_MEMORY = re.compile(
    r"resource_?exhausted|OOM when allocating|out[ _]of[ _]memory|MemoryError|std::bad_alloc|oom.?kill|"
    r"cannot allocate memory",
    re.IGNORECASE,
)
PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None)  # Loaded now: between fork and exec there must be no import.


@dataclass(frozen=True)
class End:
    """How a command ended, in a record's words; `tail` are its last lines."""

    status: Status
    reason: str | None = None
    tail: Sequence[str] = ()


class Running:
    """A command from its start to its end."""

    def __init__(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str], cores: set[int], log: Path
    ) -> None:
        self.log = log
        self._kernel_ooms = kernel_ooms()

        def prepare() -> None:
            """Binds the child to its cores, and to the life of the harness: an orphan would disturb what comes next."""
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            os.sched_setaffinity(0, cores)

        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=folder,  # `python -m` looks for modules here first.
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=prepare,
            )

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def wait(self, seconds: float, tick: Callable[[], None] = lambda: None) -> bool:
        """Sleeps until it has ended, `tick` being called about once a second; returns whether it has, in time."""
        deadline = time.monotonic() + seconds
        while not self._ended(min(TICK_SECONDS, max(deadline - time.monotonic(), 0.0))):
            tick()
            if time.monotonic() >= deadline:
                return False
        return True

    def end(self, timed_out: str | None = None) -> End:
        """Ends it if it is still there, for which `timed_out` is the reason to give, and says how it ended."""
        had_ended = not self.is_alive
        self.kill()
        lines = _last_lines(self.log)
        tail, code = lines[-TAIL_LINES:], self.process.returncode
        if not had_ended and timed_out is not None:
            return End("timeout", timed_out, tail)
        if code == 0:
            return End("ok", None, tail)
        says_so = any(OUT_OF_MEMORY.search(line) for line in lines)
        return End(
            "out_of_memory" if says_so or kernel_ooms() > self._kernel_ooms else "failed", _why(code, tail), tail
        )

    def terminate(self) -> None:
        """Asks it to end, without waiting until it has."""
        if self.is_alive:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the group: with a signal that its launcher hands on, then by force."""
        process = self.process
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT, signal.SIGKILL):  # Two SIGINT end a step of srun.
            if process.poll() is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                if number == signal.SIGTERM:
                    process.send_signal(number)
                else:
                    os.killpg(process.pid, number)
            self._ended(GRACE_SECONDS if number == signal.SIGTERM else 1.0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # What the leader left behind.
        with contextlib.suppress(subprocess.TimeoutExpired):  # A driver or a network disk may hold it for ever.
            process.wait(GRACE_SECONDS)

    def cpu_seconds(self) -> float:
        """Returns the processor time of the command and its descendants on this host, so far."""
        return _cpu_seconds(self.process.pid)

    def _ended(self, seconds: float) -> bool:
        """Sleeps until it ends, without looking again and again; returns whether it has."""
        if self.process.poll() is not None:
            return True
        try:
            handle = os.pidfd_open(self.process.pid)
        except OSError:  # Before Linux 5.3.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        else:
            try:
                select.select([handle], [], [], seconds)
            finally:
                os.close(handle)
        return self.process.poll() is not None


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # It has ended.
        return 0.0
    own = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # With that of children that it has seen end.
    return own + sum(_cpu_seconds(int(child)) for child in children)


def _last_lines(log: Path) -> list[str]:
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - LOG_BYTES, 0))
        return [line[:500] for line in file.read().decode(errors="replace").splitlines()]


def _why(code: int | None, tail: Sequence[str]) -> str:
    """Names the error that a command printed, or how it ended."""
    errors = [line for line in tail if re.search(r"\berror: |\w(Error|Exception)(: |$)", line)]
    if code is None:
        ended = "it does not end, not even by SIGKILL"
    else:
        ended = f"killed by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"
    return one_line(f"{ended}: {errors[-1]}" if errors else ended)


def kernel_ooms() -> int:
    """Returns how many processes the kernel has killed for want of memory, as far as it tells."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(re.findall(r"^oom_kill (\d+)", Path("/proc/vmstat").read_text(), re.M)[0])
    return 0
