"""The CUDA libraries that TensorFlow opens by name, each tried as its loader would. Standard library only.

`python -m mnist_dist.cuda` prints what came of it as JSON: opening them in a process of its own costs no other one
memory, nor its life.
"""

import ctypes
import json
import os
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

# Of TensorFlow 2.21, which is built for CUDA 12 and cuDNN 9; `mnist-dist doctor` shows them by these names.
LIBRARIES = {
    "cudart": "libcudart.so.12",
    "cublas": "libcublas.so.12",
    "cudnn": "libcudnn.so.9",
    "nccl": "libnccl.so.2",
    "cupti": "libcupti.so.12",
    "cufft": "libcufft.so.11",
    "cusolver": "libcusolver.so.11",
    "cusparse": "libcusparse.so.12",
}
VERSION_FUNCTIONS = {"cudart": "cudaRuntimeGetVersion", "nccl": "ncclGetVersion", "cupti": "cuptiGetVersion"}
REMEDY = "`pip install 'mnist-dist[gpu]'` has the libraries"


def closed_libraries(seconds: float) -> dict[str, str]:
    """Returns why libraries do not open, by their names; those that open are left out."""
    return {name: error for name, (opened, error) in open_libraries(seconds).items() if not opened}


def open_libraries(seconds: float) -> dict[str, tuple[bool, str]]:
    """Tries all in another process, and returns of each whether it opens, and where it was found or why it does not."""
    try:
        program = [sys.executable, "-m", "mnist_dist.cuda"]
        done = subprocess.run(program, capture_output=True, text=True, timeout=seconds, check=True)
        return {name: (opened, text) for name, (opened, text) in json.loads(done.stdout).items()}
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        reason = f"no answer within {seconds:g} s" if isinstance(error, subprocess.TimeoutExpired) else str(error)
        return dict.fromkeys(LIBRARIES, (False, reason))


def _try_all(environment: Mapping[str, str] = os.environ) -> dict[str, tuple[bool, str]]:
    found = {}
    for name, soname in LIBRARIES.items():
        where, path = next(_places(soname, environment))
        try:
            library = ctypes.CDLL(path)
        except OSError as error:
            found[name] = (False, f"{where}: {str(error).replace(path, soname)}")
        else:
            found[name] = (True, f"{soname} from {where}{_version(library, name)}")
    return found


def _places(soname: str, environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yields where the loader finds a library: by the variable, then by TensorFlow's RUNPATH, then the system's way."""
    for folder in environment.get("LD_LIBRARY_PATH", "").split(os.pathsep):
        if folder and (path := Path(folder) / soname).is_file():
            yield "LD_LIBRARY_PATH", str(path)
    for packages in dict.fromkeys((sysconfig.get_path("purelib"), *site.getsitepackages(), site.getusersitepackages())):
        yield from (("the packages", str(path)) for path in Path(packages).glob(f"nvidia/*/lib/{soname}"))
    yield "the system", soname


def _version(library: ctypes.CDLL, name: str) -> str:
    """Returns the version as the library itself writes it, such as 12050 of CUDA 12.5."""
    number = ctypes.c_int()
    if name == "cudnn":
        library.cudnnGetVersion.restype = ctypes.c_size_t
        return f", version {library.cudnnGetVersion()}"
    if name not in VERSION_FUNCTIONS or getattr(library, VERSION_FUNCTIONS[name])(ctypes.byref(number)):
        return ""
    return f", version {number.value}"


if __name__ == "__main__":
    print(json.dumps(_try_all()))
