import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any

import pytest

from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.kinds import KINDS, kind
from mnist_dist.benchmarks.records.record import (
    SCHEMA_VERSION,
    Record,
    json_schema,
    parse_record,
)
from mnist_dist.errors import UserError
from tests.benchmarks.factory import collectives, input_case, make_study, matmul, train

FINISHED = train(
    "horovod", 2, measure_seconds=None, settings={"runtime.precision": "float32", "model.filters": [8, 16]}
)
CASES = [FINISHED, train("single", 1), input_case(), collectives("multiworker", 2), matmul(1)]


def json_of(record: Record) -> dict[str, Any]:
    return json.loads(json.dumps(record.to_json(), allow_nan=False))


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return make_study(CASES, 2, failing=[train("single", 1)])


@pytest.fixture
def content() -> dict[str, Any]:
    """Of a training with windows of two ranks and evaluations. To be changed."""
    return json_of(make_study([FINISHED], 1)[0])


def put(content: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = (int(part) if part.isdigit() else part for part in path.split("/"))
    place: Any = content
    for part in parents:
        place = place[part]
    place[last] = value


def test_records_of_every_kind_and_status_survive_json(records: list[Record]) -> None:
    assert {record.case.kind for record in records} == {"train", "input", "collectives", "matmul"}
    assert {record.status for record in records} == {"ok", "failed", "timeout"}
    for record in records:
        record.check()
        assert parse_record(json_of(record), "file") == record


def test_a_new_record_has_an_identifier_of_its_own(content: dict[str, Any]) -> None:
    fields = dict(make_study([FINISHED], 1)[0])
    fields = {name: fields[name] for name in fields if name not in ("schema_version", "record_id", "case", "case_id")}
    one, other = (Record.new(FINISHED, **fields) for _ in range(2))
    one.check()
    assert one.case_id == FINISHED.case_id
    assert one.record_id != other.record_id


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("case_id", "0" * 12, "case_id: received '000000000000', expected '"),
        ("case/devices", 4, "case_id: received '"),
        ("case/colour", "red", "case.colour: no such field"),
        ("measurements/window_seconds", [[0.1], [0.1]], "measurements.window_seconds: received rows of [1] values, "),
        ("measurements/window_seconds/1", [0.1], "measurements.window_seconds: received rows of [1, "),
        (
            "measurements/window_seconds/1/0",
            -0.1,
            "measurements.window_seconds.1.0: received -0.1, expected g",
        ),
        ("measurements/window_seconds/1/0", 0, "measurements.window_seconds.1.0: received 0, expected greater t"),
        ("measurements/window_seconds/1/0", "fast", "measurements.window_seconds.1.0: received 'fast', expected"),
        ("measurements/window_steps/0", 0, "measurements.window_steps.0: received 0, expected greater than 0"),
        ("measurements/first_step_seconds/0", -1, "measurements.first_step_seconds.0: received -1, expected gre"),
        ("measurements/startup_seconds", [1.0], "measurements.startup_seconds: received 1 rows, expected one for each"),
        (
            "identity/hosts",
            ["n1"],
            "measurements.window_seconds: received 2 rows, expected one for each of 1 identity.ho",
        ),
        ("measurements/test_loss", math.inf, "measurements.test_loss: received inf, expected a finite number"),
        ("measurements/test_loss", 10**400, "measurements.test_loss: received 1000"),
        (
            "measurements/evaluations/0/accuracy",
            98.5,
            "measurements.evaluations.0.accuracy: received 98.5, ex",
        ),
        ("measurements", None, "measurements: expected some with status ok"),
        ("measurements", {"messages": []}, "measurements.window_steps: is missing"),
        ("measurements/messages", [], "measurements.messages: no such field"),
        (
            "case/kind",
            "sleep",
            "case.kind: received 'sleep', expected one of train, collectives, matmul, bandwidth, inp",
        ),
        ("status", "failed", "reason: received None with status failed"),
        ("reason", "because", "reason: received 'because' with status ok"),
        ("status", "lost", "status: received 'lost', expected 'ok', 'failed'"),
        ("started_at", "yesterday", "started_at: received 'yesterday', expected a time like 2030-01-31T12:00:0"),
        ("started_at", "2026-01-01T12:00:00+02:00", "started_at: received '2026-01-01T12:00:00+02:00', "),
        ("started_at", "2026-01-01T12:00:00", "started_at: received '2026-01-01T12:00:00', expected"),
        ("seconds", math.nan, "seconds: received nan, expected a finite number"),
        ("record_id", "A" * 32, f"record_id: received '{'A' * 32}', expected to match pattern '^[0-9a-f]"),
        ("repeat", True, "repeat: received true, expected a whole number"),
        ("repeat", 1.0, "repeat: received 1.0, expected a whole number"),
        ("identity/hosts", [], "identity.hosts: received [], expected at least 1 item"),
        (
            "identity/config/training",
            {"rate": [1, math.nan]},
            "identity.config: expected finite numbers, not nan at training.rate.1",
        ),
        ("identity/config/training", 10**400, "identity.config: expected finite numbers, not 1000"),
        ("identity/environment/A", 1, "identity.environment.A: received 1, expected text"),
        ("telemetry", {"source": "rapl"}, "telemetry.seconds: is missing"),
    ],
)
def test_what_is_no_record_is_one_line(
    content: dict[str, Any], user_error: Callable[..., str], path: str, value: Any, problem: str
) -> None:
    put(content, path, value)
    line = user_error(parse_record, content, "results/x.json")
    assert line.startswith(f"results/x.json: not a record: {problem}")
    assert line.endswith("; remove the file or restore it from a copy.")


