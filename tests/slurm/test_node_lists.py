"""Ranks find their place under a real srun, for every form of node list and uneven tasks."""

from __future__ import annotations

import json
import random
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_dist.distributed.cluster import expand_node_list, expand_tasks_per_node, find_cluster
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import ROOT

PLACE = (
    "import dataclasses, json, os\nfrom mnist_dist.distributed.cluster import find_cluster\n"
    "place = find_cluster(os.environ); "
    "names = ('SLURM_STEP_NODELIST', 'SLURM_STEP_TASKS_PER_NODE', 'SLURMD_NODENAME'); "
    "print(json.dumps(dataclasses.asdict(place) | {name: os.environ[name] for name in names}), flush=True)"
)


@pytest.mark.parametrize(
    ("flags", "nodes", "tasks", "hosts"),
    [
        (["--nodes=2", "--ntasks=2"], "n[9-10]", "1(x2)", ["n9", "n10"]),
        (["--nodes=2", "--ntasks=3"], "n[9-10]", "2,1", ["n9", "n9", "n10"]),
        (
            ["--partition=ib", "--nodes=2", "--ntasks=4", "--ntasks-per-node=2"],
            "n1-ib,n2-ib",
            "2(x2)",
            ["n1-ib"] * 2 + ["n2-ib"] * 2,
        ),
        (
            ["--partition=gpu", "--nodes=4", "--ntasks=8", "--ntasks-per-node=2"],
            "rack1n[1-2],rack2n[1-2]",
            "2(x4)",
            [name for name in ("rack1n1", "rack1n2", "rack2n1", "rack2n2") for _ in range(2)],
        ),
        (
            ["--partition=gpu", "--nodes=4", "--ntasks=7", "--cpus-per-task=2"],
            "rack1n[1-2],rack2n[1-2]",
            "2(x3),1",
            ["rack1n1", "rack1n1", "rack1n2", "rack1n2", "rack2n1", "rack2n1", "rack2n2"],
        ),
    ],
)
def test_places_under_srun(slurm: Cluster, flags: list[str], nodes: str, tasks: str, hosts: list[str]) -> None:
    command = ["srun", "--mpi=none", "--distribution=block", *flags, sys.executable, "-c", PLACE]
    done = slurm.run(*command, env={"PYTHONPATH": str(ROOT)})
    places = sorted((json.loads(line) for line in done.stdout.splitlines()), key=lambda place: place["rank"])
    assert {place["SLURM_STEP_NODELIST"] for place in places} == {nodes}
    assert {place["SLURM_STEP_TASKS_PER_NODE"] for place in places} == {tasks}
    here = [place["SLURMD_NODENAME"] for place in places]
    assert here == hosts
    counts = [here.count(host) for host in dict.fromkeys(here)]
    assert expand_tasks_per_node(tasks) == counts
    for rank, place in enumerate(places):
        assert (place["rank"], place["size"], place["launcher"]) == (rank, len(places), "srun")
        assert place["hosts"] == here
        assert place["local_rank"] == here[:rank].count(here[rank])
        assert place["local_size"] == here.count(here[rank])
    assert len({place["port"] for place in places}) == 1


@pytest.mark.parametrize(
    ("nodes", "tasks", "hosts"),
    [
        ("n[9-10]", "2(x2)", ["n9", "n9", "n10", "n10"]),
        ("rack[1-2]n[1-2]", "1(x3),2", ["rack1n1", "rack1n2", "rack2n1", "rack2n2", "rack2n2"]),
        ("n[1-2]-ib", "1,2", ["n1-ib", "n2-ib", "n2-ib"]),
        ("rack1n1,n10,n1-ib", "1(x3)", ["rack1n1", "n10", "n1-ib"]),
    ],
)
def test_every_form_of_node_list(
    slurm: Cluster, monkeypatch: pytest.MonkeyPatch, nodes: str, tasks: str, hosts: list[str]
) -> None:
    """Also those forms that this version of Slurm reads, but does not write itself."""
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm.environment[name])
    for rank in range(len(hosts)):
        environment = {
            "SLURM_PROCID": str(rank),
            "SLURM_STEP_NUM_TASKS": str(len(hosts)),
            "SLURM_LOCALID": str(hosts[:rank].count(hosts[rank])),
            "SLURM_STEP_NODELIST": nodes,
            "SLURM_STEP_TASKS_PER_NODE": tasks,
            "SLURMD_NODENAME": hosts[rank],
            "SLURM_JOB_ID": "1",
            "SLURM_STEP_ID": "0",
        }
        place = find_cluster(environment)
        assert place.hosts == tuple(hosts)
        assert place.addresses == ("127.0.0.1",) * len(hosts)


