"""Cases that are a script of somebody else."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnist_dist.benchmarks.kinds.peer import DATA, KIND, PEERS, PYTHON_VARIABLE, find_pytorch
from mnist_dist.benchmarks.measure.suite import training_settings
from mnist_dist.benchmarks.peers.scripts.script import make_parser
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.config import load_config


def peer_case(name: str, **fields: Any) -> Case:
    script = PEERS.get(name, PEERS["keras-fit"])
    devices = fields.pop("devices", script.devices or 1)
    strategy = "horovod" if script.by_horovod else "single"
    common = {"devices": devices, "strategy": strategy, "global_batch_size": devices * script.batch_size}
    return Case(**(common | {"kind": KIND.name, "measure_seconds": 1.0, "settings": {"peer": name}} | fields))


@pytest.mark.parametrize("name", PEERS)
def test_commands_are_what_the_scripts_understand(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PYTHON_VARIABLE, "/pytorch/python")
    case, script = peer_case(name), PEERS[name]
    config = load_config("default", training_settings(case, 7))
    command = KIND.command(["mnist-dist"], case, config, tmp_path)
    assert command[0] == ("/pytorch/python" if script.python == "pytorch" else sys.executable)
    assert ("horovod.runner.launch" in command) == script.by_horovod
    arguments = command[command.index(f"mnist_dist.benchmarks.peers.scripts.{script.module}") + 1 :]
    known, rest = make_parser("A.").parse_known_args(arguments)
    assert (known.data, known.mode, known.seed, known.out) == (DATA, "throughput", 7, tmp_path)
    assert tuple(rest) == script.flags
    assert Path(sys.modules["mnist_dist.benchmarks"].__path__[0], "peers/scripts", f"{script.module}.py").is_file()
    to_the_end = case.model_copy(update={"measure_seconds": None})
    assert "accuracy" in KIND.command(["mnist-dist"], to_the_end, config, tmp_path)


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("keras-fi", {}, "Did you mean 'keras-fit'?"),
        ("keras-fit", {"settings": {}}, "peer: received 'None'"),
        ("keras-fit", {"devices": 2}, "devices: received 2, expected 1 with peer keras-fit"),
        ("keras-fit", {"strategy": "horovod"}, "strategy: received horovod, expected single"),
        ("fast-mnist", {"global_batch_size": 128}, "global_batch_size: received 128, expected 256"),
        ("keras-fit", {"settings": {"peer": "keras-fit", "colour": "red"}}, "colour"),
    ],
)
def test_a_case_that_is_no_peer(name: str, fields: dict[str, Any], said: str, user_error: Callable[..., str]) -> None:
    assert said in user_error(training_settings, peer_case(name, **fields), 0)


def test_what_ranks_left_is_put_together(tmp_path: Path) -> None:
    common = {"window_steps": [5], "window_images": [1280], "window_cycles": [0], "evaluations": []}
    common |= {"device": "CPU", "precision": "float32", "versions": {"keras": "3"}}
    for rank in range(11):
        left = {"window_seconds": [0.1 + rank], "first_step_seconds": float(rank)}
        (tmp_path / f"{rank}.json").write_text(json.dumps(common | left))
    measured, hosts = KIND.collect(tmp_path)
    assert len(hosts) == 11
    whole = KIND.measurements.model_validate(measured)
    assert whole.first_step_seconds == list(range(11))  # type: ignore[attr-defined]
    assert measured["window_seconds"][10] == [10.1]
    with pytest.raises(LookupError):
        KIND.collect(tmp_path / "empty")


def test_a_python_without_pytorch(tmp_path: Path) -> None:
    without = tmp_path / "python"
    without.write_text("#!/bin/sh\necho 'ModuleNotFoundError: torch' >&2\nexit 1\n")
    without.chmod(0o755)
    assert find_pytorch(str(without)) is None
    assert find_pytorch(str(tmp_path / "missing")) is None
