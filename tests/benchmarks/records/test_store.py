import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from mnist_dist.benchmarks.records import store as store_module
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.records.store import Store, finished
from mnist_dist.errors import UserError
from tests.benchmarks.factory import make_study, train

CASE = train("single", 1)
PLAN = {"name": "example", "suite": "quick", "seed": 3, "repeats": 2, "cases": [CASE.model_dump(mode="json")]}
PROCESSES, RECORDS_EACH = 8, 50
spawn = multiprocessing.get_context("spawn")


@pytest.mark.parametrize("refusal", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_a_disk_without_hard_links(
    refusal: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_error: Callable[..., str]
) -> None:
    """Such as FAT, Colab's Google Drive, or a bucket."""

    def refuse(*_: object) -> None:
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr("os.link", refuse)
    store = Store(tmp_path)
    assert store.write_study(PLAN) and store.study() == PLAN
    assert not store.write_study(PLAN)
    assert "seed: the folder's study has 3" in user_error(store.write_study, {**PLAN, "seed": 4})
    assert [path.name for path in tmp_path.iterdir()] == ["study.json"]


@pytest.fixture
def record() -> Record:
    return make_study([CASE], 1)[0]


def start_together(target: Callable[..., None], folder: Path) -> None:
    """Runs the target in several processes that wait for one another before they write."""
    barrier = spawn.Barrier(PROCESSES)
    processes = [spawn.Process(target=target, args=(folder, barrier, number)) for number in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=450)
    assert [process.exitcode for process in processes] == [0] * PROCESSES


def records_of(number: int) -> list[Record]:
    return make_study([CASE, train("mirrored", 2)], RECORDS_EACH // 2, seed=number)


def add_records(folder: Path, barrier: Barrier, number: int) -> None:
    records = records_of(number)
    store = Store(folder)
    barrier.wait(timeout=400)
    for record in records:
        store.add(record)


def claim_study(folder: Path, barrier: Barrier, number: int) -> None:
    """Notes in a file whether the study of this process, one of two plans, was accepted."""
    barrier.wait(timeout=400)
    try:
        Store(folder).write_study({**PLAN, "seed": number % 2})
        (folder / f"accepted-{number}").touch()
    except UserError as error:
        (folder / f"refused-{number}").write_text(str(error))


def test_records_come_back_in_the_order_in_which_they_were_started(tmp_path: Path) -> None:
    records = make_study([CASE, train("mirrored", 2)], 3)
    store = Store(tmp_path / "new" / "folder")
    files = [store.add(record) for record in reversed(records)]
    assert files[0].parent == tmp_path / "new" / "folder" / "records"
    assert files[0].name == f"{records[-1].case_id}-r2-{records[-1].record_id}.json"
    assert store.records() == sorted(records, key=lambda record: (record.started_at, record.record_id))
    assert store.left_out == {}


def test_a_folder_without_records_has_none(tmp_path: Path) -> None:
    assert Store(tmp_path / "missing").records() == []
    assert not (tmp_path / "missing").exists(), "reading must not write"


def test_a_file_is_json_that_any_tool_reads(tmp_path: Path, record: Record) -> None:
    content = json.loads(Store(tmp_path).add(record).read_text(), parse_constant=pytest.fail)
    assert content["measurements"]["window_steps"] == list(record.measurements["window_steps"])  # type: ignore[index]


def test_a_record_is_never_overwritten(tmp_path: Path, record: Record) -> None:
    store = Store(tmp_path)
    file = store.add(record)
    before = file.read_bytes()
    with pytest.raises(ValueError, match="is there already"):
        store.add(record.model_copy(update={"seconds": 1.0}))
    assert file.read_bytes() == before


def test_a_broken_record_is_not_written(tmp_path: Path, record: Record) -> None:
    with pytest.raises(ValueError, match="measurements: expected some with status ok"):
        Store(tmp_path).add(record.model_copy(update={"measurements": None}))
    assert list(tmp_path.iterdir()) == []


def test_only_what_ended_well_is_finished(tmp_path: Path) -> None:
    store = Store(tmp_path)
    other = train("mirrored", 2)
    for one in [*make_study([CASE, other], 2, failing=[other]), *make_study([CASE], 5, study="another", seed=1)]:
        store.add(one)
    expected = {("example", CASE.case_id, repeat) for repeat in range(2)}
    expected |= {("another", CASE.case_id, repeat) for repeat in range(5)}
    assert finished(store.records()) == expected


def test_what_was_interrupted_is_not_finished(record: Record) -> None:
    turns = {"round_id": "0" * 32, "contenders": 2, "waiting_cores": 0.0}
    for ended, count in (("narrow", 1), ("time", 1), ("trained", 1), ("interrupted", 0)):
        one = Record.model_validate(record.to_json() | {"turns": turns | {"ended": ended}})
        assert len(finished([one])) == count


def test_what_was_interrupted_counts_until_it_is_measured_again(tmp_path: Path, record: Record) -> None:
    store, turns = Store(tmp_path), {"round_id": "0" * 32, "contenders": 2, "waiting_cores": 0.0}
    interrupted, whole = (
        Record.model_validate(record.to_json() | {"turns": turns | {"ended": ended}, "record_id": digit * 32})
        for ended, digit in (("interrupted", "1"), ("time", "2"))
    )
    store.add(interrupted)
    assert store.records() == [interrupted]
    store.add(whole)
    assert store.records() == [whole] and len(list(store.records_folder.iterdir())) == 2


def test_what_is_missing_is_said(tmp_path: Path, record: Record) -> None:
    store = Store(tmp_path)
    store.add(record)
    assert store.gaps(store.records()) == []  # Without a plan nothing is known to be missing.
    other = train("mirrored", 2).model_dump(mode="json")
    store.write_study({**PLAN, "cases": [*PLAN["cases"], other]})  # type: ignore[misc]
    assert store.gaps(store.records()) == ["No record yet for 1 of 2 cases of the study."]
    (store.records_folder / "half.json").write_text("{")
    first, _ = store.gaps(store.records())
    assert first == "1 of the files in records/ left out as damaged: half.json."


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def not_a_number(file: Path) -> None:
    file.write_text(file.read_text().replace('"seconds": 12.5', '"seconds": NaN'))


def newer(file: Path) -> None:
    file.write_text(file.read_text().replace('"schema_version": 2', '"schema_version": 99'))


def copied(file: Path) -> None:
    shutil.copy(file, file.with_name("copy of.json"))


def empty(file: Path) -> None:
    file.write_bytes(b"")


def a_list(file: Path) -> None:
    file.write_text("[1, 2]")


def binary(file: Path) -> None:
    file.write_bytes(bytes(range(256)))


def deep(file: Path) -> None:
    file.write_text("[" * 100_000)


def long_number(file: Path) -> None:
    file.write_text('{"schema_version": ' + "1" * 10_000 + "}")


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def dangling(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def notes(file: Path) -> None:
    (file.parent / "notes.txt").write_text("remember the milk")


DAMAGES: dict[Callable[[Path], None], str] = {
    truncated: "not intact JSON",
    not_a_number: "not intact JSON (NaN is not JSON)",
    newer: "a newer mnist_dist wrote this record",
    copied: "its content belongs in '",
    empty: "not intact JSON",
    a_list: "received [1, 2], expected a JSON object",
    binary: "not intact JSON",
    deep: "not intact JSON (it is nested too deeply)",
    long_number: "not intact JSON",
    folder: "not a file",
    pipe: "not a file",
    dangling: "there is no such file",
    notes: "expected a name that ends with .json",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_or_foreign_file_is_reported_once_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    store = Store(tmp_path)
    records = make_study([CASE], 3)
    files = [store.add(one) for one in records]
    damage(files[1])
    intact = records if damage in (copied, notes) else [records[0], records[2]]
    for _ in range(2):
        assert store.records() == intact
        assert len(store.left_out) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"left out: {tmp_path}/records/") and DAMAGES[damage] in lines[0]


def test_a_file_cut_off_anywhere_is_left_out(
    tmp_path: Path, record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    file = store.add(record)
    whole = file.read_bytes()
    end = len(whole.rstrip())
    for length in [*range(0, end, max(end // 50, 1)), end - 1]:
        file.write_bytes(whole[:length])
        assert store.records() == [], f"{length} of {end} bytes"
    file.write_bytes(whole)
    assert store.records() == [record]


def test_the_name_of_a_foreign_file_cannot_take_over_the_terminal(
    tmp_path: Path, record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    store.add(record)
    (store.records_folder / "\x1b[2J\nx.json").write_text("{}")
    assert store.records() == [record]
    assert capsys.readouterr().err.removesuffix("\n").isprintable()


def test_files_are_read_up_to_a_limit(
    tmp_path: Path, record: Record, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    size = store.add(record).stat().st_size
    monkeypatch.setattr(store_module, "MAX_FILE_BYTES", size)
    assert store.records() == [record]
    monkeypatch.setattr(store_module, "MAX_FILE_BYTES", size - 1)
    assert store.records() == []
    assert f"has more than {size - 1} bytes" in capsys.readouterr().err


def test_the_plan_of_a_study_comes_back(tmp_path: Path) -> None:
    store = Store(tmp_path / "new")
    store.write_study(PLAN)
    assert store.study() == PLAN
    store.write_study({**PLAN, "cases": tuple(PLAN["cases"])})  # type: ignore[arg-type]
    assert [file.name for file in store.folder.iterdir()] == ["study.json"]


@pytest.mark.parametrize(("key", "value"), [("seed", 4), ("cases", []), ("hint", "new")])
def test_another_plan_is_refused(tmp_path: Path, user_error: Callable[..., str], key: str, value: Any) -> None:
    store = Store(tmp_path)
    store.write_study(PLAN)
    line = user_error(store.write_study, {**PLAN, key: value})
    assert line.startswith(f"{tmp_path}/study.json: {key}: the folder's study has ")
    assert "name another folder with --results" in line
    assert store.study() == PLAN
    assert [file.name for file in tmp_path.iterdir()] == ["study.json"]


def test_a_folder_without_a_study(tmp_path: Path, user_error: Callable[..., str]) -> None:
    assert "expected the folder of a study" in user_error(Store(tmp_path / "missing").study)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"name": 1}', json.dumps({**PLAN, "cases": None})])
def test_a_damaged_study(tmp_path: Path, user_error: Callable[..., str], content: str) -> None:
    (tmp_path / "study.json").write_text(content)
    assert f"{tmp_path}/study.json: " in user_error(Store(tmp_path).study)
    assert f"{tmp_path}/study.json: " in user_error(Store(tmp_path).write_study, PLAN)


def test_a_full_disk_is_one_line_and_leaves_nothing(
    small_disk: Path, fill: Callable[[Path], None], user_error: Callable[..., str], record: Record
) -> None:
    store = Store(small_disk)
    file = store.add(record)
    fill(small_disk)
    line = user_error(store.add, make_study([CASE], 1, seed=1)[0])
    assert line.startswith(f"results: cannot write '{store.records_folder}/")
    assert line.endswith(": No space left on device; free some space or name another folder.")
    assert "No space left on device" in user_error(store.write_study, PLAN)
    assert store.records() == [record]
    assert list(store.records_folder.iterdir()) == [file]
    assert not store.study_file.exists()


def test_a_file_in_place_of_the_folder(tmp_path: Path, user_error: Callable[..., str], record: Record) -> None:
    (tmp_path / "records").write_text("")
    assert "results: cannot write '" in user_error(Store(tmp_path).add, record)
    assert "results: cannot list '" in user_error(Store(tmp_path).records)


@pytest.mark.slow
def test_many_processes_lose_nothing(tmp_path: Path) -> None:
    start_together(add_records, tmp_path)
    store = Store(tmp_path)
    records = store.records()
    assert len({record.record_id for record in records}) == PROCESSES * RECORDS_EACH
    assert store.left_out == {}
    expected = [record for number in range(PROCESSES) for record in records_of(number)]
    assert {one.record_id: one for one in records} == {one.record_id: one for one in expected}
    assert len(list(store.records_folder.iterdir())) == PROCESSES * RECORDS_EACH, "temporary files are left"


@pytest.mark.slow
def test_of_jobs_that_start_together_the_first_decides_the_study(tmp_path: Path) -> None:
    start_together(claim_study, tmp_path)
    seed = Store(tmp_path).study()["seed"]
    assert seed in (0, 1)
    for number in range(PROCESSES):
        assert (tmp_path / f"accepted-{number}").exists() == (number % 2 == seed)
        if number % 2 != seed:
            assert "seed: the folder's study has" in (tmp_path / f"refused-{number}").read_text()


WRITER = """
import sys, uuid
from pathlib import Path
from mnist_dist.benchmarks.records.store import Store
from tests.benchmarks.factory import make_study, train

store = Store(Path(sys.argv[1]))
(record,) = make_study([train("single", 1)], 1)
windows = {"window_steps": [1] * 5_000, "window_seconds": [[0.001] * 5_000]}  # Takes a while to write.
record = record.model_copy(update={"measurements": record.measurements | windows})
while True:
    record = record.model_copy(update={"record_id": uuid.uuid4().hex})
    store.add(record)
    print(record.record_id, flush=True)
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_no_half_record_and_loses_no_whole_one(tmp_path: Path) -> None:
    announced: set[str] = set()
    for kill in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        announced.add(writer.stdout.readline().strip())
        await_new_file(tmp_path / "records")
        time.sleep(0.0005 * kill)
        writer.kill()
        announced |= set(writer.communicate(timeout=30)[0].split("\n")[:-1])
        store = Store(tmp_path)
        found = {record.record_id for record in store.records()}
        assert store.left_out == {}
        assert announced <= found
        assert len(found) <= len(announced) + kill + 1, "a writer is at most one record ahead of what it announced"


def await_new_file(folder: Path) -> None:
    """Returns at once when a file appears, which is then in the making."""
    known = set(os.listdir(folder))  # noqa: PTH208 - nothing slower.
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if not known.issuperset(os.listdir(folder)):  # noqa: PTH208
            return
    pytest.fail("the writer has stopped")