def test_node_lists_expand_as_scontrol_does(slurm: Cluster) -> None:
    numbers = random.Random(0)  # noqa: S311 - cases, not secrets.
    lists = [",".join(random_nodes(numbers) for _ in range(numbers.randint(1, 3))) for _ in range(40)]
    for text in lists:
        expected = slurm.run("scontrol", "show", "hostnames", text).stdout.split()
        assert expand_node_list(text) == expected, text


def random_nodes(numbers: random.Random) -> str:
    """Returns a form such as rack[1-3]n[08-11,7], with its brackets at the end."""
    parts = []
    for _ in range(numbers.randint(1, 2)):
        first, digits = numbers.randint(0, 120), numbers.randint(1, 3)
        last = first + numbers.randint(0, 4)
        ranges = [f"{first:0{digits}}-{last:0{digits}}", f"{numbers.randint(0, 99)}"]
        parts.append(f"{numbers.choice(['n', 'rack', 'gpu-'])}[{','.join(ranges[: numbers.randint(1, 2)])}]")
    return "".join(parts)


def test_steps_of_one_job_have_ports_of_their_own(slurm: Cluster) -> None:
    step = f"srun --mpi=none --ntasks=2 {sys.executable} -c '{PLACE.replace(chr(39), chr(34))}'"
    done = slurm.run("salloc", "--quiet", "--ntasks=2", "bash", "-c", f"{step}; {step}", env={"PYTHONPATH": str(ROOT)})
    ports = [json.loads(line)["port"] for line in done.stdout.splitlines()]
    assert len(ports) == 4 and len(set(ports)) == 2


def counting_scontrol(slurm: Cluster, folder: Path) -> dict[str, str]:
    """Returns the variables with which `scontrol` keeps a list of what it was asked."""
    (folder / "scontrol").write_text(
        f'#!/bin/bash\necho "$2 $3" >>{folder}/asked\nPATH={slurm.environment["PATH"]} exec scontrol "$@"\n'
    )
    (folder / "scontrol").chmod(0o755)
    path = f"{folder}:{slurm.environment['PATH']}"
    return {"PATH": path, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT), "MNIST_DIST_HOME": str(ROOT)}


def test_the_controller_is_asked_once_a_node(slurm: Cluster, tmp_path: Path) -> None:
    """The nodes are one machine here; what its first rank has asked serves all, each of which asks twice."""
    variables = counting_scontrol(slurm, tmp_path)
    (tmp_path / "place.py").write_text(f"{PLACE}\nfind_cluster(os.environ)\n")
    flags = ["--mpi=none", "--distribution=block", "--nodes=2", "--ntasks=4"]
    done = slurm.run("srun", *flags, sys.executable, str(tmp_path / "place.py"), env=variables)
    assert [json.loads(line)["addresses"] for line in done.stdout.splitlines()] == [["127.0.0.1"] * 4] * 4
    assert (tmp_path / "asked").read_text() == "show nodes\n"


def test_a_batch_file_asks_for_its_ranks(slurm: Cluster, tmp_path: Path) -> None:
    variables = counting_scontrol(slurm, tmp_path)
    (tmp_path / "place.py").write_text(PLACE)
    (tmp_path / "a.sbatch").write_text(
        f"#!/bin/bash\nsource {ROOT}/slurm/lib.sh\n"
        f'"${{srun[@]}}" {sys.executable} {tmp_path}/place.py; "${{srun[@]}}" {sys.executable} {tmp_path}/place.py\n'
    )
    flags = ["--parsable", "--nodes=2", "--ntasks-per-node=2", f"--output={tmp_path}/out", f"{tmp_path}/a.sbatch"]
    slurm.wait(slurm.run("sbatch", *flags, env=variables).stdout.strip())
    places = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines() if line.startswith("{")]
    assert [place["addresses"] for place in places] == [["127.0.0.1"] * 4] * 8, (tmp_path / "out").read_text()
    assert (tmp_path / "asked").read_text() == "show job\nshow nodes\n"


