"""The outcome of one case measured once; `Record` is its schema, and schema/ holds that as a JSON Schema.

Records are written once and never changed; `parse_record` alone turns foreign content into one. Imports no TensorFlow.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, create_model, model_validator
from pydantic.json_schema import GenerateJsonSchema

from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.kinds import KINDS, kind
from mnist_dist.config import NonNegativeFloat, NonNegativeInt, PositiveInt, Section, explain
from mnist_dist.errors import UserError, one_line

SCHEMA_VERSION = 2


def _check_utc(text: str) -> str:
    with contextlib.suppress(ValueError):
        if datetime.fromisoformat(text).utcoffset() == timedelta(0):
            return text
    raise ValueError("a time like 2030-01-31T12:00:00+00:00")


def _check_numbers(value: Any, path: str = "") -> Any:
    """Refuses numbers that are not finite, or too large for a float, wherever they are in JSON."""
    if isinstance(value, float | int) and not abs(value) <= sys.float_info.max:
        raise ValueError(f"finite numbers, not {one_line(str(value), 20)} at {path.removeprefix('.')}")
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, child in children:
        _check_numbers(child, f"{path}.{key}")
    return value


Status = Literal["ok", "failed", "timeout", "out_of_memory", "skipped"]
# JSON knows lists only, which a strict tuple would refuse.
Strings = Annotated[tuple[str, ...], Field(strict=False)]
Json = Annotated[dict[str, Any], AfterValidator(_check_numbers)]


class Gpu(Section):
    """A GPU, or a part of one (MIG). Null is what its driver does not tell."""

    name: str
    memory_bytes: NonNegativeInt = Field(description="0 where it shares the host's.")
    uuid: str | None = None
    pci_id: str | None = None
    power_limit_watts: NonNegativeFloat | None = None
    max_sm_clock_mhz: NonNegativeInt | None = None
    max_memory_clock_mhz: NonNegativeInt | None = None
    ecc: bool | None = None
    mig: bool | None = Field(None, description="Whether it is a part.")


class Hardware(Section):
    """What the harness may use on its host."""

    architecture: str
    cpu_model: str
    cores: PositiveInt
    threads_per_core: PositiveInt | None = Field(None, description="Hardware threads of a physical core.")
    memory_bytes: NonNegativeInt
    gpus: Annotated[tuple[Gpu, ...], Field(strict=False)]
    gpu_driver: str | None


class Git(Section):
    commit: str
    dirty: bool


class Identity(Section):
    """Where, with what and how a case ran: what must be equal for two numbers to be comparable."""

    hardware: Hardware
    software: dict[str, str] = Field(
        description="Name to version: os, kernel, python, mnist_dist, tensorflow, keras, numpy; horovod, cuda and nccl "
        "where they are."
    )
    git: Git | None
    hosts: Annotated[Strings, Field(min_length=1)] = Field(
        description="The host of every rank, or of the harness when no rank came so far."
    )
    job_id: str | None = Field(description="Slurm's, as ARRAYJOB_TASK for a member of an array.")
    launcher: Literal["mnist-dist", "srun"]
    environment: dict[str, str] = Field(description="Only variables from a list of known names.")
    config: Json = Field(description="The complete configuration of the training run.")


class GpuTelemetry(Section):
    """How a GPU was while a case had its turns. Null is what its driver does not tell."""

    uuid: str | None
    sm_clock_mhz: NonNegativeFloat | None = Field(description="Mean of the ends of turns.")
    temperature_celsius: NonNegativeFloat | None = Field(description="The highest at the end of a turn.")
    throttled_by: Strings = Field(description="What held its clock down for more than 1 % of the time, or at an end.")
    ecc_errors: NonNegativeInt | None = Field(description="Uncorrected ones, from the first turn to the last.")


class Telemetry(Section):
    source: Literal["nvml", "rapl"]
    seconds: NonNegativeFloat = Field(description="Over which energy was metered: the turns of the case.")
    energy_joules: NonNegativeFloat | None = Field(description="Null where a GPU does not tell its own.")
    power_watts: NonNegativeFloat | None = Field(description="Mean over the turns.")
    gpu_utilisation_percent: NonNegativeFloat | None
    gpus: Annotated[tuple[GpuTelemetry, ...], Field(strict=False)] = ()


class Turns(Section):
    """How a case took turns with others that were alive at once, so that ratios within a cycle can be trusted."""

    round_id: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] = Field(
        description="Shared by those that took turns; cycles of the same number are neighbours in time."
    )
    contenders: PositiveInt = Field(description="How many took turns.")
    waiting_cores: NonNegativeFloat = Field(
        description="Cores that the processes of this case used while others had the turn, on average."
    )
    other_cores: NonNegativeFloat | None = Field(
        None,
        description="Cores of the host that other programs used while the round was measured, on average; null in a "
        "Slurm job, where that cannot be told.",
    )
    ended: Literal["narrow", "time", "trained", "interrupted"] = Field(
        description="What ended the measuring: all ratios were known well enough, the time was up, there was nothing "
        "to measure beyond the trainings, or somebody interrupted it."
    )


class Record(Section):
    """One case measured once. Written once, never changed.

    Raw values are kept; medians, intervals and efficiencies are derived when reporting. Times are in seconds.
    """

    schema_version: Literal[2] = 2
    record_id: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    study: str = Field(description="Name of the study, equal for all of its records.")
    suite: str
    case: Case
    case_id: str
    repeat: NonNegativeInt
    seed: NonNegativeInt = Field(description="Of the training run.")
    status: Status
    reason: str | None = Field(description="One line, unless the status is ok.")
    output_tail: Strings = Field(description="The last lines of output of a case that is not ok.")
    started_at: Annotated[str, AfterValidator(_check_utc)] = Field(description="ISO 8601, UTC.")
    seconds: NonNegativeFloat = Field(
        description="From the start of the process group to its end, without the turns of others."
    )
    harness_cpu_seconds: NonNegativeFloat = Field(
        description="Processor time that the harness itself used meanwhile; in a round, the case's share of it."
    )
    identity: Identity
    turns: Turns | None = Field(description="Null where the case was measured by itself.")
    telemetry: Telemetry | None = Field(description="Null where neither NVML nor RAPL can be read.")
    measurements: dict[str, Any] | None = Field(description="As the case's kind has it; null unless the status is ok.")

    @classmethod
    def new(cls, case: Case, **fields: Any) -> Record:
        """Returns a record of `case` with an identifier of its own; a ValidationError says which field is wrong."""
        return cls(record_id=uuid.uuid4().hex, case=case, case_id=case.case_id, **fields)

    @property
    def measured(self) -> dict[str, Any]:
        """The measurements; empty unless the status is ok."""
        return self.measurements or {}

    @property
    def took_turns(self) -> bool:
        """Whether other cases had turns in between."""
        return self.turns is not None and self.turns.contenders > 1

    def to_json(self) -> dict[str, Any]:
        """Returns what `json.dump` takes and `parse_record` reads back."""
        return self.model_dump(mode="json")

    def check(self) -> None:
        """Validates the record once more, as `model_copy` does not; a ValueError says in a line what is wrong."""
        try:
            Record.model_validate(self.to_json())
        except ValidationError as error:
            raise ValueError(explain_record(error)) from None

    @model_validator(mode="after")
    def _check_whole(self) -> Record:
        for problem in self._contradictions():
            raise ValueError(one_line(problem))
        return self

    def _contradictions(self) -> Iterator[str]:
        ok = self.status == "ok"
        if self.case_id != self.case.case_id:
            yield f"case_id: received '{self.case_id}', expected '{self.case.case_id}', which follows from the case"
        if ok == bool(self.reason):
            yield f"reason: received {self.reason!r} with status {self.status}, expected one unless the status is ok"
        if self.reason and len(self.reason.splitlines()) > 1:
            yield "reason: received several lines, expected one"
        if ok != (self.measurements is not None):
            yield f"measurements: expected {'some' if ok else 'null'} with status {self.status}"
        try:
            _check_numbers(self.case.settings)
        except ValueError as error:
            yield f"case.settings: expected {error}"
        if self.measurements is None:
            return
        model = kind(self.case.kind).measurements
        try:
            model.model_validate(self.measurements)
        except ValidationError as error:
            yield f"measurements.{explain_record(error)}"
        for name in model.per_rank:
            rows, ranks = len(self.measurements[name]), len(self.identity.hosts)
            if rows != ranks:
                yield f"measurements.{name}: received {rows} rows, expected one for each of {ranks} identity.hosts"


def parse_record(content: Mapping[str, Any], source: str) -> Record:
    """Turns what a JSON file, `source`, held into a record, migrating what older versions wrote.

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
        return Record.model_validate(_migrated(content))
    except ValidationError as error:
        problem = explain_record(error)
    except ValueError as error:
        problem = str(error)
    except RecursionError:
        problem = "it is nested too deeply"
    raise UserError(f"{one_line(source)}: not a record: {problem}; remove the file or restore it from a copy.")


