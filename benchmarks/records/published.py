"""A study as one file for others: what repeating its numbers takes, and nothing of who measured them, or where.

Of a record it keeps numbers, words that the schemas name, and those texts that are listed here, which describe devices
and versions. Names and paths are taken out of these, and in the end all texts of the file are searched for them.
"""

import contextlib
import functools
import getpass
import gzip
import json
import platform
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.environment import ENVIRONMENT_VARIABLES, PACKAGES
from mnist_dist.benchmarks.records.kinds import KINDS, kind
from mnist_dist.benchmarks.records.record import Record, json_schema, parse_record
from mnist_dist.benchmarks.records.store import Store, read_json
from mnist_dist.config import Config, setting_descriptions
from mnist_dist.errors import UserError, one_line
from mnist_dist.files import atomic_write, writing
from mnist_dist.strategies import STRATEGIES
from mnist_dist.training.variants import VARIANTS

FORMAT, WITHHELD = "mnist-dist study 1", "(withheld)"
MAX_BYTES, MAX_CONTENT_BYTES = 2**20, 16 * 2**20  # Of the file, and of what it holds.
FEWEST_WINDOWS = 40  # That thinning leaves of a run.
SOFTWARE = ("os", "kernel", "python", "mnist_dist", "torch", *PACKAGES)
TEXTS = {  # All others are withheld, unless they are words of the schemas, numbers or hexadecimal.
    *("started_at", "architecture", "cpu_model", "gpu_driver", "name", "throttled_by", *SOFTWARE),
    *("precision", "xla", "resident", "kernels", "device", "all_reduce_backend", "backend", "dtype"),
}
LEFT_OUT = (
    "names of hosts and of the study, job numbers, paths, serial numbers and addresses of GPUs, Slurm's variables, "
    "other variables' values unless they are numbers, the output of failed runs, digits beyond the seventh"
)


class Published(Store):
    """The records of one file, from `publish` or a single one; `notes` says what was left out of it."""

    notes: Sequence[str] = ()

    def records(self) -> list[Record]:
        name, content = one_line(str(self.folder)), read_json(self.folder, MAX_BYTES, _unpack)
        if "schema_version" in content:
            content = {"format": FORMAT, "left_out": [], "records": [content]}
        contents, notes = content.get("records"), content.get("left_out")
        if content.get("format") != FORMAT or not isinstance(contents, list) or not isinstance(notes, list):
            raise UserError(f"{name}: expected a record, or records with the format '{FORMAT}', as `publish` writes.")
        self.notes = [one_line(str(note)) for note in notes[:20]]
        records = [each if isinstance(each, dict) else {} for each in contents]
        found = {each.record_id: each for each in (parse_record(record, name) for record in records)}
        return sorted(found.values(), key=lambda record: (record.started_at, record.record_id))


def publish(records: Sequence[Record], file: Path, with_names: bool = False) -> list[str]:
    """Writes records as one file, compressed where its name ends with .gz, and returns what was left out of it.

    Raises:
        UserError: it cannot be written, or holds too much even when thinned, or a name that nothing takes out.
    """
    scrubber = Scrubber(records)
    contents = [record.to_json() if with_names else scrubber.scrub(record) for record in records]
    for every in (1, 2, 4, 8, 16, 32, 64):
        less = f"of runs with many windows, all but one in {every} cycles, or as many as leave {FEWEST_WINDOWS}"
        left_out = [*[LEFT_OUT] * (not with_names), *[less] * (every > 1)]
        thinned = [each | {"measurements": _thin(each["measurements"], every)} for each in contents]
        text = json.dumps({"format": FORMAT, "left_out": left_out, "records": thinned}, separators=(",", ":"))
        data = gzip.compress(text.encode(), mtime=0) if file.suffix == ".gz" else text.encode()
        if len(data) <= MAX_BYTES and len(text) <= MAX_CONTENT_BYTES:
            break
    else:
        raise UserError(f"--out: '{file}' takes {len(data):,} bytes, expected at most {MAX_BYTES:,}; try '.json.gz'.")
    found = {json.loads(each) for each in re.findall(r'"(?:[^"\\]|\\.)*"', text)} - {FORMAT, *left_out}
    if not with_names and (named := [each for each in found if scrubber.holds_name(each)]):
        raise UserError(f"publish: '{named[0]}' holds a name or a path, so nothing was written; see --with-names.")
    with writing(file), atomic_write(file) as opened:
        opened.write(data)
    return left_out


