"""Checkpoints: one file each, whole or absent, verified when read.

A checkpoint is an uncompressed `.npz` of every variable by name plus a JSON note of the progress and of how many
variables there are. That count and the archive's CRC-32 of every member tell a damaged file; replacing by rename keeps
a killed writer from leaving half of one.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mnist_dist.errors import UserError
from mnist_dist.files import atomic_write
from mnist_dist.lazy import keras

_NOTE = "progress.json"


class Checkpoints:
    """The checkpoints of one run, `step-<8 digits>.npz` in a folder of their own.

    Args:
        folder: made when the first checkpoint is saved.
        keep: how many of the newest files to keep.
        report: called with one line for each damaged file met.
    """

    def __init__(self, folder: Path, keep: int, report: Callable[[str], None]) -> None:
        self.folder = folder
        self.keep = keep
        self.report = report

    def save(self, step: int, arrays: Mapping[str, np.ndarray], progress: Mapping[str, Any]) -> Path:
        """Writes one checkpoint, then removes all but the newest `keep`.

        Those of later steps do not count: a run that begins before them does so because they are damaged.

        Raises:
            UserError: the folder cannot be written; earlier checkpoints are untouched.
        """
        file = self.folder / f"step-{step:08d}.npz"
        note = np.frombuffer(json.dumps({"progress": dict(progress), "variables": len(arrays)}).encode(), np.uint8)
        with atomic_write(file) as stream:
            np.savez(stream, **{_NOTE: note}, **arrays)  # type: ignore[arg-type]
        files = self._files()
        for old in files[files.index(file) + self.keep :]:
            with contextlib.suppress(OSError):
                old.unlink()
        return file

    def load_latest(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Reads the newest intact checkpoint: its arrays by name and its progress; None when there is none."""
        for file in self._files():
            try:
                return _read(file)
            except Exception as error:  # A damaged archive makes zipfile and numpy raise nearly anything.
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                self.report(f"checkpoint '{file}' is damaged ({reason}); trying the one before it.")
        return None

    def _files(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("step-????????.npz"), reverse=True)


def variables_by_name(model: keras.Model, optimizer: keras.Optimizer) -> dict[str, keras.Variable]:
    """Names everything that training changes: weights, moving statistics, random seeds, optimizer slots."""
    # Keras numbers the generators of all models that the process has built.
    named = {f"model/{re.sub(r'^seed_generator_[0-9]+/', 'seed_generator/', v.path)}": v for v in model.variables}
    named |= {f"optimizer/{variable.path}": variable for variable in optimizer.variables}
    if len(named) != len(model.variables) + len(optimizer.variables):
        raise AssertionError("Two variables share a path; a checkpoint would lose one of them.")
    return named


def read_variables(variables: Mapping[str, keras.Variable]) -> dict[str, np.ndarray]:
    return {name: np.asarray(variable.numpy()) for name, variable in variables.items()}


def assign_variables(variables: Mapping[str, keras.Variable], arrays: Mapping[str, np.ndarray]) -> None:
    """Sets every variable from a checkpoint; raises UserError for that of another model, optimizer or precision."""
    differing = sorted(set(variables) ^ set(arrays)) or [
        name for name, variable in variables.items() if tuple(variable.shape) != arrays[name].shape
    ]
    if differing:
        raise UserError(
            f"--resume: the checkpoint does not fit this run: '{differing[0]}' differs"
            + (f", and {len(differing) - 1} more" if len(differing) > 1 else "")
            + "; resume with the model, optimizer and precision it was trained with."
        )
    for name, variable in variables.items():
        variable.assign(arrays[name])


def _read(file: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    note = json.loads(arrays.pop(_NOTE).tobytes())
    if len(arrays) != note["variables"]:
        raise ValueError(f"it holds {len(arrays)} of {note['variables']} variables")
    return arrays, note["progress"]