def on_gpus(records: Sequence[Record]) -> bool:
    """Whether the devices of these records are GPUs: as they say, or as their machine has some."""
    return any(
        record.measured["device"].upper().startswith("GPU")
        if "device" in record.measured
        else bool(record.identity.hardware.gpus)
        for record in records
    )


def explain_record(error: ValidationError) -> str:
    """Turns the first of pydantic's findings into one line: the field, what came, what was expected."""
    finding = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in finding["loc"])
    if finding["type"] == "missing":
        return one_line(f"{where}: is missing")
    if finding["type"] == "extra_forbidden":
        return one_line(f"{where}: no such field")
    if finding["type"] == "value_error" and not isinstance(finding["input"], str):  # Too much to show what came.
        problem = str(finding["ctx"]["error"])
        return one_line(f"{where}: expected {problem}" if where else problem)
    return one_line(explain(error).rstrip("."))


def json_schema() -> dict[str, Any]:
    """Returns the JSON Schema of records, with the measurements of every kind."""
    models: Any = functools.reduce(operator.or_, (kind(name).measurements for name in KINDS))
    whole = create_model("Record", __base__=Record, measurements=(models | None, ...))
    schema = whole.model_json_schema(schema_generator=_WithoutTitles)
    kinds = "; ".join(f"{name}: {kind(name).description}" for name in KINDS)
    schema["$defs"]["Case"]["properties"]["kind"]["description"] = f"What is measured: {kinds}."
    return schema


class _WithoutTitles(GenerateJsonSchema):
    """A field's title would only repeat its name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _migrated(content: Mapping[str, Any]) -> dict[str, Any]:
    version = content.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise ValueError(one_line(f"schema_version: received {version!r}, expected a whole number"))
    if version == 1:  # One case after the other was the only way.
        return {**content, "turns": None, "schema_version": SCHEMA_VERSION}
    if version != SCHEMA_VERSION:
        raise ValueError(f"schema_version: received {one_line(str(version))}, from which no migration is known")
    return dict(content)
