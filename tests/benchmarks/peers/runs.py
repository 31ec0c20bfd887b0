"""Runs of contestants with known rates and times, made by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mnist_dist.benchmarks.peers.runs import Evaluation, Measured, Mode, PeerStudy, Run
from mnist_dist.benchmarks.records.record import Hardware

STARTED = "2026-01-01T12:00:00+00:00"
STUDY = PeerStudy(
    date="2026-01-01",
    seconds=5.0,
    hardware=Hardware(
        architecture="x86_64", cpu_model="Example CPU", cores=2, memory_bytes=2**30, gpus=(), gpu_driver=None
    ),
    software={"python": "3.11.7", "tensorflow": "2.21.0"},
    pytorch=None,
    environment={},
    git=None,
)


def rate_run(name: str, repeat: int, images_per_second: float, *, flops_per_image: int | None = None) -> Run:
    """Forty windows of 1,000 images with 1 % of noise around a rate."""
    noise = np.exp(0.01 * np.random.default_rng([repeat, len(name)]).standard_normal(40))
    measured = Measured(
        window_work=[1000] * 40,
        window_seconds=[(1000 / images_per_second * noise).tolist()],
        flops_per_image=flops_per_image,
    )
    return _run(name, "throughput", repeat, measured)


def rate_runs(name: str, rates: Sequence[float], flops_per_image: int | None = None) -> list[Run]:
    return [rate_run(name, repeat, rate, flops_per_image=flops_per_image) for repeat, rate in enumerate(rates)]


def time_run(name: str, repeat: int, *evaluations: tuple[float, float]) -> Run:
    """A run that evaluated at these (seconds, accuracy)."""
    noted = [
        Evaluation(step=100 * number, seconds=seconds, accuracy=accuracy)
        for number, (seconds, accuracy) in enumerate(evaluations, start=1)
    ]
    return _run(name, "accuracy", repeat, Measured(window_work=[], window_seconds=[[]], evaluations=noted))


def bad_run(name: str, mode: Mode, repeat: int, status: str = "failed", seconds: float = 7.0) -> Run:
    return Run.model_validate(
        {
            "contestant": name,
            "mode": mode,
            "repeat": repeat,
            "status": status,
            "reason": "exit code 1: SomeError: of its own",
            "started_at": STARTED,
            "seconds": seconds,
        }
    )


def _run(name: str, mode: Mode, repeat: int, measured: Measured) -> Run:
    return Run(
        contestant=name,
        mode=mode,
        repeat=repeat,
        status="ok",
        started_at=STARTED,
        seconds=20.0,
        measured=measured,
    )
