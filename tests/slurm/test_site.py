"""What a site asks of every job: defaults, a file, flags, and the mistakes in them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mnist_dist.slurm.site import DEFAULTS_FILE, job_environment, load_site, sbatch_flags


@pytest.fixture
def site_file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        file = tmp_path / "site.yaml"
        file.write_text(text)
        return file

    return write


@pytest.fixture(autouse=True)
def no_file_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))


def test_defaults_ask_for_nothing_but_a_time() -> None:
    assert sbatch_flags(load_site(None, {}, {})) == ["--time=01:00:00"]


def test_flags_come_before_the_file_and_the_file_before_the_defaults(site_file: Callable[[str], Path]) -> None:
    file = site_file("partition: a100\naccount: physics\ntime: '02:00:00'\nsbatch_flags: [--exclusive]\n")
    site = load_site(file, {"partition": "h100", "account": None, "cpus_per_task": 4}, {})
    assert sbatch_flags(site) == ["--partition=h100", "--account=physics", "--time=02:00:00", "--exclusive"]
    assert site.cpus_per_task == 4


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, user_error: Callable[..., str]) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_000)  # Of no account, as a service may have.
    assert load_site(None, {}, {}) == load_site(DEFAULTS_FILE, {}, {})
    assert user_error(load_site, Path("~/site.yaml"), {}, {}).startswith("--site: cannot read '~/site.yaml': Could not")


def test_where_the_file_is_looked_for(tmp_path: Path, site_file: Callable[[str], Path]) -> None:
    own = tmp_path / ".config" / "mnist_dist" / "slurm.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("partition: own")
    assert load_site(None, {}, {}).partition == "own"
    named = site_file("partition: named")
    assert load_site(None, {}, {"MNIST_DIST_SITE": str(named)}).partition == "named"
    assert load_site(named, {}, {"MNIST_DIST_SITE": "nowhere.yaml"}).partition == "named"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("partion: a100", "{file}: partion: no such setting. Did you mean 'partition'?"),
        ("partition: [a, b]", "{file}: partition: received ['a', 'b'], expected text."),
        ("container_runtime: docker", "{file}: container_runtime: received 'docker', expected 'apptainer' or "),
        ("cpus_per_task: 0", "{file}: cpus_per_task: received 0, expected greater than 0."),
        ("time: 1:00:00", "{file}: time: received 3600, expected a time in quotes, such as '01:00:00'"),
        ("time: 30min", "{file}: time: received '30min', expected minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:"),
        ("sbatch_flags: [--time=1h]", "{file}: sbatch_flags.0: received '--time=1h', expected minutes, MM:SS, "),
        (
            "sbatch_flags: [--mem=8 GB]",
            "{file}: sbatch_flags.0: received '--mem=8 GB', expected --mem= with megabytes, ",
        ),
        ("modules: cuda", "{file}: modules: received 'cuda', expected a list."),
        ("- a100", "{file}: received ['a100'], expected 'section:' lines with settings."),
        ("partition: {", "{file}: not valid YAML: "),
    ],
)
def test_mistakes_in_the_file(
    site_file: Callable[[str], Path], user_error: Callable[..., str], text: str, line: str
) -> None:
    file = site_file(text)
    assert user_error(load_site, file, {"partition": "x"}, {}).startswith(line.format(file=file))


@pytest.mark.parametrize("time", ["30", "30:00", "01:00:00", "1-12", "1-12:30", "1-12:30:15", "Unlimited", "INFINITE"])
def test_every_form_of_a_time_is_taken(time: str) -> None:
    assert sbatch_flags(load_site(None, {"time": time}, {})) == [f"--time={time}"]


@pytest.mark.parametrize("time", ["30min", "soon", "", "1h", "1:00:00:00", "1-", "-5", "1.5", "01:00:00 "])
def test_other_times_are_refused_by_the_name_of_the_flag(time: str, user_error: Callable[..., str]) -> None:
    assert user_error(load_site, None, {"time": time}, {}).startswith(
        f"--time: received '{time}', expected minutes, MM"
    )


def test_flags_of_the_site_are_taken_as_sbatch_takes_them(site_file: Callable[[str], Path]) -> None:
    flags = ["--mem=0", "--mem=8000", "--mem-per-cpu=4g", "--mem-per-gpu=1TB", "--mem", "8G", "--mem-bind=local"]
    file = site_file(f"sbatch_flags: [{', '.join([*flags, '--time=1-0', '--exclusive'])}]")
    assert load_site(file, {}, {}).sbatch_flags == [*flags, "--time=1-0", "--exclusive"]


def test_a_file_that_is_not_there(user_error: Callable[..., str]) -> None:
    line = user_error(load_site, Path("nowhere.yaml"), {}, {})
    assert line.startswith("--site: cannot read 'nowhere.yaml': No such file or directory; expected a YAML file like ")


def test_every_default_is_explained() -> None:
    lines = [line for line in DEFAULTS_FILE.read_text().splitlines() if line and not line.startswith("#")]
    unexplained = [line for line in lines if "#" not in line]
    assert unexplained == ["account: null", "qos: null"], "which say what they are"


def test_what_jobs_are_told(site_file: Callable[[str], Path]) -> None:
    text = "modules: [cuda/12.5, python]\nnetwork_interface: ib0\nvenv: /opt/venv\ncontainer_mounts: [/scratch, /a:/b]"
    site = load_site(site_file(text), {}, {})
    root = str(DEFAULTS_FILE.parents[1])
    common = {
        "MNIST_DIST_HOME": root,
        "MNIST_DIST_VENV": "/opt/venv",
        "MNIST_DIST_MODULES": "cuda/12.5 python",
        "MNIST_DIST_INTERFACE": "ib0",
    }
    assert job_environment(site, None, []) == common
    assert job_environment(site, "image.sif", ["/results"]) == common | {
        "MNIST_DIST_CONTAINER": "image.sif",
        "MNIST_DIST_CONTAINER_RUNTIME": "apptainer",
        "MNIST_DIST_MOUNTS": "/results:/results,/scratch:/scratch,/a:/b",
    }


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="not in a virtual environment")
def test_jobs_use_the_environment_that_submits() -> None:
    assert job_environment(load_site(None, {}, {}), None, [])["MNIST_DIST_VENV"] == sys.prefix
