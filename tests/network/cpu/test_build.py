"""Compiling kernels.cc: once, for this CPU, and with a clear line where it cannot be done."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mnist_dist.cpuinfo import cpu_flags
from mnist_dist.network.cpu import build as kernel_build
from mnist_dist.network.cpu.build import LEVELS, KernelError, build, find_compiler, find_level, library_name
from mnist_dist.network.forward import compile_kernels
from mnist_dist.runtime import Decision
from tests.test_runtime import python

AVX2 = frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"})
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
AMX = AVX512 | LEVELS["sapphirerapids"]
LOAD = """
from mnist_dist.network.cpu.build import KernelError, load
from mnist_dist.cpuinfo import cpu_flags
try:
    print(hasattr(load(cpu_flags()), "mnist_dist_pool_relu"))
except KernelError as error:
    print(error)
"""

pytestmark = pytest.mark.usefixtures("tf")


@pytest.fixture(autouse=True)
def compiler(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real compiler, told not to optimise, which takes most of its time."""
    file = tmp_path_factory.mktemp("compiler") / "compiler"
    file.write_text(f'#!/bin/sh\nexec {find_compiler()[0]} "$@" -O0\n')
    file.chmod(0o755)
    monkeypatch.setenv("CXX", str(file))
    return file


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder. A process can load the operations once, so only other ones may do that with it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernel_build, "load", kernel_build.load.__wrapped__)
    return tmp_path / "mnist_dist" / "kernels"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other architectures have one level")
@pytest.mark.parametrize(
    ("flags", "level"),
    [
        (AMX, "sapphirerapids"),
        (AMX - {"amx_bf16"}, "x86-64-v4"),
        (AMX - {"avx512_fp16"}, "x86-64-v4"),
        (AVX512, "x86-64-v4"),
        (AVX512 - {"avx512bw"}, "x86-64-v3"),
        (AVX2 - {"fma"}, "x86-64"),
        (frozenset(), "x86-64"),
    ],
)
def test_level(flags: frozenset[str], level: str) -> None:
    assert find_level(flags) == level


@pytest.mark.slow
def test_compiled_once(tmp_path: Path) -> None:
    library = build(None, tmp_path)
    assert library.name == library_name(None) and library.stat().st_size > 10_000
    os.utime(library, (1, 1))
    assert build(None, tmp_path) == library and library.stat().st_mtime == 1
    assert not [file for file in tmp_path.iterdir() if ".tmp" in file.name]


@pytest.mark.parametrize("file", ["SOURCE", "HEADER"])
def test_compiled_again_for_another_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    before = library_name(None)
    changed = tmp_path / "changed"
    changed.write_text(getattr(kernel_build, file).read_text() + "// changed\n")
    monkeypatch.setattr(kernel_build, file, changed)
    assert library_name(None) != before
    assert len({library_name(level) for level in (None, *LEVELS)}) == 1 + len(LEVELS)


@pytest.mark.thorough
@pytest.mark.slow
def test_processes_at_once_compile_once(cache: Path, compiler: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    compiler.write_text(compiler.read_text().replace("exec", f"echo called >> {calls}\nexec"))
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda _: python(LOAD), range(2)))
    assert [each.stdout for each in done] == ["True\n"] * 2
    assert "".join(each.stderr for each in done).count("Compiling kernels for this CPU") == 1, "who waits is told why"
    assert calls.read_text() == "called\n" and len(list(cache.glob("*.so"))) == 1


@pytest.mark.thorough
@pytest.mark.slow
def test_make_compiles_or_leaves_it_to_training_to_say_why_not(cache: Path) -> None:
    program = "import runpy; runpy.run_module('mnist_dist.network.cpu.build', run_name='__main__')"
    assert python(program, PATH="/nowhere", CXX="").returncode == 0 and not list(cache.glob("*.so"))
    assert python(program).returncode == 0 and len(list(cache.glob("*.so"))) == 1


@pytest.mark.thorough
@pytest.mark.slow
def test_without_a_place_to_keep_it(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert python(LOAD, XDG_CACHE_HOME=str(blocked)).stdout == "True\n"


@pytest.mark.thorough
def test_without_a_home(tmp_path: Path) -> None:
    """As a user without an entry in /etc/passwd, such as a container's."""
    no_home = "import pathlib\ndef fail(): raise RuntimeError('no home')\npathlib.Path.home = fail\n"
    assert python(no_home + LOAD, XDG_CACHE_HOME="").stdout == "True\n"


@pytest.mark.thorough
def test_a_lock_that_cannot_be_opened(cache: Path) -> None:
    (cache / "lock").mkdir(parents=True)
    assert python(LOAD, XDG_CACHE_HOME=str(cache.parents[1])).stdout == "True\n"


def test_a_damaged_library_is_named(cache: Path) -> None:
    cache.mkdir(parents=True)
    library = cache / library_name(find_level(cpu_flags()))
    library.write_bytes(b"not a library")
    with pytest.raises(KernelError, match=rf"{library} does not load \(.*; delete it"):
        kernel_build.load(cpu_flags())


@pytest.mark.usefixtures("cache")
def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, user_error: Callable[..., str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    plain = compile_kernels("auto", Decision("fused", "fast"))
    assert plain.value == "plain" and "no C++ compiler" in plain.reason and "apt-get install g++" in plain.reason
    line = user_error(compile_kernels, "fused", Decision("fused", "as configured"))
    assert line.startswith("runtime.kernels: received 'fused', but no C++ compiler")
    assert compile_kernels("auto", Decision("plain", "as configured")) == Decision("plain", "as configured")


def test_a_failing_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.cc"
    broken.write_text("int main() { return nothing; }\n")
    monkeypatch.setattr(kernel_build, "SOURCE", broken)
    with pytest.raises(KernelError, match=r"failed: .*error: .*nothing"):
        build(None, tmp_path)
    assert not list(tmp_path.glob("*.so"))


def test_the_compiler_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++ -pipe")
    assert find_compiler() == ["g++", "-pipe"]
    monkeypatch.setenv("CXX", "nosuch++")
    with pytest.raises(KernelError, match="CXX names nosuch"):
        find_compiler()
    monkeypatch.setenv("CXX", 'g++ "-O')
    with pytest.raises(KernelError, match="CXX is no command"):
        find_compiler()


@pytest.mark.thorough
@pytest.mark.slow
def test_an_image_has_every_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_build, "BESIDE", tmp_path / "compiled")
    kernel_build.build_for_image()
    libraries = {file.name for file in (tmp_path / "compiled").glob("*.so")}
    assert libraries == {library_name(level) for level in (LEVELS if platform.machine() == "x86_64" else [None])}


@pytest.mark.thorough
@pytest.mark.slow
def test_what_an_image_has_needs_no_compiler(tmp_path: Path, cache: Path) -> None:
    build(find_level(cpu_flags()), tmp_path)
    beside = f"import pathlib\nfrom mnist_dist.network.cpu import build\nbuild.BESIDE = pathlib.Path({str(tmp_path)!r})"
    done = python(beside + LOAD, PATH="/nowhere", CXX="", XDG_CACHE_HOME=str(cache.parents[1]))
    assert done.stdout == "True\n", done.stderr
    assert not list(cache.glob("*.so"))
