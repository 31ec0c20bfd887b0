from __future__ import annotations

import contextlib
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mnist_dist.benchmarks.measure import process, runner
from mnist_dist.benchmarks.measure.process import Running, kernel_ooms
from mnist_dist.benchmarks.measure.runner import Run, Study, harness_address, launch_command, skipped
from mnist_dist.benchmarks.measure.suite import Machine
from mnist_dist.benchmarks.measure.turns import Harness
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.distributed.turns import connect
from mnist_dist.errors import UserError
from tests.benchmarks.harness import (
    MARK,
    REPOSITORY,
    make_mark,
    make_study,
    marked_processes,
    plan_case,
    ranks_of,
    run_case,
    small_case,
    small_settings,
    start,
    wait_until,
    write_suite,
)

CASE = Case(measure_seconds=1.0, cores_per_device=1)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return make_study(tmp_path / "scratch")


@pytest.fixture
def run_program(tmp_path: Path) -> Callable[..., Record]:
    """Measures a case of which the training is a program of the test's own."""

    def run(program: str, case: Case = CASE, **fields: object) -> Record:
        file = tmp_path / "program.py"
        file.write_text(program)
        return run_case(make_study(tmp_path / "scratch", program=(sys.executable, str(file)), **fields), case)

    return run


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """Marks what this process starts."""
    value = make_mark()
    monkeypatch.setenv(MARK, value)
    return value


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """The file into which a process writes its number to be left with 64 MiB."""
    own = Path("/proc/self/cgroup").read_text().splitlines()
    folders = {line.split(":")[1]: line.split(":")[2].lstrip("/") for line in own}
    old = "memory" in folders
    parent = Path("/sys/fs/cgroup/memory" if old else "/sys/fs/cgroup", folders.get("memory" if old else "", ""))
    group = parent / f"mnist-dist-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(64 * 2**20))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"needs the right to make a control group for memory: {error}")
    yield group / "cgroup.procs"
    assert wait_until(lambda: not (group / "cgroup.procs").read_text(), 60)
    group.rmdir()


