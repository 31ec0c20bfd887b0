"""Compiles kernels.cc for the installed TensorFlow and the CPU at hand, once, and loads it.

The library is kept in the user's cache folder; an image has it beside its source.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mnist_dist.errors import UserError
from mnist_dist.files import atomic_path, user_folder

SOURCE, HEADER = (Path(__file__).with_name(name) for name in ("kernels.cc", "tiles.h"))
BESIDE = SOURCE.parent / "compiled"
COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=hidden")
TIMEOUT_SECONDS = 300.0
AVX512 = frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"})

# Instruction sets for which GCC 11 and Clang 12 have names, best first, with flags of /proc/cpuinfo that tell them.
LEVELS = {
    "sapphirerapids": AVX512
    | {"amx_tile", "amx_bf16", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx512_vbmi2", "avx512vbmi", "avx512ifma"}
    | {"avx512_bitalg", "avx512_vpopcntdq", "avx_vnni", "gfni", "vaes", "vpclmulqdq", "movdiri", "movdir64b"},
    "x86-64-v4": AVX512,
    "x86-64-v3": frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"}),
    "x86-64": frozenset(),
}


class KernelError(UserError):
    """The library can be neither found nor compiled; the message is what stands in the way."""


@functools.cache
def load(cpu_flags: frozenset[str]) -> Any:
    """Returns the module with the operations of kernels.cc, compiled first where that was not done yet.

    Args:
        cpu_flags: of /proc/cpuinfo.

    Raises:
        KernelError: there is no compiler, or it fails.
    """
    import tensorflow as tf

    level = find_level(cpu_flags)
    with contextlib.ExitStack() as stack:
        folder = (user_folder("XDG_CACHE_HOME", ".cache") or Path(os.devnull)) / "kernels"  # Not kept without a home.
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):  # Nothing can be kept: it is gone as soon as it is loaded.
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mnist-dist-kernels-")))
        name = library_name(level)
        library = BESIDE / name if (BESIDE / name).exists() else build(level, folder)
        try:
            return tf.load_op_library(str(library))
        except (tf.errors.OpError, OSError) as error:
            reason = str(getattr(error, "message", error)).splitlines()[0]
            raise KernelError(f"{library} does not load ({reason}); delete it") from None


def build(level: str | None, folder: Path) -> Path:
    """Returns the library for CPUs of this level in `folder`, compiled if it is not there, or raises KernelError."""
    import tensorflow as tf

    library = folder / library_name(level)
    with _locked(folder):  # All ranks of a host begin at once; one compiles for them.
        if library.exists():
            return library
        compiler = find_compiler()
        print("Compiling kernels for this CPU, some seconds, once", file=sys.stderr, flush=True)
        root = tf.sysconfig.get_lib()
        target = [f"-march={level}"] if level else []
        try:
            with atomic_path(library) as partial:
                link = [f"-L{root}", "-l:libtensorflow_framework.so.2", "-o", str(partial)]
                command = [*compiler, *FLAGS, *target, f"-I{tf.sysconfig.get_include()}", str(SOURCE), *link]
                done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
                if done.returncode:
                    raise KernelError(f"{compiler[0]} failed: {_first_error(done.stderr)}")
        except KernelError:
            raise
        except (UserError, subprocess.TimeoutExpired) as error:
            raise KernelError(f"{compiler[0]} failed: {error}") from None
    return library


def find_level(cpu_flags: frozenset[str]) -> str | None:
    """Returns the best instruction set that the CPU has, or None where the compiler's own choice has to do."""
    if platform.machine() != "x86_64":
        return None
    return next(level for level, needed in LEVELS.items() if needed <= cpu_flags)


def library_name(level: str | None) -> str:
    """Returns a name that changes with everything that the compiled code depends on."""
    import tensorflow as tf

    parts = [SOURCE.read_text(), HEADER.read_text(), *FLAGS, tf.version.VERSION, "".join(platform.libc_ver())]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return f"cpu_kernels-{level or platform.machine()}-{digest}.so"


def find_compiler() -> list[str]:
    """Returns the command of the C++ compiler: what CXX names, or the first usual one; raises KernelError without."""
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise KernelError(f"CXX is no command ({str(error).lower().rstrip('.')}); correct it") from None
    for command in [named] if named else [[name] for name in COMPILERS]:
        if shutil.which(command[0]):
            return command
    expected = f"CXX names {named[0]}, which is not there" if named else "no C++ compiler was found"
    raise KernelError(f"{expected}; install one, e.g. `apt-get install g++`")


def build_for_image() -> None:
    """Compiles for every level of this architecture, beside the source: an image runs on other CPUs than built it."""
    BESIDE.mkdir(exist_ok=True)
    for level in LEVELS if platform.machine() == "x86_64" else [None]:
        print(build(level, BESIDE), flush=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        # Some network file systems have no locks, and another user's may not be opened; then several compile the same.
        with contextlib.suppress(OSError):
            file = stack.enter_context((folder / "lock").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _first_error(output: str) -> str:
    lines = output.splitlines()
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else "no output")[:300]


if __name__ == "__main__":  # By `make`, which need not fail where training will say why it goes without.
    from mnist_dist.cpuinfo import cpu_flags  # Here, as an image is built without it.
    from mnist_dist.runtime import import_tensorflow

    import_tensorflow()
    with contextlib.suppress(KernelError):
        load(cpu_flags())
