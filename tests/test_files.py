import contextlib
import errno
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mnist_dist.files import (
    atomic_path,
    atomic_write,
    named_or_dated,
    remove_abandoned,
    user_folder,
    write_json,
    write_text,
)

NO_FOLDER = "a file or a broken link is in the way"


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_writes_into_new_folders_and_leaves_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "text"
    write_text(file, "Größe\n")
    assert file.read_bytes() == "Größe\n".encode()
    assert names(file.parent) == ["text"]


def test_readers_see_the_old_content_until_the_new_is_complete(tmp_path: Path) -> None:
    file = tmp_path / "text"
    write_text(file, "old")
    with file.open() as reader:
        with atomic_write(file) as stream:
            stream.write(b"new, half writ")
            stream.flush()
            assert file.read_text() == "old"
            stream.write(b"ten")
        assert file.read_text() == "new, half written"
        assert reader.read() == "old", "who has the old file open reads on in it"
    assert names(tmp_path) == ["text"]


def test_the_content_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut between the two would leave an empty file where the old one was; one after them, the old one."""
    file, fsync = tmp_path / "text", os.fsync
    synced: list[tuple[int, str]] = []

    def note_and_sync(handle: int) -> None:
        synced.append((os.fstat(handle).st_ino, file.read_text()))
        fsync(handle)

    write_text(file, "old")
    monkeypatch.setattr(os, "fsync", note_and_sync)
    write_text(file, "new")
    assert synced == [(file.stat().st_ino, "old"), (tmp_path.stat().st_ino, "new")]


def test_an_error_in_the_middle_keeps_the_old_content(tmp_path: Path) -> None:
    file = tmp_path / "text"
    write_text(file, "old")
    with pytest.raises(ZeroDivisionError), atomic_write(file) as stream:
        stream.write(b"new")
        _ = 1 / 0
    assert file.read_text() == "old"
    assert names(tmp_path) == ["text"]


def test_the_temporary_file_is_beside_the_target_and_has_its_suffix(tmp_path: Path) -> None:
    # Keras and numpy choose the format by the suffix, and renaming works within one file system only.
    with atomic_path(tmp_path / "model.keras") as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".keras")
        assert temporary.name.startswith(".")
        temporary.write_text("model")
    assert names(tmp_path) == ["model.keras"]


KILLED = """
import os, signal, sys
from pathlib import Path
from mnist_dist.files import atomic_path
with atomic_path(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "killed.json")])
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".killed.") and left.name.endswith(".tmp.json")
    # A process of another host, whose name begins like this one's.
    (elsewhere := tmp_path / left.name.replace(f"-{done_by(left)}.", f"-1-{done_by(left)}.")).touch()
    with atomic_path(tmp_path / "alive.json") as alive:
        remove_abandoned(tmp_path)
        assert {*tmp_path.iterdir()} == {alive, elsewhere}


def done_by(file: Path) -> str:
    """Returns the number of the process that wrote a temporary file."""
    return file.name.split(".")[2].rpartition("-")[2]


def test_what_a_killed_writer_left_goes_when_its_file_is_written_again(tmp_path: Path) -> None:
    for name in ("report[1].md", "other.md"):
        subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / name)])
    write_text(tmp_path / "report[1].md", "whole")
    (left,) = tmp_path.glob(".*")
    assert left.name.startswith(".other.")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_results_are_as_readable_as_the_umask_allows(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "text", "content")
        assert os.umask(umask) == umask, "the umask of the process was changed"
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "text").stat().st_mode) == mode


def test_a_dated_folder_belongs_to_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.strftime", lambda _: "DATE")
    with contextlib.ExitStack() as stack:
        folders = [stack.enter_context(named_or_dated(None, str(tmp_path / "runs"), "a")) for _ in range(3)]
        (folders[1] / "metrics").touch()
        assert [folder.name for folder in folders] == ["a-DATE", "a-DATE-2", "a-DATE-3"]
        assert all(folder.is_dir() for folder in folders)
        assert stack.enter_context(named_or_dated(tmp_path / "named", "runs", "a")) == tmp_path / "named"
    assert names(tmp_path) == ["runs"] and names(tmp_path / "runs") == ["a-DATE-2"], "an empty folder stayed"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("target", [None, "purged", "runs"])
def test_a_dated_folder_that_cannot_be_made(target: str | None, tmp_path: Path, user_error: Callable[..., str]) -> None:
    """A file has its parent's name, or a link to a folder that is gone, or to itself: no number would help."""
    if target is None:
        (tmp_path / "runs").touch()
    else:
        (tmp_path / "runs").symlink_to(target)
    line = user_error(named_or_dated(None, str(tmp_path / "runs"), "a").__enter__)
    assert line.startswith(f"cannot make '{tmp_path}/runs/a-")
    assert line.endswith(f": {NO_FOLDER}; name a folder elsewhere.")


def test_a_share_that_refuses_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    write_text(tmp_path / "text", "content")
    assert (tmp_path / "text").read_text() == "content" and names(tmp_path) == ["text"]


def test_a_folder_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert user_folder("XDG_CACHE_HOME", ".cache", {}) == Path("/home/me/.cache/mnist_dist")
    assert user_folder("XDG_CACHE_HOME", ".cache", {"XDG_CACHE_HOME": "/c"}) == Path("/c/mnist_dist")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_000)  # Of no account, as in a container with any --user.
    assert user_folder("XDG_CACHE_HOME", ".cache", {}) is None


def test_json_is_readable_and_ends_with_a_newline(tmp_path: Path) -> None:
    content = {"accuracy": 0.99, "list": [1, None], "text": 'a "b"\n'}
    write_json(tmp_path / "result.json", content)
    text = (tmp_path / "result.json").read_text()
    assert json.loads(text) == content
    assert text.endswith("}\n") and "\n  " in text


def test_a_full_disk_leaves_the_old_content_and_no_temporary_file(
    small_disk: Path, fill: Callable[[Path], None], user_error: Callable[..., str]
) -> None:
    file = small_disk / "text"
    write_text(file, "old")
    fill(small_disk)
    line = user_error(write_text, file, "new" * 100_000)
    assert line.startswith(f"workdir: cannot write '{file}': No space left on device; free some space or name another")
    assert file.read_text() == "old"
    assert names(small_disk) == ["filling", "text"]


def test_a_folder_without_permission(tmp_path: Path, user_error: Callable[..., str]) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    root = os.geteuid() == 0
    if root:  # Root may write anywhere.
        os.seteuid(65534)
    try:
        line = user_error(write_text, folder / "text", "content")
    finally:
        if root:
            os.seteuid(0)
    assert f"cannot write '{folder / 'text'}': Permission denied" in line
    assert names(folder) == []


def test_a_file_where_a_folder_should_be(tmp_path: Path, user_error: Callable[..., str]) -> None:
    (tmp_path / "file").write_text("content")
    (tmp_path / "link").symlink_to("purged")
    for name in "file", "link":
        line = user_error(write_text, tmp_path / name / "text", "content")
        assert NO_FOLDER in line
    (tmp_path / "folder").mkdir()
    assert "Is a directory" in user_error(write_text, tmp_path / "folder", "content")
    assert names(tmp_path) == ["file", "folder", "link"]