def preflight_of_two(folder: Path, node: str, before: tuple[str, ...] = ()) -> list[tuple[int, str, str]]:
    """Runs the two ranks of a step on a node, and returns code, output and errors of each."""
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURMD_NODENAME": node}
    step |= {"SLURM_STEP_NODELIST": node, "SLURM_STEP_TASKS_PER_NODE": "2", "TMPDIR": str(folder)}
    step |= {"PATH": f"{folder}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    command = [*before, sys.executable, "-m", "mnist_dist.slurm.preflight", str(folder / "results")]
    ranks = [
        subprocess.Popen(
            command,
            env=step | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    said = [rank.communicate(timeout=90) for rank in ranks]
    return [(rank.returncode, *texts) for rank, texts in zip(ranks, said, strict=True)]


@pytest.mark.slow
def test_names_serve_where_scontrol_reaches_no_controller(tmp_path: Path) -> None:
    """As in a container; the pre-flight then says whether they lead anywhere, and one rank says why."""
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho 'scontrol: fatal: No configuration' >&2; exit 1\n")
    (tmp_path / "scontrol").chmod(0o755)
    ranks = preflight_of_two(tmp_path, "localhost")
    assert [code for code, _, _ in ranks] == [0, 0], ranks
    assert ranks[0][1].startswith("pre-flight: 2 ranks on 1 node (localhost)")
    assert "".join(errors for _, _, errors in ranks) == (
        "srun: `scontrol show nodes` failed (scontrol: fatal: No configuration); nodes are reached by their names.\n"
    )


@pytest.mark.slow
def test_a_node_that_has_an_ipv6_address_only(tmp_path: Path) -> None:
    if (
        subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode
        or not socket.has_dualstack_ipv6()
    ):
        pytest.skip("a name of its own needs IPv6 and the right to mount")
    (tmp_path / "hosts").write_text(f"{Path('/etc/hosts').read_text()}\n::1 six-only\n")
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho NodeName=six-only NodeAddr=six-only\n")
    (tmp_path / "scontrol").chmod(0o755)
    mount = f'mount --bind {tmp_path}/hosts /etc/hosts && exec "$0" "$@"'
    ranks = preflight_of_two(tmp_path, "six-only", before=("unshare", "--mount", "bash", "-c", mount))
    assert [(code, errors) for code, _, errors in ranks] == [(0, "")] * 2, ranks


def test_scattered_ranks_are_refused_with_the_remedy(slurm: Cluster) -> None:
    command = ["srun", "--mpi=none", "--nodes=2", "--ntasks=4", "--distribution=cyclic", sys.executable, "-c", PLACE]
    done = slurm.run(*command, env={"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode != 0
    assert "srun --distribution=block" in done.stderr


def test_one_task_is_no_rank(slurm: Cluster) -> None:
    done = slurm.run("srun", "--mpi=none", "--ntasks=1", sys.executable, "-c", PLACE, env={"PYTHONPATH": str(ROOT)})
    assert json.loads(done.stdout)["launcher"] == "none"


def test_the_shell_of_an_interactive_step_is_no_rank_but_a_step_within_has_ranks(
    slurm: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "place.py").write_text(PLACE)
    python = f"{sys.executable} {tmp_path}/place.py"
    within = f"srun --mpi=none --overlap --ntasks=2 {python} >{tmp_path}/step"
    shell = f"{python} >{tmp_path}/shell; setsid --wait {python} >{tmp_path}/notebook; {within}"
    # The other task of the step ends at once, as the shell of one without a terminal does.
    shell = f"[ $SLURM_PROCID = 0 ] || exit 0; {shell}"
    step = shlex.join(["srun", "--mpi=none", "--nodes=1", "--ntasks=2", "--pty", "bash", "-c", shell])
    slurm.run("script", "--quiet", "--return", "--command", step, "/dev/null", env={"PYTHONPATH": str(ROOT)})
    for name in "shell", "notebook":  # The latter has no terminal of its own.
        assert json.loads((tmp_path / name).read_text())["launcher"] == "none", name
    ranks = [json.loads(line) for line in (tmp_path / "step").read_text().splitlines()]
    assert sorted((place["launcher"], place["rank"], place["size"]) for place in ranks) == [
        ("srun", 0, 2),
        ("srun", 1, 2),
    ]
