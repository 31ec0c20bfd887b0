"""A real Slurm cluster on this machine: one controller and a `slurmd` per node, all in one temporary folder.

`python -m tests.slurm.cluster FOLDER` runs it until its standard input closes, which also happens when the tests are
killed; then nothing of it is left, jobs included. The nodes share this machine's address and differ by port.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # Users have the daemons' folder not on their PATH.
CPUS = 4  # That each node claims to have, however few there are.
# Partitions with the names of their nodes: their order is not that of text, and the lists of them have all forms.
PARTITIONS = {
    "cpu": ("n9", "n10"),
    "gpu": ("rack1n1", "rack1n2", "rack2n1", "rack2n2"),
    "ib": ("n1-ib", "n2-ib"),
}
# More partitions of the first one's nodes.
PAID = "paid"  # Asks for an account, as many a site does.
URGENT = "urgent"  # Its jobs preempt those of the others.
ALL = "all"  # All nodes.
FEW_AT_A_TIME = "--licenses=few"  # As all nodes share this machine.
JOB_SUBMIT = f"""
function slurm_job_submit(job, partitions, user)
    if job.partition == "{PAID}" and job.account == nil then
        return slurm.ESLURM_INVALID_ACCOUNT
    end
    return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, user)
    return slurm.SUCCESS
