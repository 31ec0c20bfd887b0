"""Records of contestants with known rates and times, made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from mnist_dist.benchmarks.measure.suite import Machine
from mnist_dist.benchmarks.peers.contestants import Mode, make_contestants
from mnist_dist.benchmarks.records.record import Record

STARTED = "2026-01-01T12:00:00+00:00"
TWO_CORES = Machine(cores=2, gpus=0, devices_per_host=2)
CONTESTANTS = make_contestants(5.0, TWO_CORES)
CYCLES = 40
IDENTITY: dict[str, Any] = {
    "hardware": {
        "architecture": "x86_64",
        "cpu_model": "Example CPU",
        "cores": 2,
        "memory_bytes": 2**30,
        "gpus": [],
        "gpu_driver": None,
    },
    "software": {"python": "3.11.7", "tensorflow": "2.21.0"},
    "git": None,
    "hosts": ["node1"],
    "job_id": None,
    "launcher": "mnist-dist",
    "environment": {},
    "config": {},
}


def rate_record(name: str, repeat: int, rates: float | Sequence[float], **fields: Any) -> Record:
    """Forty cycles with 1 % of noise around a rate, or with given ones, in the round of this number.

    Args:
        rates: images per second, or of matrix products operations.
    """
    case = CONTESTANTS[name].throughput
    assert case is not None
    noise = np.exp(0.01 * np.random.default_rng([repeat, len(name)]).standard_normal(CYCLES))
    per_second = np.broadcast_to(rates, CYCLES) * noise
    cycles = list(range(CYCLES))
    seconds = (10 * case.global_batch_size / per_second).tolist()
    measured: dict[str, Any] = {"window_steps": [10] * CYCLES, "window_seconds": [seconds], "window_cycles": cycles}
    if case.kind == "matmul":
        measured = {"size": 8, "dtype": "float32", "flops_per_second": per_second.tolist(), "cycles": cycles}
    elif case.kind == "train":
        measured |= _training([])
    elif case.kind == "peer":
        measured |= _peer([]) | {"window_images": [10 * case.global_batch_size] * CYCLES}
    return _record(name, "throughput", repeat, measured, **fields)


def rate_records(name: str, rates: Sequence[float]) -> list[Record]:
    return [rate_record(name, repeat, rate) for repeat, rate in enumerate(rates)]


def time_record(name: str, repeat: int, *evaluations: tuple[float, float]) -> Record:
    """A run that evaluated after these seconds, with this accuracy."""
    rows = [
        {"step": 100 * number, "training_seconds": seconds - 0.5, "evaluation_seconds": 0.5}
        | {"split": "test", "accuracy": accuracy}
        for number, (seconds, accuracy) in enumerate(evaluations, start=1)
    ]
    windows: dict[str, Any] = {"window_steps": [10], "window_seconds": [[0.2]], "window_cycles": [0]}
    case = CONTESTANTS[name].accuracy
    assert case is not None
    of_kind = _peer(rows) | {"window_images": [1280]} if case.kind == "peer" else _training(rows)
    return _record(name, "accuracy", repeat, windows | of_kind)


def bad_record(name: str, mode: Mode, repeat: int, status: str = "failed", seconds: float = 7.0) -> Record:
    failure = {"status": status, "reason": "exit code 1: SomeError: of its own", "seconds": seconds}
    return _record(name, mode, repeat, None, **failure)


def _peer(evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    versions = {"torch": "2.13.0", "python": "3.12"}
    return {"first_step_seconds": [1.0], "evaluations": evaluations, "precision": "float32"} | {
        "device": "CPU",
        "versions": versions,
    }


def _training(evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        **{name: [1.0] for name in ("first_step_seconds", "startup_seconds", "peak_memory_bytes")},
        "peak_device_memory_bytes": None,
        "evaluations": [each | {"loss": 0.1} for each in evaluations],
        "test_accuracy": None,
        "test_loss": None,
        "flops_per_image": 12_960_000,
        "precision": "float32",
        "xla": "off",
        "device": "CPU",
    }


def _record(name: str, mode: Mode, repeat: int, measured: dict[str, Any] | None, **fields: Any) -> Record:
    case = CONTESTANTS[name].case(mode)
    assert case is not None
    environment = fields.pop("environment", {})
    turns = {"round_id": f"{repeat:032x}", "contenders": 2, "waiting_cores": 0.0, "ended": "narrow"}
    content = {
        "schema_version": 2,
        "record_id": np.random.default_rng().bytes(16).hex(),
        "study": "example",
        "suite": "peers",
        "case": case.model_dump(mode="json"),
        "case_id": case.case_id,
        "repeat": repeat,
        "seed": repeat,
        "status": "ok",
        "reason": None,
        "output_tail": [],
        "started_at": STARTED,
        "seconds": 20.0,
        "harness_cpu_seconds": 0.0,
        "identity": IDENTITY | {"environment": environment},
        "turns": turns,
        "telemetry": None,
        "measurements": measured,
    }
    return Record.model_validate_json(json.dumps(content | fields))