def test_timings_of_some_ranks_only(user_error: Callable[..., str]) -> None:
    content = json_of(make_study([collectives("multiworker", 2)], 1)[0])
    content["measurements"]["messages"][3]["seconds"][1].pop()
    line = user_error(parse_record, content, "file")
    assert "measurements.messages.3: expected seconds in rows of equally many values, not of [11, 12]" in line


def test_settings_that_are_no_numbers(user_error: Callable[..., str]) -> None:
    (record,) = make_study([train("single", 1, settings={"runtime.precision": "float32", "model.dropout": 1e9})], 1)
    content = json_of(record)
    content["case"]["settings"]["model.dropout"] = math.nan
    content["case_id"] = Case.model_validate(content["case"]).case_id
    line = user_error(parse_record, content, "file")
    assert "case.settings: expected finite numbers, not nan at model.dropout" in line


def test_a_failed_record_needs_one_line_of_reason_and_no_measurements(
    content: dict[str, Any], user_error: Callable[..., str]
) -> None:
    content |= {"status": "out_of_memory", "reason": "killed"}
    assert "measurements: expected null with status out_of_memory" in user_error(parse_record, content, "file")
    content["measurements"] = None
    assert parse_record(content, "file").reason == "killed"
    content["reason"] = "killed\nby the kernel"
    assert "reason: received several lines" in user_error(parse_record, content, "file")


def test_a_record_is_checked_before_it_is_written(records: list[Record]) -> None:
    broken = records[0].model_copy(update={"measurements": {"window_steps": [1]}})
    with pytest.raises(ValueError, match=r"measurements\.window_seconds: is missing"):
        broken.check()


