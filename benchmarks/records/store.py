"""A folder of records that many processes, jobs and hosts may write into at once.

    study.json                                what the study measures, by the first job, or one with more repeats
    records/<case_id>-r<repeat>-<record_id>.json

Nothing is locked, appended to or changed: every record is a file of its own under a name that no other writer
chooses, and is there whole or not at all, so this holds on network file systems, too.
"""

import contextlib
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.record import Record, parse_record
from mnist_dist.errors import UserError, counted, one_line
from mnist_dist.files import write_json, writing

MAX_FILE_BYTES = 64 * 2**20  # A thousand ranks with a thousand windows each need about 20 MB.

STUDY_KEYS: dict[str, type] = {"name": str, "suite": str, "seed": int, "repeats": int, "cases": list}


class Store:
    """The results of one or more studies.

    Attributes:
        left_out: why, by file name, for each file that the last reading could not use.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.records_folder, self.study_file = self.folder / "records", self.folder / "study.json"
        self.left_out: dict[str, str] = {}

    def add(self, record: Record) -> Path:
        """Writes a record and returns its file.

        Raises:
            ValueError: the record does not follow the schema, contradicts itself or is there already.
            UserError: the folder cannot be written or the disk is full; nothing of the record is then left.
        """
        record.check()
        path = self.records_folder / file_name(record)
        if path.exists():
            raise ValueError(f"{path.name}: is there already, and records never change")
        with writing(path):
            write_json(path, record.to_json())
        return path

    def records(self) -> list[Record]:
        """Reads all records, in the order in which they were started.

        Files that are no intact records are left out and named on stderr, once for each store. What somebody has
        interrupted is left out where it was measured again since.

        Raises:
            UserError: the folder cannot be listed.
        """
        records = []
        reported, self.left_out = self.left_out, {}
        try:
            files = sorted(self.records_folder.iterdir()) if self.records_folder.exists() else []
        except OSError as error:
            raise UserError(f"results: cannot list '{self.records_folder}': {error.strerror}.") from None
        for path in (each for each in files if not each.name.startswith(".")):
            try:
                records.append(_read_record(path))
            except UserError as error:
                self.left_out[path.name] = str(error)
                if path.name not in reported:
                    print(f"left out: {error}", file=sys.stderr)
        done = finished(records)
        kept = [each for each in records if each.status != "ok" or is_whole(each) or _run_of(each) not in done]
        return sorted(kept, key=lambda record: (record.started_at, record.record_id))

    def write_study(self, plan: Mapping[str, Any]) -> bool:
        """Lays down what the study measures, JSON with `STUDY_KEYS`, and returns whether: another job may have.

        Raises:
            UserError: the folder holds another plan, or cannot be written.
        """
        content = _checked_study(json.loads(json.dumps(plan, allow_nan=False)), "study")
        private = self.folder / f".study-{uuid.uuid4().hex}.json"
        with writing(self.study_file):
            write_json(private, content)
            try:
                # Unlike a rename, a link fails where the name is taken: one of many jobs wins, and its plan is whole.
                os.link(private, self.study_file)
            except OSError:  # Or the disk has no links, as FAT and some mounts; there, who looks too soon sees a part.
                try:
                    with self.study_file.open("xb") as file:
                        file.write(private.read_bytes())
                except FileExistsError:
                    self._verify(content)
                    return False
            finally:
                private.unlink()
        return True

    def study(self) -> dict[str, Any]:
        """Returns what `write_study` laid down; a UserError says that there is none, or that it is damaged."""
        return _checked_study(read_json(self.study_file), str(self.study_file))

    def gaps(self, records: Sequence[Record]) -> list[str]:
        """Returns what is missing from the records of the last reading, a sentence each."""
        sentences = []
        if self.left_out:
            sentences.append(
                f"{len(self.left_out)} of the files in {self.records_folder.name}/ left out as damaged: "
                f"{', '.join(sorted(self.left_out)[:3])}{', ...' * (len(self.left_out) > 3)}."
            )
        with contextlib.suppress(UserError, TypeError, ValueError):  # Records are read without a plan as well.
            planned = {Case.model_validate(case).case_id for case in self.study()["cases"]}
            missing = planned - {record.case_id for record in records}
            if missing:
                sentences.append(f"No record yet for {len(missing)} of {counted(len(planned), 'case')} of the study.")
        return sentences

    def _verify(self, plan: dict[str, Any]) -> None:
        there = self.study()
        goes_further = there["repeats"] <= plan["repeats"] and all(case in plan["cases"] for case in there["cases"])
        for key in sorted({*there, *plan}):
            if there.get(key) != plan.get(key):
                if goes_further and there | {more: plan[more] for more in ("cases", "repeats")} == plan:
                    write_json(self.study_file, plan)  # With further repeats, or strategies.
                    return
                raise UserError(
                    f"{self.study_file}: {key}: the folder's study has {one_line(json.dumps(there.get(key)), 100)}, "
                    f"this one {one_line(json.dumps(plan.get(key)), 100)}; name another folder with --results, or "
                    "continue with the same suite and options."
                )


def file_name(record: Record) -> str:
    return f"{record.case_id}-r{record.repeat}-{record.record_id}.json"


def finished(records: Iterable[Record]) -> set[tuple[str, str, int]]:
    """Returns study, case_id and repeat of what was measured successfully to its end, and need not be again."""
    return {_run_of(record) for record in records if record.status == "ok" and is_whole(record)}


def is_whole(record: Record) -> bool:
    """Whether nobody interrupted the round before its end."""
    return not (record.turns and record.turns.ended == "interrupted")


def _run_of(record: Record) -> tuple[str, str, int]:
    return record.study, record.case_id, record.repeat


def _read_record(path: Path) -> Record:
    if path.suffix != ".json":
        raise UserError(f"{one_line(str(path))}: not a record: expected a name that ends with .json.")
    record = parse_record(read_json(path), str(path))
    if path.name != file_name(record):  # A copy would count twice.
        raise UserError(f"{one_line(str(path))}: not a record: its content belongs in '{file_name(record)}'.")
    return record


def read_json(
    path: Path, most_bytes: int | None = None, unpack: Callable[[bytes], bytes] = lambda data: data
) -> dict[str, Any]:
    """Reads a JSON object of bounded size that holds finite numbers only; `unpack` raises ValueError if it cannot."""
    name, most_bytes = one_line(str(path)), most_bytes or MAX_FILE_BYTES
    try:
        if path.exists() and not path.is_file():  # A named pipe would make the reader wait for ever.
            raise UserError(f"{name}: not a file; remove it.")
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
        if len(data) > most_bytes:
            raise UserError(f"{name}: has more than {most_bytes} bytes, which no file of a study has; remove it.")
        content = json.loads(unpack(data), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise UserError(
            f"{name}: there is no such file; expected the folder of a study, as `mnist-dist bench run` leaves it."
        ) from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else one_line(str(error), 100)
        if path.suffix not in (".json", ".gz"):  # Such as a report, which somebody names instead of its study.
            raise UserError(f"{name}: not JSON; expected the folder of a study, or a published file.") from None
        raise UserError(f"{name}: not intact JSON ({reason}); remove the file or restore it from a copy.") from None
    if not isinstance(content, dict):
        received = one_line(json.dumps(content), 60)
        raise UserError(f"{name}: received {received}, expected a JSON object; remove the file.")
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _checked_study(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    for key, kind in STUDY_KEYS.items():
        if not isinstance(content.get(key), kind):
            received = one_line(json.dumps(content[key]), 60) if key in content else "nothing"
            raise UserError(f"{one_line(source)}: {key}: received {received}, expected what `bench run` writes.")
    return dict(content)