@pytest.mark.slow
class TestFailures:
    """The programs are small; that they fail, and how the harness sees it, is real."""

    def test_an_error_that_it_printed(self, run_program: Callable[..., Record]) -> None:
        record = run_program("print('started', flush=True)\nraise ValueError('no such digit')")
        assert (record.status, record.reason) == ("failed", "exit code 1: ValueError: no such digit")
        assert record.output_tail[0] == "started"
        assert record.measurements is None
        assert record.identity.hosts == (platform.node(),)
        assert record.identity.config["training"]["measure_seconds"] == 1.0

    def test_the_configuration_is_that_which_the_program_wrote(self, run_program: Callable[..., Record]) -> None:
        """Another commit may have other defaults, and more or fewer settings."""
        program = "import pathlib, sys; folder = pathlib.Path(sys.argv[sys.argv.index('--workdir') + 1])\n"
        program += "folder.mkdir(); (folder / 'config.yaml').write_text({!r}); raise SystemExit(1)"
        assert run_program(program.format("optimizer: {gone: 7}")).identity.config == {"optimizer": {"gone": 7}}
        cut_off = run_program(program.format("optimizer: {gone"))
        assert cut_off.identity.config["training"]["measure_seconds"] == 1.0

    def test_only_the_end_of_a_long_output_is_kept(self, run_program: Callable[..., Record]) -> None:
        record = run_program("for i in range(50_000): print('line', i)\nprint('x' * 10_000)\nraise SystemExit(3)")
        assert record.reason == "exit code 3"
        assert len(record.output_tail) == 30
        assert record.output_tail[-2:] == ("line 49999", "x" * 500)

    def test_output_that_is_no_text(self, run_program: Callable[..., Record]) -> None:
        program = "import os; os.write(2, b'ValueError: \\xff\\x1b[31m\\0\\r\\n\\xe2\\x80\\xa8'); raise SystemExit(1)"
        record = run_program(program)
        assert record.reason == "exit code 1: ValueError: \N{REPLACEMENT CHARACTER}?[31m?"

    @pytest.mark.parametrize(
        ("number", "said"),
        [(11, "killed by signal 11 (Segmentation fault)"), (40, "killed by signal 40 (")],
    )
    def test_killed_by_a_signal(self, run_program: Callable[..., Record], number: int, said: str) -> None:
        record = run_program(f"import os; os.kill(os.getpid(), {number})")
        assert record.status == "failed" and record.reason and record.reason.startswith(said)

    @pytest.mark.parametrize("result", ["", "[]", '{"status": "completed"}', '{"status": "preempted"}', "{nonsense"])
    def test_it_ended_well_but_left_no_result(self, run_program: Callable[..., Record], result: str) -> None:
        program = (
            "import sys, pathlib\nfolder = pathlib.Path(sys.argv[sys.argv.index('--workdir') + 1])\nfolder.mkdir()\n"
            f"(folder / 'step_times.json').write_text('{{}}')\n"
            f"if {result!r}: (folder / 'result.json').write_text({result!r})"
        )
        record = run_program(program)
        assert record.status == "failed"
        assert record.reason and record.reason.startswith("it succeeded, but left no complete result")

    def test_numbers_that_make_no_sense(self, run_program: Callable[..., Record], tmp_path: Path) -> None:
        times = {"window_steps": [1], "window_seconds": [[-1.0]], "hosts": ["127.0.0.1"], "startup_seconds": [1.0]}
        times |= {"first_step_seconds": [1.0], "peak_memory_bytes": [1], "peak_device_memory_bytes": None}
        result = {"status": "measured", "flops_per_image": 1, "precision": "float32", "xla": "off", "device": "CPU"}
        program = (
            "import json, sys, pathlib\nfolder = pathlib.Path(sys.argv[sys.argv.index('--workdir') + 1])\n"
            "folder.mkdir()\n(folder / 'metrics.jsonl').touch()\n"
            f"(folder / 'step_times.json').write_text(json.dumps({times!r}))\n"
            f"(folder / 'result.json').write_text(json.dumps({result!r}))"
        )
        record = run_program(program)
        assert record.status == "failed"
        assert record.reason and "window_seconds.0.0: received -1.0" in record.reason
        record = run_program(program.replace("-1.0", "0.25"), machine=Machine(cores=2, gpus=2, devices_per_host=2))
        assert record.status == "failed" and record.measurements is None
        assert record.reason and record.reason.startswith("it computed on the CPU, but the study expects 2 GPUs")
        record = run_program(program.replace("-1.0", "0.25"))
        assert (record.status, record.turns) == ("ok", None), "a program that knows no turns is measured by itself"
        assert (record.measurements or {})["window_cycles"] is None

    def test_it_has_no_more_memory_than_it_may_take(self, run_program: Callable[..., Record]) -> None:
        program = (
            "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))\n"
            "kept = []\nwhile True: kept.append(bytearray(2**24))"
        )
        record = run_program(program)
        assert (record.status, record.reason) == ("out_of_memory", "exit code 1: MemoryError")

    @pytest.mark.parametrize(
        "line",
        [
            "tensorflow.python.framework.errors_impl.ResourceExhaustedError: {{function_node __wrapped__AddV2}} OOM "
            "when allocating tensor with shape[1000000,1000000] and type float on /job:localhost/replica:0/task:0/"
            "device:GPU:0 by allocator GPU_0_bfc [Op:AddV2] name:",
            "XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.",
            "CUDA_ERROR_OUT_OF_MEMORY: out of memory",
            "terminate called after throwing an instance of 'std::bad_alloc'",
            "slurmstepd: error: Detected 1 oom_kill event in StepId=12.0. Some of the step tasks have been OOM Killed.",
            "OSError: [Errno 12] Cannot allocate memory",
        ],
    )
    def test_it_says_that_memory_was_short(self, run_program: Callable[..., Record], line: str) -> None:
        """Far from the end, as other ranks complain after it."""
        record = run_program(f"print({line!r})\nfor i in range(100): print('lost the others')\nraise SystemExit(1)")
        assert record.status == "out_of_memory"

    def test_the_kernel_took_it_for_its_memory(
        self, run_program: Callable[..., Record], memory_group: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(process, "kernel_ooms", kernel_ooms)
        program = (
            f"import os; open({str(memory_group)!r}, 'w').write(str(os.getpid()))\n"
            "kept = []\nwhile True: kept.append(bytearray(b'1') * 2**22)"
        )
        record = run_program(program)
        assert (record.status, record.reason) == ("out_of_memory", "killed by signal 9 (Killed)")

    @pytest.mark.slow
    def test_its_time_is_up(
        self, run_program: Callable[..., Record], mark: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It has a child, and neither cares for being asked to end."""
        monkeypatch.setattr(process, "GRACE_SECONDS", 0.5)
        program = (
            "import signal, subprocess, sys, time\n"
            "for number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, signal.SIG_IGN)\n"
            "print('waiting', flush=True)\nsubprocess.Popen(['sleep', '600'])\ntime.sleep(600)"
        )
        began = time.monotonic()
        record = run_program(program, timeout_seconds=5.0)
        assert time.monotonic() - began < 100
        assert (record.status, record.reason) == ("timeout", "not ready after 5 s")
        assert record.output_tail == ("waiting",)
        assert not marked_processes(mark)

    def test_what_a_program_leaves_running_is_ended(self, run_program: Callable[..., Record], mark: str) -> None:
        run_program("import subprocess; subprocess.Popen(['sleep', '600'])")
        assert wait_until(lambda: not marked_processes(mark), 60)


class TestPlace:
    @pytest.mark.slow
    @pytest.mark.parametrize(("devices", "cores_per_device"), [(1, 1), (2, 1), (1, None)])
    def test_a_case_is_bound_to_the_cores_of_its_devices(
        self,
        run_program: Callable[..., Record],
        devices: int,
        cores_per_device: int | None,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        usable = sorted(os.sched_getaffinity(0))
        monkeypatch.setattr(runner, "thread_siblings", lambda core: [core])
        case = Case(measure_seconds=1.0, devices=devices, strategy="mirrored", cores_per_device=cores_per_device)
        record = run_program("import os; print(sorted(os.sched_getaffinity(0))); raise SystemExit(1)", case)
        expected = usable[: devices * cores_per_device] if cores_per_device else usable
        assert record.output_tail == (str(expected),)
        assert sorted(os.sched_getaffinity(0)) == usable, "the harness itself is not bound"

    @pytest.mark.parametrize(("devices", "expected"), [(1, {0}), (2, {0, 2}), (3, {0, 1, 2})])
    def test_second_hardware_threads_come_last(
        self, devices: int, expected: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
        monkeypatch.setattr(runner, "thread_siblings", lambda core: [core - core % 2, core - core % 2 + 1])
        case = Case(devices=devices, strategy="mirrored", cores_per_device=1)
        assert runner._cores(case, make_study(tmp_path)) == expected

    def test_the_code_of_the_study_runs_wherever_the_harness_does(self, tmp_path: Path) -> None:
        """`python -m` prefers the folder it is started in, which often is this checkout."""
        (tmp_path / "code" / "mnist_dist").mkdir(parents=True)
        (tmp_path / "code" / "mnist_dist" / "__init__.py").touch()
        (tmp_path / "code" / "mnist_dist" / "__main__.py").write_text("raise SystemExit('the other code')")
        record = run_case(make_study(tmp_path / "scratch", code=tmp_path / "code"), CASE)
        assert record.output_tail == ("the other code",)
        assert record.identity.git is None

    @pytest.mark.parametrize(
        ("case", "machine", "expected"),
        [
            ({"strategy": "horovod", "devices": 8, "hosts": 2, "cores_per_device": 2}, {}, (2, 8, 4, 2)),
            ({"strategy": "mirrored", "devices": 4, "cores_per_device": 2}, {}, (1, 1, 1, 8)),
            ({"strategy": "single"}, {}, (1, 1, 1, 16)),
            ({"strategy": "multiworker", "devices": 4, "hosts": 2}, {"gpus": 2}, (2, 4, 2, 8)),
        ],
    )
    def test_srun_gives_each_rank_its_cores(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        case: dict[str, object],
        machine: dict[str, int],
        expected: tuple[int, ...],
    ) -> None:
        job = Machine(**({"cores": 16, "gpus": 0, "devices_per_host": 4, "hosts": 2} | machine))
        command = launch_command(["train"], make_study(tmp_path, machine=job), Case(**case))
        assert (command[0], command[-1]) == ("srun", "train")
        assert "--overlap" in command, "others of the round have steps on the same cores"
        assert "--export=ALL" in command, "the site may hand on no variables"
        for flag, value in zip(("nodes", "ntasks", "ntasks-per-node", "cpus-per-task"), expected, strict=True):
            assert f"--{flag}={value}" in command
        assert ("--gpus-per-node=2" in command) == bool(machine)
        monkeypatch.setenv("MNIST_DIST_GPU_FLAG", "gres")
        command = launch_command(["train"], make_study(tmp_path, machine=job), Case(**case))
        assert ("--gres=gpu:2" in command) == bool(machine) and not any("gpus-per" in flag for flag in command)

    def test_a_job_with_a_container_runs_its_tasks_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MNIST_DIST_SRUN_FLAGS", r"--container-image=a.sqsh --container-mounts=/my\ folder ")
        monkeypatch.setenv("MNIST_DIST_TASK_PYTHON", "apptainer exec a.sif python3 ")
        study = make_study(tmp_path, machine=Machine(cores=4, gpus=0, devices_per_host=4, hosts=1))
        command = launch_command([sys.executable, "-m", "mnist_dist"], study, CASE)
        task = ["apptainer", "exec", "a.sif", "python3", "-m", "mnist_dist"]
        assert command[-8:] == ["--container-image=a.sqsh", "--container-mounts=/my folder", *task]

    def test_without_a_job_there_is_no_srun(self, tmp_path: Path) -> None:
        assert launch_command(["train"], make_study(tmp_path), CASE) == ["train"]


def test_a_skipped_case_has_a_record(study: Study) -> None:
    record = skipped(Run(study, plan_case(CASE, skip_reason="no such device"), 1))
    record.check()
    assert (record.status, record.reason, record.repeat) == ("skipped", "no such device", 1)


def test_one_that_cannot_be_started_leaves_nothing(tmp_path: Path, small_disk: Path, fill: Callable) -> None:  # type: ignore[type-arg]
    """The disk is full: nothing can be measured, and the error says so."""
    fill(small_disk)
    with pytest.raises(UserError, match="No space left on device"):
        run_case(make_study(small_disk / "scratch"), CASE)


class TestAddress:
    """Ranks on other hosts reach the harness, and nobody else does where there are none."""

    def test_outside_a_job(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLURM_JOB_NODELIST", "node[1-2]")
        assert harness_address(Machine(2, 0, 2)) == "127.0.0.1"

    def test_on_the_only_node_of_a_job(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLURM_JOB_NODELIST", "node1")
        monkeypatch.setenv("SLURMD_NODENAME", "node1")
        assert harness_address(Machine(2, 0, 2, hosts=1)) == "127.0.0.1"

    def test_towards_other_nodes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As on a login node too, which is none of the job's."""
        monkeypatch.setenv("PATH", "")  # Without scontrol, as in a container, names serve as addresses.
        monkeypatch.delenv("SLURMD_NODENAME", raising=False)
        monkeypatch.setenv("SLURM_JOB_NODELIST", "localhost")
        address = harness_address(Machine(2, 0, 2, hosts=1))
        with Harness(address) as harness, connect(harness.variables("a")["MNIST_DIST_TURNS"]) as connection:
            assert connection.getpeername()[0] == address == "127.0.0.1"

    def test_without_a_way_to_them(self, monkeypatch: pytest.MonkeyPatch, user_error: Callable[..., str]) -> None:
        monkeypatch.setenv("PATH", "")
        monkeypatch.setenv("SLURM_JOB_NODELIST", "no-such-node.invalid")
        assert "cannot reach 'no-such-node" in user_error(harness_address, Machine(2, 0, 2, hosts=2))


@pytest.mark.slow
class TestTraining:
    def test_bad_input_is_quoted(self, study: Study) -> None:
        record = run_case(study, Case(settings={"data.path": "/nowhere/mnist.npz"}))
        assert record.status == "failed"
        assert record.reason and "exit code 2: mnist-dist: error: data.path: '/nowhere/mnist.npz'" in record.reason

    @pytest.mark.thorough
    def test_when_its_time_is_up_no_rank_is_left(self, tmp_path: Path, tiny_mnist: Path, mark: str) -> None:
        settings = small_settings(tiny_mnist) | {"training.epochs": 10_000}
        case = small_case(tiny_mnist, strategy="multiworker", devices=2, measure_seconds=None, settings=settings)
        seen: set[int] = set()
        study = make_study(tmp_path / "scratch", timeout_seconds=45.0)
        record = run_case(study, case, tick=lambda: seen.update(ranks_of(mark)))
        assert record.status == "timeout", record.reason
        assert seen == {0, 1}, "the ranks had not yet started"
        assert wait_until(lambda: not marked_processes(mark), 60)


@pytest.mark.thorough  # An interrupted round in test_study.py shows most of it.
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_harness_that_is_stopped_leaves_no_process(
    tmp_path: Path, tiny_mnist: Path, number: signal.Signals, code: int
) -> None:
    long = {"strategies": ["horovod"], "devices": [2], "block": {"measure_seconds": 600}}
    suite, mark = write_suite(tmp_path / "long.yaml", tiny_mnist, **long), make_mark()
    harness = start("run", suite, "--results", tmp_path / "results", mark=mark)
    try:
        assert wait_until(lambda: set(ranks_of(mark)) == {0, 1}, 300)
        cores = sorted(os.sched_getaffinity(0))
        assert {rank: os.sched_getaffinity(process) for rank, process in ranks_of(mark).items()} == {
            rank: {cores[rank]} for rank in (0, 1)
        }
        harness.send_signal(number)
        _, errors = harness.communicate(timeout=300)
        assert harness.returncode == code, errors
        assert wait_until(lambda: not marked_processes(mark), 60), marked_processes(mark)
        assert not list((tmp_path / "results").glob("records/*"))
        if number == signal.SIGINT:
            assert errors.splitlines()[-2] == "mnist-dist: interrupted; what has been measured is kept"
            assert "Traceback" not in errors
    finally:
        for process in marked_processes(mark):
            os.kill(process, signal.SIGKILL)


@pytest.mark.slow
def test_what_a_killed_round_left_goes_before_the_next(tmp_path: Path) -> None:
    """But neither what a round uses that goes on, nor what one on another host may use, whose locks do not reach."""
    scratch = tmp_path / "scratch"
    elsewhere = {scratch / "round-another.host-abcdefgh", scratch / f"round-{socket.gethostname()}-1-abcdefgh"}
    for folder in elsewhere:
        folder.mkdir(parents=True)
    program = (
        "import os, pathlib, sys; from mnist_dist.benchmarks.measure import runner\n"
        "with runner._folder_for_a_while(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'log').touch(); os._exit(9)"
    )
    command = [sys.executable, "-c", program, str(scratch)]
    assert subprocess.run(command, cwd=REPOSITORY, check=False).returncode == 9
    (left,) = set(scratch.iterdir()) - elsewhere
    with runner._folder_for_a_while(scratch) as one:
        assert not left.exists()
        with runner._folder_for_a_while(scratch) as other:
            assert one.is_dir() and other.is_dir()
    assert {*scratch.iterdir()} == elsewhere


def test_processor_time_holds_that_of_children_that_have_ended(tmp_path: Path) -> None:
    """As of a compiler: else other programs would seem to have used it."""
    child = "import time\nwhile time.process_time() < 0.5: pass"
    program = (
        f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {child!r}])\nprint('done', flush=True)"
    )
    command = [sys.executable, "-c", f"{program}\ntime.sleep(600)"]
    running = Running(command, tmp_path, dict(os.environ), os.sched_getaffinity(0), tmp_path / "log")
    try:
        assert wait_until(lambda: "done" in (tmp_path / "log").read_text(), 60)
        assert running.cpu_seconds() >= 0.5
    finally:
        running.kill()
