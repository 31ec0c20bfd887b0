"""The CUDA libraries that TensorFlow opens by name. Standard library only.

`python -m mnist_dist.gpu_doctor.libraries` opens them as TensorFlow would, and prints what came of it.
"""

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

# Of TensorFlow 2.21, which is built for CUDA 12 and cuDNN 9.
LIBRARIES = (
    *("libcudart.so.12", "libcublas.so.12", "libcudnn.so.9", "libnccl.so.2", "libcupti.so.12"),
    *("libcufft.so.11", "libcusolver.so.11", "libcusparse.so.12"),
)


def try_libraries(seconds: float) -> dict[str, tuple[bool, str]]:
    """Returns of each library whether it opens in another process, and where it was found, or why it does not."""
    try:
        program = [sys.executable, "-m", "mnist_dist.gpu_doctor.libraries"]
        done = subprocess.run(program, capture_output=True, text=True, timeout=seconds, check=True)
        return json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        reason = f"no answer within {seconds:g} s"
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        reason = f"opening them ended the process: {error}"
    return dict.fromkeys(LIBRARIES, (False, reason))


def _open(name: str) -> tuple[bool, str]:
    """Opens a library where the loader finds it: by the variable, by TensorFlow's RUNPATH, or as the system has it."""
    places = {"LD_LIBRARY_PATH": [Path(each) for each in os.environ.get("LD_LIBRARY_PATH", "").split(":") if each]}
    tensorflow = importlib.util.find_spec("tensorflow")
    for folder in (tensorflow and tensorflow.submodule_search_locations) or ():
        places["the packages beside TensorFlow"] = [*Path(folder).parent.glob("nvidia/*/lib")]
    found = [(where, each / name) for where, folders in places.items() for each in folders if (each / name).is_file()]
    where, path = found[0] if found else ("the system", Path(name))
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        return False, str(error)
    return True, f"from {where}"


if __name__ == "__main__":
    print(json.dumps({name: _open(name) for name in LIBRARIES}))