class Scrubber:
    """Takes out of records who measured them, and where: this user and host, and the hosts and jobs of the records."""

    def __init__(self, records: Sequence[Record]) -> None:
        hosts = dict.fromkeys(host for record in records for host in record.identity.hosts)
        self._hosts = {host: f"host-{number}" for number, host in enumerate(hosts, 1)}
        self._known = {*_words(), *self._hosts.values(), *(record.started_at for record in records)}
        names = {platform.node(), *hosts}
        with contextlib.suppress(KeyError, OSError, RuntimeError):  # A user without a name.
            names |= {getpass.getuser(), Path.home().name}
        jobs = {record.identity.job_id or "" for record in records}
        names |= {name.partition(".")[0] for name in names} | jobs | {job.partition("_")[0] for job in jobs}
        # The longest first, as others may be parts of it. A part of a version is no number of a job.
        ordered = sorted(names - {""}, key=len, reverse=True)
        ends = {name: r"[.]|[^\W_]" if name.isdigit() else r"[^\W_]" for name in ordered}
        bounded = [f"(?<!{end}){re.escape(name)}(?!{end})" for name, end in ends.items()]
        self._names = re.compile("|".join([r"(?<![\w.)])~?/[^\s,;:\"']+", *bounded]), re.IGNORECASE)

    def holds_name(self, text: str) -> bool:
        return text not in self._known and self._names.search(text) is not None

    def without_names(self, text: str) -> str:
        return self._names.sub(WITHHELD, text)

    def scrub(self, record: Record) -> dict[str, Any]:
        """Returns what is published of a record: a record, too."""
        found, of_kind = self._clean(record.to_json()), kind(record.case.kind)
        if not of_kind.problem(record.case):  # Then the settings of its own are words, too.
            found["case"]["settings"] |= {name: record.case.settings[name] for name in of_kind.own_settings}
        found["identity"] |= {"job_id": None, "hosts": [self._hosts[host] for host in record.identity.hosts]}
        return found | {"case_id": Case.model_validate(found["case"]).case_id}

    def _clean(self, value: Any, field: str = "") -> Any:
        if isinstance(value, dict):
            return {name: self._clean(each, name) for name, each in value.items() if name in self._known}
        if isinstance(value, list):
            return [self._clean(each, field) for each in value]
        if isinstance(value, float):
            return float(f"{value:.7g}")
        if not isinstance(value, str) or value in self._known or re.fullmatch("([0-9a-f]{8}){4,5}", value):
            return value
        is_public = field in TEXTS or re.fullmatch(r"-?\d{1,9}(\.\d{1,9})?", value)
        return self.without_names(one_line(value)) if is_public else WITHHELD


def scrubbed(record: Record) -> Record:
    """Returns a record as it is published, to be compared with such."""
    return Record.model_validate(Scrubber([record]).scrub(record))


@functools.cache
def _words() -> frozenset[str]:
    """Returns the names, and the values of closed sets, that records and settings have by their schemas."""
    schemas = re.findall(r'"([\w.-]+)"', json.dumps([json_schema(), Config.model_json_schema()]))
    variables = {name for name in ENVIRONMENT_VARIABLES if not re.match("SLURM_|SRUN_|.*_VISIBLE_", name)}
    own = {*STRATEGIES, *KINDS, *VARIANTS, *SOFTWARE, *setting_descriptions(), *("format", "left_out", "records")}
    return frozenset({*schemas, *variables, *own, WITHHELD})


def _thin(measured: dict[str, Any] | None, every: int) -> dict[str, Any] | None:
    """Returns measurements with every so manyth cycle of turns, or window of a run without turns."""
    windows = len((measured or {}).get("window_steps", ()))
    every = min(every, windows // FEWEST_WINDOWS)
    if measured is None or every < 2:
        return measured
    cycles = measured.get("window_cycles") or range(windows)
    kept = [place for place, cycle in enumerate(cycles) if cycle % every == 0]
    columns = {name: each for name, each in measured.items() if name.startswith("window_") and each}
    rows = columns.pop("window_seconds")
    found = {name: [column[place] for place in kept] for name, column in columns.items()}
    return measured | found | {"window_seconds": [[row[place] for place in kept] for row in rows]}


def _unpack(data: bytes) -> bytes:
    if not data.startswith(b"\x1f\x8b"):
        return data
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)  # With gzip's header.
    try:
        content = unpacker.decompress(data, MAX_CONTENT_BYTES + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(content) > MAX_CONTENT_BYTES or not unpacker.eof:
        raise ValueError(f"expected one compressed part of at most {MAX_CONTENT_BYTES} bytes")
    return content