end
return slurm.SUCCESS
"""
NODES = [node for nodes in PARTITIONS.values() for node in nodes]
GPU_FILES = ("/dev/null", "/dev/zero")  # Of each node. Slurm only asks that a GPU is a character device.
START_SECONDS = 90.0
CLAIMS: list[socket.socket] = []  # Of the ports of this process' cluster.
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")  # For good.


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]


class Cluster:
    """The running cluster, seen by the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = clean_environment() | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}

    def run(self, *command: str, check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
        """Runs a command with this cluster's configuration."""
        environment = self.environment | dict(options.pop("env", {}) or {})  # type: ignore[call-overload]
        done = subprocess.run(  # type: ignore[call-overload]
            command, env=environment, capture_output=True, text=True, timeout=300, check=False, **options
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def job(self, job_id: str) -> dict[str, str]:
        """Returns what `scontrol` says of a job."""
        text = self.run("scontrol", "--oneliner", "show", "job", job_id).stdout.splitlines()[0]
        return dict(part.split("=", 1) for part in text.split() if "=" in part)

    def state(self, job_id: str) -> str:
        return self.job(job_id)["JobState"]

    def wait(self, job_id: str, seconds: float = 500) -> dict[str, str]:
        """Waits until a job has ended for good."""
        assert wait_until(lambda: self.state(job_id) in ENDED, seconds), f"{self.job(job_id)}"
        return self.job(job_id)

    def processes_of(self, node: str) -> list[int]:
        """Returns the processes of jobs on a node, each task's `slurmstepd` before the task."""
        tasks = [pid for pid, values in environments() if self._is_task_on(node, values)]
        managers = {parent_of(pid) for pid in tasks} - set(tasks)
        return [pid for pid in managers if "slurmstepd" in command_of(pid)] + tasks

    def rank_processes(self, job_id: str) -> list[int]:
        """Returns the training processes of a job, in the order of their ranks."""
        found = {}
        for pid, values in environments():
            is_ours = values.get("SLURM_CONF") == self.environment["SLURM_CONF"]
            if is_ours and job_id in (values.get("SLURM_JOB_ID"), values.get("SLURM_ARRAY_JOB_ID")):
                program, *arguments = command_of(pid).split()
                if "python" in program and {"mnist_dist", "train"} <= set(arguments):
                    found[int(values["SLURM_PROCID"])] = pid
        return [pid for _, pid in sorted(found.items())]

    def _is_task_on(self, node: str, values: Mapping[str, str]) -> bool:
        return values.get("SLURMD_NODENAME") == node and values.get("SLURM_CONF") == self.environment["SLURM_CONF"]

    def cut_power(self, node: str) -> None:
        """Kills a node's daemon and all it runs, at once; what does not know of Slurm as well."""
        os.kill(int((self.folder / f"{node}.pid").read_text()), signal.SIGKILL)
        known = self.processes_of(node)
        below = [pid for each in known for pid in all_descendants(each)]
        for pid in dict.fromkeys([*known, *below]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def restore_power(self, node: str) -> None:
        (self.folder / f"{node}.start").touch()
        assert wait_until(lambda: not (self.folder / f"{node}.start").exists(), START_SECONDS)
        assert wait_until(lambda: self.node_state(node) in ("idle", "mixed", "allocated"), START_SECONDS), logs(
            self.folder
        )

    def node_state(self, node: str) -> str:
        return self.run("sinfo", "--noheader", "--nodes", node, "--format=%T").stdout.split()[0]


@contextlib.contextmanager
def start_cluster(folder: Path, task_plugin: str = "none") -> Iterator[Cluster]:
    """Starts the cluster in a process that outlives this one only for as long as it takes to clean up.

    Args:
        task_plugin: "affinity" binds tasks to cores; nodes then have no more of them than this machine.
    """
    cluster = Cluster(folder)
    with (folder / "supervisor.log").open("w") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "tests.slurm.cluster", str(folder), task_plugin],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[2],
            start_new_session=True,  # Ctrl-C is for the tests, which then close the pipe.
        )
        try:
            ready = wait_until(lambda: (folder / "ready").exists() or supervisor.poll() is not None, START_SECONDS + 15)
            assert ready and supervisor.poll() is None, f"Slurm did not start:\n{logs(folder)}"
            yield cluster
        finally:
            assert supervisor.stdin
            supervisor.stdin.close()
            try:
                supervisor.wait(120)
            finally:
                supervisor.kill()


def logs(folder: Path) -> str:
    return "\n".join(
        f"== {file.name}\n{file.read_text()[-2000:]}" for file in sorted(folder.glob("*.log")) if file.stat().st_size
    )


def clean_environment() -> dict[str, str]:
    """Returns this environment without what belongs to a job that the tests themselves may run in."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM", "SBATCH", "SRUN", "MNIST_DIST_", "HOROVOD_"))
    }


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return condition()


def environments() -> Iterator[tuple[int, dict[str, str]]]:
    """Yields every process that this user may look into, with its environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            items = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            yield int(folder.name), dict(item.split("=", 1) for item in items if "=" in item)


def parent_of(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


# --- The supervisor ---


def main(folder: Path, task_plugin: str) -> None:
    become_subreaper()
    children: list[subprocess.Popen[bytes]] = []
    try:
        children += start_daemons(folder, task_plugin)
        (folder / "ready").touch()
        while not standard_input_closed(0.2):
            for request in folder.glob("*.start"):
                children.append(start_slurmd(folder, request.stem))
                request.unlink()
    finally:
        subprocess.run(
            ["scancel", "--full", "--signal=KILL", "--user", pwd.getpwuid(os.geteuid()).pw_name],
            env=daemon_environment(folder),
            timeout=10,
            check=False,
        )
        for child in children:
            child.terminate()
        kill_descendants(grace_seconds=3)


def standard_input_closed(seconds: float) -> bool:
    import select

    return bool(select.select([0], [], [], seconds)[0]) and not os.read(0, 1)


def daemon_environment(folder: Path) -> dict[str, str]:
    return clean_environment() | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}


def start_daemons(folder: Path, task_plugin: str) -> list[subprocess.Popen[bytes]]:
    """Starts munged, slurmctld and all slurmd, and waits until every node is idle."""
    write_configuration(folder, task_plugin)
    munge = folder / "munge"
    munge.mkdir(mode=0o755)
    (munge / "key").write_bytes(secrets.token_bytes(128))
    (munge / "key").chmod(0o400)
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    flags = [f"--{flag}={munge / name}" for flag, name in files.items()]
    # --force: the folder of a temporary test may be below one that others can write.
    children = [start(folder, "munged", "--foreground", "--force", *flags)]
    if not wait_until((munge / "socket").exists, START_SECONDS):
        raise RuntimeError("munged does not listen")
    children.append(start(folder, "slurmctld", "-D", "-c"))
    children += [start_slurmd(folder, node) for node in NODES]
    if not wait_until(lambda: all_idle(folder), START_SECONDS):
        raise RuntimeError("not all nodes have become idle")
    return children


def start_slurmd(folder: Path, node: str) -> subprocess.Popen[bytes]:
    return start(folder, "slurmd", "-D", "-N", node)


def start(folder: Path, program: str, *arguments: str) -> subprocess.Popen[bytes]:
    path = shutil.which(program, path=PATH)
    assert path, f"{program} is missing"
    with (folder / f"{program}.stdout").open("ab") as output:
        return subprocess.Popen(
            [path, *arguments],
            env=daemon_environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=die_with_parent,
        )


def all_idle(folder: Path) -> bool:
    answer = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--format=%T"],
        env=daemon_environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.returncode == 0 and set(answer.stdout.split()) == {"idle"}


def write_configuration(folder: Path, task_plugin: str) -> None:
    cpus = CPUS if task_plugin == "none" else min(CPUS, os.cpu_count() or 1)
    user, host = pwd.getpwuid(os.geteuid()).pw_name, socket.gethostname().split(".")[0]
    ports = neighbouring_free_ports(1 + len(NODES))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    lines = [
        "ClusterName=test",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmctldPort={ports}",
        f"SlurmUser={user}",
        f"SlurmdUser={user}",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        # A requeued job waits for as long as a credential lives.
        f"AuthInfo=socket={folder}/munge/socket,cred_expire=5",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool/%n",
        f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmdPidFile={folder}/%n.pid",
        f"SlurmctldLogFile={folder}/slurmctld.log",
        f"SlurmdLogFile={folder}/%n.log",
        "SlurmdParameters=config_overrides",
        "ProctrackType=proctrack/linuxproc",
        f"TaskPlugin=task/{task_plugin}",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        "SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0",
        "MpiDefault=none",
        "JobSubmitPlugins=lua",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        "GresTypes=gpu",
        "ReturnToService=2",
        "SlurmdTimeout=100",  # So that a lost node is found by the job itself.
        "MessageTimeout=5",
        "KillWait=5",
        "MinJobAge=3600",  # So that every job of the session can be asked for.
        "UnkillableStepTimeout=20",
        "JobAcctGatherType=jobacct_gather/none",
        "AccountingStorageType=accounting_storage/none",
    ]
    for port, node in enumerate(NODES, ports + 1):
        gres = f" Gres=gpu:{len(GPU_FILES)}" if node in PARTITIONS["gpu"] else ""
        lines.append(f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus}{gres}")
    for name, nodes in PARTITIONS.items():
        default = " Default=YES GraceTime=30" if name == "cpu" else ""
        lines.append(f"PartitionName={name} Nodes={','.join(nodes)} MaxTime=60 DefaultTime=5{default}")
    lines += ["Licenses=few:4", f"PartitionName={ALL} Nodes=ALL MaxTime=60 DefaultTime=5"]
    shared = f"Nodes={','.join(PARTITIONS['cpu'])} MaxTime=60 DefaultTime=5"
    lines += [f"PartitionName={PAID} {shared}", f"PartitionName={URGENT} {shared} PriorityTier=10"]
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
    (folder / "job_submit.lua").write_text(JOB_SUBMIT)
    gpus = [f"NodeName={node} Name=gpu File={file}" for node in PARTITIONS["gpu"] for file in GPU_FILES]
    (folder / "gres.conf").write_text("\n".join(gpus) + "\n")


def neighbouring_free_ports(count: int) -> int:
    """Returns the first of some free ports, outside of those that jobs use, which no other cluster will take."""
    for first in range(18_000, 20_000 - count, count):
        claim = socket.socket(socket.AF_UNIX)  # A name without a file, which is free again when this process ends.
        with contextlib.ExitStack() as stack:
            try:
                claim.bind(f"\0mnist-dist-tests-slurm-{first}")
                for port in range(first, first + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                claim.close()
                continue
            CLAIMS.append(claim)
            return first
    raise RuntimeError("no free ports from 18000 to 20000")


def become_subreaper() -> None:
    """Makes this process the parent of all that its daemons leave behind, such as the managers of job steps."""
    pr_set_child_subreaper = 36
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1)


def die_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def kill_descendants(grace_seconds: float) -> None:
    """Ends everything below this process, and all that it leaves behind."""
    deadline = time.monotonic() + grace_seconds
    while descendants := all_descendants(os.getpid()):
        if time.monotonic() > deadline:
            for pid in descendants:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.05)


def all_descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        children.setdefault(parent_of(int(folder.name)), []).append(int(folder.name))
    found, queue = [], [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
