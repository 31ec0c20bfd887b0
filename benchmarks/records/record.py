"""The outcome of one case measured once, as schema/record-<version>.json describes it.

Records are written once and never changed; `parse_record` alone turns foreign content into one. Imports no TensorFlow.
"""

from __future__ import annotations

import functools
import json
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError

from mnist_dist.benchmarks.records.case import Case
from mnist_dist.config import NonNegativeInt, PositiveInt, Section
from mnist_dist.errors import UserError

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

SCHEMA_VERSION = 1

# From an older version to the step that turns its content into the next version's.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}

# The part of the schema that describes the measurements of each kind of case.
MEASUREMENTS = {"train": "training", "input": "windows", "collectives": "collectives", "matmul": "matmul"}

Status = Literal["ok", "failed", "timeout", "out_of_memory", "skipped"]
NonNegativeFloat = Annotated[float, Field(ge=0)]
# JSON knows lists only, which a strict tuple would refuse.
Strings = Annotated[tuple[str, ...], Field(strict=False)]


class Gpu(Section):
    name: str
    memory_bytes: NonNegativeInt


class Hardware(Section):
    """What the harness may use on its host."""

    architecture: str
    cpu_model: str
    cores: PositiveInt
    memory_bytes: NonNegativeInt
    gpus: Annotated[tuple[Gpu, ...], Field(strict=False)]
    gpu_driver: str | None


class Git(Section):
    commit: str
    dirty: bool


class Identity(Section):
    """Where, with what and how a case ran: what must be equal for two numbers to be comparable."""

    hardware: Hardware
    software: dict[str, str]
    git: Git | None
    hosts: Strings
    job_id: str | None
    launcher: Literal["mnist-dist", "srun"]
    environment: dict[str, str]
    config: dict[str, Any]


class Telemetry(Section):
    source: Literal["nvml", "rapl"]
    seconds: NonNegativeFloat
    energy_joules: NonNegativeFloat
    power_watts: NonNegativeFloat
    gpu_utilisation_percent: NonNegativeFloat | None


class Record(Section):
    """One case measured once. `measurements` follows the schema's part for the case's kind (see MEASUREMENTS)."""

    schema_version: Literal[1] = 1
    record_id: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    study: str
    suite: str
    case: Case
    case_id: str
    repeat: NonNegativeInt
    seed: NonNegativeInt
    status: Status
    reason: str | None
    output_tail: Strings
    started_at: str
    seconds: NonNegativeFloat
    harness_cpu_seconds: NonNegativeFloat
    identity: Identity
    telemetry: Telemetry | None
    measurements: dict[str, Any] | None

    @classmethod
    def new(cls, case: Case, **fields: Any) -> Record:
        """Returns a record of `case` with an identifier of its own.

        Args:
            fields: all others, except schema_version, record_id and case_id.
        """
        return cls(record_id=uuid.uuid4().hex, case=case, case_id=case.case_id, **fields)

    def to_json(self) -> dict[str, Any]:
        """Returns what `json.dump` takes and `parse_record` reads back."""
        return self.model_dump(mode="json")

    def check(self) -> None:
        """Compares the record with the JSON Schema and with itself, as `parse_record` does on reading.

        Raises:
            ValueError: it must not be written; one line says why.
        """
        _check_schema(self.to_json())
        _check_consistency(self)


def parse_record(content: Mapping[str, Any], source: str) -> Record:
    """Turns what a JSON file held into a record, migrating what older versions wrote.

    Args:
        source: the name of the file, for errors.

    Raises:
        UserError: a version that is not known, or content that does not follow the schema or contradicts itself.
    """
    version = content.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UserError(
            f"{one_line(source)}: schema_version: received {one_line(str(version))}, expected at most "
            f"{SCHEMA_VERSION}; a newer mnist_dist wrote this record: update this one to read it."
        )
    try:
        current = _migrated(content)
        _check_schema(current)
        record = Record.model_validate(current)
        _check_consistency(record)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{one_line(source)}: not a record: {_explain(error)}; remove the file or restore it from a copy."
        ) from None
    return record


def on_gpus(records: Sequence[Record]) -> bool:
    """Whether the devices of these records are GPUs."""
    return any((record.measurements or {}).get("device", "").upper().startswith("GPU") for record in records)


def one_line(text: str, limit: int = 300) -> str:
    """Returns text that may hold anything as one short line that is safe to print on a terminal."""
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 3] + "..."