def places(value: Any, path: str = "") -> Iterator[str]:
    """The paths to everything in a tree of JSON, of lists only to their first two elements."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, child in pairs:
        yield f"{path}{key}"
        yield from places(child, f"{path}{key}/")


@pytest.mark.parametrize(
    "value",
    [None, True, -1, 10**400, math.nan, "\ud800\n\x1b[2J", [], [[1]], {}, {"a": None}],
    ids=lambda value: repr(value)[:20],
)
def test_no_wrong_value_anywhere_ends_in_anything_but_one_line(content: dict[str, Any], value: Any) -> None:
    refused = 0
    for path in places(content):
        changed = copy.deepcopy(content)
        put(changed, path, value)
        try:
            parse_record(changed, "file")
        except UserError as error:
            refused += 1
            line = str(error)
            assert line.isprintable() and len(line) < 600, f"{path}: {line!r}"
    assert refused > 20


def test_content_nested_too_deeply(content: dict[str, Any], user_error: Callable[..., str]) -> None:
    for _ in range(5000):
        content["identity"]["config"] = {"a": content["identity"]["config"]}
    assert "nested too deeply" in user_error(parse_record, content, "file")


def test_a_newer_version_asks_for_an_update(content: dict[str, Any], user_error: Callable[..., str]) -> None:
    line = user_error(parse_record, content | {"schema_version": 3, "colour": "red"}, "file")
    assert line == (
        "file: schema_version: received 3, expected at most 2; a newer mnist_dist wrote this record: update this one "
        "to read it."
    )


@pytest.mark.parametrize("version", [0, -3])
def test_an_older_version_without_a_migration(
    content: dict[str, Any], user_error: Callable[..., str], version: int
) -> None:
    line = user_error(parse_record, content | {"schema_version": version}, "file")
    assert f"schema_version: received {version}, from which no migration is known" in line


@pytest.mark.parametrize("version", [None, "1", 1.5, True, [1]])
def test_a_version_that_is_no_whole_number(
    content: dict[str, Any], user_error: Callable[..., str], version: Any
) -> None:
    line = user_error(parse_record, content | {"schema_version": version}, "file")
    assert f"schema_version: received {version!r}, expected a whole number" in line


def test_a_record_of_version_1(content: dict[str, Any]) -> None:
    """It was measured by itself."""
    older = {key: value for key, value in content.items() if key != "turns"} | {"schema_version": 1}
    before = copy.deepcopy(older)
    assert parse_record(older, "file") == parse_record(content, "file")
    assert older == before, "the content that was passed is changed"


def test_what_a_migration_leaves_is_validated(content: dict[str, Any], user_error: Callable[..., str]) -> None:
    line = user_error(parse_record, content | {"schema_version": 1, "seed": "none"}, "file")
    assert "seed: received 'none', expected a whole" in line


SCHEMAS = resources.files("mnist_dist.benchmarks.records") / "schema"


def render_schema(part: Any, levels: int = 2) -> str:
    """Renders a JSON Schema with a line for each field of a record, and one for each of their types."""
    if levels == 0 or not isinstance(part, dict):
        return json.dumps(part)
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {render_schema(part[key], levels - 1)}" for key in part) + "\n}"


def test_the_schema_in_its_file_is_current() -> None:
    """From the repository's root, this writes it:

    python -c "from tests.benchmarks.records.test_record import *; print(render_schema(json_schema()))" \
        > benchmarks/records/schema/record-2.json
    """
    text = (SCHEMAS / f"record-{SCHEMA_VERSION}.json").read_text()
    assert text == render_schema(json_schema()) + "\n"
    assert json.loads(text) == json_schema()


def test_the_schema_has_the_measurements_of_every_kind() -> None:
    schema = json_schema()
    found = [part.get("$ref", part.get("type")) for part in schema["properties"]["measurements"]["anyOf"]]
    assert found == [f"#/$defs/{kind(name).measurements.__name__}" for name in KINDS] + ["null"]
    assert schema["$defs"]["Case"]["properties"]["kind"]["enum"] == list(KINDS)


def test_there_is_a_migration_from_every_older_version_with_a_schema() -> None:
    versions = {int(entry.name[len("record-") : -len(".json")]) for entry in SCHEMAS.iterdir()}
    assert max(versions) == SCHEMA_VERSION
    assert versions - {SCHEMA_VERSION} == {1}


def test_a_large_record_is_validated_in_no_time(content: dict[str, Any]) -> None:
    """A thousand windows of eight ranks: by processor time, so that a busy machine does not matter."""
    windows, ranks = 1000, 8
    content["identity"]["hosts"] = ["node1"] * ranks
    content["measurements"] |= {"window_steps": [10] * windows, "window_seconds": [[0.25] * windows] * ranks}
    for name in ("first_step_seconds", "startup_seconds", "peak_memory_bytes"):
        content["measurements"][name] = [1.0] * ranks
    seconds = []
    for _ in range(10):
        began = time.process_time()
        parse_record(content, "file")
        seconds.append(time.process_time() - began)
    assert min(seconds) < 0.03
