"""Made-up studies that look like measured ones: records that keep the schema, with noise of runs, windows and ranks.

The costs behind them are constants here, so a test knows what the analysis should find: how long a device computes,
what an all-reduce costs (latency and bandwidth of a ring), which rank is slow and how much memory contention there is.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.record import SCHEMA_VERSION, Record
from mnist_dist.strategies import STRATEGIES

HOST_CORES = 8
CORES_PER_DEVICE = 2
TIMED_SECONDS = 6.0
IMAGES_PER_DEVICE = 128
EPOCH_IMAGES = 60_000

IMAGE_SECONDS = 1 / 9000  # Computing of one device.
STEP_SECONDS = 0.6e-3  # On top, for each step.
INPUT_SHARE = 0.02  # Of the computing.
CONTENTION = 0.025  # More computing time for each doubling of the devices.
SLOW_RANK, SLOW_RANK_SHARE = 3, 0.07  # The slow rank of horovod, and by how much it is slow.
LATENCY_SECONDS = {"mirrored": 260e-6, "multiworker": 170e-6, "horovod": 90e-6}  # Per hop of a ring.
BYTE_SECONDS = {"mirrored": 1 / 0.9e9, "multiworker": 1 / 1.1e9, "horovod": 1 / 1.6e9}
GRADIENT_BYTES = 4 * 225_034
EXPOSED_SHARE = 0.8
FLOPS_PER_IMAGE = 25_000_000
MATMUL_FLOPS = {"float32": 0.95e12, "bfloat16": 2.1e12}  # Of one device, each second.

RUN_DEVIATION, WINDOW_DEVIATION, RANK_DEVIATION = 0.010, 0.008, 0.012
WARM_UP = (1.30, 1.12, 1.04)  # The first windows, relative to the rest.
WINDOW_SECONDS = 0.25


def make_study(
    cases: Iterable[Case],
    repeats: int = 3,
    *,
    study: str = "example",
    suite: str = "scaling",
    seed: int = 0,
    unstable: Iterable[Case] = (),
    failing: Iterable[Case] = (),
    **identity: Any,
) -> list[Record]:
    """Measures nothing, but returns what measuring each of the cases so many times might have left.

    Args:
        unstable: cases that become slower throughout.
        failing: cases that end with an error, or, at repeat 1, are ended for taking too long.
        identity: replaces parts of the identity, for example `git={"commit": ..., "dirty": True}`.
    """
    unstable_ids, failing_ids = ({case.case_id for case in some} for some in (unstable, failing))
    records = []
    for repeat in range(repeats):
        for case in cases:
            rng = np.random.default_rng([seed, zlib.crc32(case.case_id.encode()), repeat])
            content = _record(case, repeat, rng, study=study, suite=suite, identity=identity)
            if case.case_id in failing_ids:
                content |= _failure(repeat)
            else:
                content["measurements"] = _measurements(case, rng, trend=0.5 * (case.case_id in unstable_ids))
            records.append(Record.model_validate_json(json.dumps(content)))
    return records


def quick_cases(devices: Sequence[int] = (1, 2)) -> list[Case]:
    """Every strategy on one to a few devices, trained to the end, with weak scaling, and the ablations."""
    full = [train(strategy, n) for n in devices for strategy in STRATEGIES if (strategy, n) in _runs()]
    return full + [ablation for case in full for ablation in ablations(case)]


def scaling_cases() -> list[Case]:
    """Strong scaling, timed only, another precision, more devices than cores, several hosts, and what explains them."""
    cases = [train("single", 1, measure_seconds=TIMED_SECONDS), train("single", 1, settings=BFLOAT16)]
    for strategy in LATENCY_SECONDS:
        cases += [strong(strategy, n) for n in (2, 4)]
        cases += [collectives(strategy, n) for n in (2, 4)]
    return [*cases, MULTI_HOST, OVERSUBSCRIBED, matmul(1), matmul(2), matmul(1, "bfloat16"), input_case()]


def train(strategy: str, devices: int, **changes: Any) -> Case:
    """To the end, with weak scaling, unless changed."""
    fields: dict[str, Any] = {
        "strategy": strategy,
        "devices": devices,
        "cores_per_device": CORES_PER_DEVICE,
        "global_batch_size": IMAGES_PER_DEVICE * devices,
        "settings": {"runtime.precision": "float32"},
    }
    return Case(**(fields | changes))


def strong(strategy: str, devices: int) -> Case:
    return train(strategy, devices, global_batch_size=IMAGES_PER_DEVICE, measure_seconds=TIMED_SECONDS)


def ablations(case: Case) -> list[Case]:
    """What attribution needs: without input and, on several devices, without all-reduce, too."""
    synthetic = case.model_copy(update={"synthetic_input": True, "measure_seconds": TIMED_SECONDS})
    return [synthetic] + ([synthetic.model_copy(update={"all_reduce": False})] if case.devices > 1 else [])


def input_case() -> Case:
    return train("single", 1, kind="input", measure_seconds=TIMED_SECONDS)


def matmul(devices: int, dtype: str = "float32") -> Case:
    precision = dtype if dtype == "float32" else f"mixed_{dtype}"
    return train("single", devices, kind="matmul", settings={"runtime.precision": precision})


def collectives(strategy: str, devices: int) -> Case:
    return train(strategy, devices, kind="collectives")


def _runs() -> set[tuple[str, int]]:
    several = {(strategy, n) for strategy in LATENCY_SECONDS for n in (1, 2, 4, 8)}
    return several | {("single", 1)}


BFLOAT16 = {"runtime.precision": "mixed_bfloat16"}
MULTI_HOST = train("multiworker", 8, hosts=2)
OVERSUBSCRIBED = train("horovod", 8)
UNSTABLE = strong("multiworker", 4)
FAILING = strong("mirrored", 4)


def whole_study(repeats: int = 3, **options: Any) -> list[Record]:
    """One failing and one unstable case, one oversubscribed, several hosts, ablations, collectives, and accuracy."""
    cases = [*quick_cases((1, 2, 4)), *scaling_cases()]
    return make_study(cases, repeats, **{"unstable": [UNSTABLE], "failing": [FAILING], **options})


def _record(
    case: Case, repeat: int, rng: np.random.Generator, *, study: str, suite: str, identity: dict[str, Any]
) -> dict[str, Any]:
    ranks = _ranks(case)
    return {
        "schema_version": SCHEMA_VERSION,
        "record_id": rng.bytes(16).hex(),
        "study": study,
        "suite": suite,
        "case": case.model_dump(mode="json"),
        "case_id": case.case_id,
        "repeat": repeat,
        "seed": repeat,
        "status": "ok",
        "reason": None,
        "output_tail": [],
        "started_at": f"2026-01-{repeat + 1:02d}T12:00:00+00:00",
        "seconds": 12.5,
        "harness_cpu_seconds": 0.02,
        "identity": {
            "hardware": {
                "architecture": "x86_64",
                "cpu_model": "Example CPU @ 2.50GHz",
                "cores": HOST_CORES,
                "memory_bytes": 32 * 2**30,
                "gpus": [],
                "gpu_driver": None,
            },
            "software": {
                "os": "Debian GNU/Linux 12",
                "kernel": "6.1.0",
                "python": "3.11.7",
                "mnist_dist": "1.0.0",
                "tensorflow": "2.21.0",
                "keras": "3.15.0",
                "numpy": "2.2.0",
                "horovod": "0.28.1",
            },
            "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
            "hosts": [f"node{1 + rank * case.hosts // ranks}" for rank in range(ranks)],
            "job_id": None,
            "launcher": "mnist-dist",
            "environment": {},
            "config": {"training": {"epochs": 3}},
        }
        | identity,
        "turns": None,
        "telemetry": None,
        "measurements": None,
    }


def _failure(repeat: int) -> dict[str, Any]:
    if repeat == 1:
        return {"status": "timeout", "reason": "no result after 300 s", "output_tail": ["step 100", "step 150"]}
    reason = "exit code 1: InternalError: collective timed out"
    return {"status": "failed", "reason": reason, "output_tail": ["Traceback (most recent call last):", reason]}


def _ranks(case: Case) -> int:
    """Processes: mirrored has one for all of its devices."""
    return case.devices if case.strategy in ("multiworker", "horovod") else 1


def _measurements(case: Case, rng: np.random.Generator, trend: float) -> dict[str, Any]:
    if case.kind == "collectives":
        return {"messages": [_message(case, 2**exponent, rng) for exponent in range(10, 27, 2)]}
    if case.kind == "matmul":
        dtype = "float32" if case.settings == {"runtime.precision": "float32"} else "bfloat16"
        rate = MATMUL_FLOPS[dtype] * case.devices * 0.97 ** np.log2(case.devices)
        noise = 1 + 0.01 * rng.standard_normal(10)
        return {"size": 2048, "dtype": dtype, "flops_per_second": (rate * noise).tolist()}
    if case.kind == "input":
        step_seconds = IMAGES_PER_DEVICE * IMAGE_SECONDS / 12
        return _windows(np.full(1, step_seconds), np.ones(1, bool), rng, trend, steps=6000)
    return _training(case, rng, trend)


def _message(case: Case, size: int, rng: np.random.Generator) -> dict[str, Any]:
    calls = max(1, min(200, 2**24 // size))
    seconds = calls * all_reduce_seconds(case, size) * np.exp(0.05 * rng.standard_normal((_ranks(case), 12)))
    return {"bytes": size, "calls": calls, "seconds": seconds.tolist()}


def all_reduce_seconds(case: Case, size: int) -> float:
    """A ring: 2 (n - 1) messages, which carry 2 (n - 1) / n of the bytes."""
    hops = 2 * (case.devices - 1)
    slower = 1.5 if case.hosts > 1 else 1.0
    return slower * hops * (LATENCY_SECONDS[case.strategy] + size / case.devices * BYTE_SECONDS[case.strategy])


def compute_seconds(case: Case) -> np.ndarray:
    """What a step costs each rank without input and all-reduce, without noise."""
    cores = case.devices // case.hosts * CORES_PER_DEVICE
    crowded = max(1.0, cores / HOST_CORES)
    fast = 0.62 if case.settings == BFLOAT16 else 1.0
    seconds = fast * IMAGE_SECONDS * case.images_per_device + STEP_SECONDS
    seconds *= (1 + CONTENTION * np.log2(case.devices)) * crowded
    slow = np.ones(_ranks(case))
    if case.strategy == "horovod" and case.devices > SLOW_RANK:
        slow[SLOW_RANK] += SLOW_RANK_SHARE
    return seconds * slow


def _training(case: Case, rng: np.random.Generator, trend: float) -> dict[str, Any]:
    ranks, compute = _ranks(case), compute_seconds(case)
    if not case.synthetic_input:
        compute = compute * (1 + INPUT_SHARE)
    waits = case.all_reduce and ranks > 1
    step_seconds = np.full(ranks, compute.max()) if waits else compute
    if case.all_reduce and case.devices > 1:
        step_seconds = step_seconds + EXPOSED_SHARE * all_reduce_seconds(case, GRADIENT_BYTES)
    steps = None if case.measure_seconds else 3 * (EPOCH_IMAGES // case.global_batch_size)
    measured = _windows(step_seconds, np.full(ranks, waits), rng, trend, steps)
    training_seconds = float(np.max(np.sum(measured["window_seconds"], axis=1)))
    first = 1.4 + 0.15 * case.devices
    evaluations = [] if case.measure_seconds else _evaluations(case, first + training_seconds, rng)
    return measured | {
        "first_step_seconds": (first + 0.05 * rng.random(ranks)).tolist(),
        "startup_seconds": (6.0 + 0.4 * ranks + 0.3 * rng.random(ranks)).tolist(),
        "peak_memory_bytes": (7e8 + 4e5 * case.images_per_device + 1e7 * rng.random(ranks)).tolist(),
        "peak_device_memory_bytes": None,
        "evaluations": evaluations,
        "test_accuracy": evaluations[-1]["accuracy"] if evaluations else None,
        "test_loss": evaluations[-1]["loss"] if evaluations else None,
        "flops_per_image": FLOPS_PER_IMAGE,
        "precision": case.settings["runtime.precision"],
        "xla": "off",
        "device": "CPU",
    }


def _windows(
    step_seconds: np.ndarray, waits: np.ndarray, rng: np.random.Generator, trend: float, steps: int | None
) -> dict[str, Any]:
    """Windows of equal steps on all ranks; ranks that wait for each other differ only by a little in their times."""
    per_window = max(1, round(WINDOW_SECONDS / float(step_seconds.max())))
    windows = max(8, round((steps or TIMED_SECONDS / float(step_seconds.max())) / per_window))
    common = np.exp(RUN_DEVIATION * rng.standard_normal()) * np.exp(_autocorrelated(rng, 1, windows))
    own = np.exp(RANK_DEVIATION / WINDOW_DEVIATION * _autocorrelated(rng, len(step_seconds), windows))
    if waits.any():
        own = np.max(own, axis=0, keepdims=True) * np.exp(1e-3 * rng.standard_normal((len(step_seconds), windows)))
    seconds = per_window * step_seconds[:, None] * common * own
    seconds[:, : len(WARM_UP)] *= WARM_UP
    seconds *= np.linspace(1, 1 + trend, windows)
    return {"window_steps": [per_window] * windows, "window_seconds": seconds.tolist()}


def _autocorrelated(rng: np.random.Generator, rows: int, columns: int, memory: float = 0.4) -> np.ndarray:
    noise = rng.standard_normal((rows, columns)) * WINDOW_DEVIATION * np.sqrt(1 - memory**2)
    for column in range(1, columns):
        noise[:, column] += memory * noise[:, column - 1]
    return noise


def _evaluations(case: Case, training_seconds: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    """The larger the global batch, the less accurate: the fewer steps there are."""
    last = 0.9925 - 0.0004 * np.log2(case.global_batch_size / IMAGES_PER_DEVICE) + 0.0006 * rng.standard_normal()
    accuracies = last - np.array([0.0085, 0.0030, 0.0]) + 0.0003 * rng.standard_normal(3)
    steps = EPOCH_IMAGES // case.global_batch_size
    return [
        {
            "step": epoch * steps,
            "training_seconds": training_seconds * epoch / 3,
            "evaluation_seconds": 0.4 * epoch,
            "split": "test",
            "accuracy": round(float(accuracy), 4),
            "loss": round(float(3.2 * (1 - accuracy)), 5),
        }
        for epoch, accuracy in enumerate(accuracies, start=1)
    ]