def _explain(error: ValueError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if not isinstance(error, ValidationError):
        return str(error)
    finding = error.errors(include_url=False)[0]
    return one_line(f"{'.'.join(str(part) for part in finding['loc'])}: {finding['msg']}")


def _migrated(content: Mapping[str, Any]) -> dict[str, Any]:
    current = dict(content)
    version = current.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise ValueError(one_line(f"schema_version: received {version!r}, expected a whole number"))
    while version < SCHEMA_VERSION:
        if version not in MIGRATIONS:
            raise ValueError(f"schema_version: received {one_line(str(version))}, from which no migration is known")
        try:
            current = MIGRATIONS[version](current)
        except (LookupError, TypeError, AttributeError) as error:  # Content that is not of the version it says.
            raise ValueError(f"not of version {version}, as it says: {type(error).__name__} {error}") from None
        version += 1
        current["schema_version"] = version
    return current


def _check_schema(content: Mapping[str, Any]) -> None:
    """Raises a ValueError that names the first place, from the top, that does not follow the schema."""
    case = content.get("case")
    kind = case.get("kind") if isinstance(case, dict) else None
    measured = content.get("status") == "ok"
    errors = _validator(MEASUREMENTS.get(str(kind)) if measured else None).iter_errors(content)
    error = min(errors, key=lambda error: len(error.absolute_path), default=None)
    if error is not None:
        raise ValueError(one_line(f"{error.json_path.removeprefix('$').lstrip('.') or 'record'}: {error.message}"))


@functools.cache
def _validator(measurements: str | None) -> Validator:
    """Returns the schema's validator, with the part for the measurements named instead of guessed.

    `oneOf` could only say that none of the parts fits, not what is wrong.
    """
    import jsonschema

    path = resources.files("mnist_dist.benchmarks.records") / "schema" / f"record-{SCHEMA_VERSION}.json"
    schema = json.loads(path.read_text(encoding="utf-8"))
    if measurements is not None:
        schema["properties"]["measurements"] = {"$ref": f"#/$defs/{measurements}"}
    return jsonschema.Draft202012Validator(schema)


def _check_consistency(record: Record) -> None:
    """Raises a ValueError for what a JSON Schema cannot express."""
    for problem in _contradictions(record):
        raise ValueError(one_line(problem))


def _contradictions(record: Record) -> Iterator[str]:
    if record.case_id != record.case.case_id:
        yield f"case_id: received '{record.case_id}', expected '{record.case.case_id}', which follows from the case"
    if not _is_utc(record.started_at):
        yield f"started_at: received {record.started_at!r}, expected a time like 2030-01-31T12:00:00+00:00"
    if not record.identity.hosts:
        yield "identity.hosts: received none, expected the host of every rank"
    ok = record.status == "ok"
    if ok == bool(record.reason):
        yield f"reason: received {record.reason!r} with status {record.status}, expected one unless the status is ok"
    if record.reason and len(record.reason.splitlines()) > 1:
        yield "reason: received several lines, expected one"
    if ok != (record.measurements is not None):
        yield f"measurements: expected {'some' if ok else 'null'} with status {record.status}"
    yield from _bad_numbers(record.identity.config, "identity.config", lowest=-sys.float_info.max)
    yield from _bad_numbers(record.case.settings, "case.settings", lowest=-sys.float_info.max)
    yield from _bad_numbers(record.measurements, "measurements", lowest=0)
    if record.measurements is not None:
        yield from _uneven(record.measurements, len(record.identity.hosts))


def _is_utc(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).utcoffset() == timedelta(0)
    except ValueError:
        return False


def _bad_numbers(value: Any, path: str, lowest: float) -> Iterator[str]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _bad_numbers(child, f"{path}.{key}", lowest)
    elif isinstance(value, list | tuple):
        for index, child in enumerate(value):
            yield from _bad_numbers(child, f"{path}[{index}]", lowest)
    elif isinstance(value, float | int) and not lowest <= value <= sys.float_info.max:
        received = one_line(str(value), 20)
        yield f"{path}: received {received}, expected a finite number{' from 0' if lowest == 0 else ''}"


def _uneven(measurements: dict[str, Any], hosts: int) -> Iterator[str]:
    """Yields the tables with rows of different lengths, timings of 0, or, of a training, not one row for each rank."""
    tables: list[tuple[str, Sequence[Sequence[float]], int | None]] = []
    if "window_seconds" in measurements:
        tables.append(("window_seconds", measurements["window_seconds"], len(measurements["window_steps"])))
    for index, message in enumerate(measurements.get("messages", ())):
        tables.append((f"messages[{index}].seconds", message["seconds"], None))
    for name, rows, columns in tables:
        lengths = {len(row) for row in rows}
        if lengths - {columns if columns is not None else max(lengths, default=0)}:
            expected = "equally many" if columns is None else columns
            yield f"measurements.{name}: received rows of {sorted(lengths)} values, expected {expected}"
        if any(seconds == 0 for row in rows for seconds in row):
            yield f"measurements.{name}: received 0, expected times above 0"
    if "startup_seconds" not in measurements:
        return
    for name in ("window_seconds", "first_step_seconds", "startup_seconds", "peak_memory_bytes"):
        if len(measurements[name]) != hosts:
            received = len(measurements[name])
            yield f"measurements.{name}: received {received} rows, expected one for each of {hosts} identity.hosts"
