"""Horovod's build: what is missing is named, the wheel is kept by what it depends on, and two ranks prove it."""

import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from mnist_dist.distributed import horovod_build
from mnist_dist.distributed.horovod_build import BuildError
from mnist_dist.errors import UserError
from tests.benchmarks.harness import MARK, make_mark, marked_processes, wait_until

CUDA = [
    *(Path(compiler).resolve().parents[1] for compiler in filter(None, [shutil.which("nvcc")])),
    Path("/usr/local/cuda"),
]
TOOLKIT = next((home for home in CUDA if (home / "bin/nvcc").exists() and horovod_build.cuda_version(home)), None)
REPOSITORY = Path(horovod_build.__file__).parents[2]


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    return subprocess.run(arguments, env=own, capture_output=True, text=True, timeout=1800)


def touch(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_names_missing_tools_before_doing_anything(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"g\+\+ .*make not found.*`apt-get install g\+\+ .*make`") as error:
        horovod_build.install(wheel_dir=tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"--mpi needs mpicxx.*apt-get install libopenmpi-dev"):
        horovod_build.install(mpi=True, wheel_dir=tmp_path)


def test_names_missing_tensorflow(tmp_path):
    program = "from mnist_dist.distributed.horovod_build import install; install()"
    done = run_python(sys.executable, "-S", "-c", program)  # Without site-packages.
    assert done.stderr.strip().splitlines()[-1].endswith("install it first: `pip install tensorflow`.")


def test_names_a_user_without_a_home(monkeypatch):
    monkeypatch.setattr(horovod_build, "user_folder", lambda variable, default: None)
    with pytest.raises(
        UserError, match=r"^--wheel-dir: this user has no home folder to keep the wheel in; name a folder.$"
    ):
        horovod_build.default_wheel_dir()


def test_names_missing_disk_space(monkeypatch):
    monkeypatch.setattr(horovod_build, "BUILD_BYTES", 10**18)
    monkeypatch.setattr(horovod_build, "_which", Path)
    with pytest.raises(UserError, match=r"GB free, expected 1000000000.0; .*TMPDIR"):
        horovod_build._check_tools()


def test_names_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match=r"--wheel-dir: cannot write .*Not a directory; name another"):
        horovod_build.install(wheel_dir=touch(tmp_path / "file"))


def test_patches_the_source_once(tmp_path):
    before, after = defaultdict(list), defaultdict(list)
    for patch in yaml.safe_load(horovod_build.PATCHES_FILE.read_text()):
        before[patch["file"]].append(patch["old"])
        after[patch["file"]].append(patch["new"])
    for name, parts in before.items():
        touch(tmp_path / name, "\n".join(parts))
    horovod_build.patch_source(tmp_path)
    for name, parts in after.items():
        assert (tmp_path / name).read_text() == "\n".join(parts)
    with pytest.raises(BuildError, match=r"CMakeLists.txt has .*xla_mpi_ops.* 0 times, expected once"):
        horovod_build.patch_source(tmp_path)


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("[ 9%] x\n  a.cc:3: fatal error: b.h: None\nc.cc:1: error: d\n", "a.cc:3: fatal error: b.h: None"),
        ("-- ok\n  CMake Error at C.txt:5 (message):\n    Could NOT find X\n\n  more", "(message): Could NOT find X"),
        ("c++: fatal error: Killed signal terminated program cc1plus\n", "set MAKEFLAGS=-j1"),
        ("as: a.o: No space left on device\n", "set TMPDIR to a folder"),
        ("WARNING: x\nERROR: No matching distribution found for horovod\n", "check the network"),
        ("CMake Error: nvcc is\nbroken\n", "HOROVOD_GPU_OPERATIONS="),
        ("warning: a\nlast words\n", "last words"),
        ("", "no output"),
    ],
)  # fmt: skip
def test_quotes_the_first_error(log, expected):
    reason = horovod_build.explain_failure(log)
    assert expected in reason
    assert "\n" not in reason


def test_every_dependency_changes_the_key():
    nccl = {"HOROVOD_NCCL_LIB": "/a/libnccl.so.2"}
    keys = [
        horovod_build.wheel_key("tensorflow-2.21.0", {}, None),
        horovod_build.wheel_key("tensorflow-2.21.1", {}, None),
        horovod_build.wheel_key("tensorflow-2.21.0", nccl, None),
        horovod_build.wheel_key("tensorflow-2.21.0", {"HOROVOD_NCCL_LIB": "/b/libnccl.so.2"}, None),
        horovod_build.wheel_key("tensorflow-2.21.0", {}, Path("/a/mpicxx")),
        horovod_build.wheel_key("tensorflow-2.21.0", {}, Path("/b/mpicxx")),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == horovod_build.wheel_key("tensorflow-2.21.0", {}, None)
    assert sysconfig.get_config_var("SOABI") in keys[0]
    assert not any("/" in key for key in keys)


def test_finds_nccl_beside_a_cuda_compiler(tmp_path, monkeypatch):
    for name in ("HOROVOD_CUDA_HOME", "HOROVOD_GPU_OPERATIONS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setenv("HOROVOD_NCCL_HOME", str(tmp_path / "nccl"))
    touch(tmp_path / "cuda/bin/nvcc")
    monkeypatch.delenv("HOROVOD_BUILD_CUDA_CC_LIST", raising=False)
    touch(tmp_path / "cuda/include/cuda_runtime.h")
    touch(tmp_path / "cuda/include/cuda_runtime_api.h", "#define CUDART_VERSION  12060\n")
    touch(tmp_path / "nccl/include/nccl.h")
    assert horovod_build.find_nccl().get("HOROVOD_NCCL_INCLUDE") != str(tmp_path / "nccl/include")  # No library.
    library = touch(tmp_path / "nccl/lib/libnccl.so.2")
    found = horovod_build.find_nccl()
    assert found == {
        "HOROVOD_GPU_OPERATIONS": "NCCL",
        "HOROVOD_CUDA_HOME": str(tmp_path / "cuda"),
        "HOROVOD_NCCL_INCLUDE": str(tmp_path / "nccl/include"),
        "HOROVOD_NCCL_LIB": str(library),
        "HOROVOD_BUILD_CUDA_CC_LIST": horovod_build.tensorflow_cuda()[1],
    }
    monkeypatch.setenv("LDFLAGS", "-Wl,-O1")
    environment = horovod_build.build_environment(found, False, tmp_path)
    assert environment["LDFLAGS"] == f"-Wl,-O1 -Wl,-rpath,{library.parent}"
    assert (Path(environment["HOROVOD_NCCL_LIB"]) / "libnccl.so").resolve() == library
    monkeypatch.setenv("HOROVOD_GPU_OPERATIONS", "")
    assert horovod_build.find_nccl() == {}


def test_cuda_is_that_of_tensorflow(tf, tmp_path, monkeypatch, capsys):
    """A toolkit of another major version would link libraries that TensorFlow and older drivers do not have."""
    build = tf.sysconfig.get_build_info()
    wanted, capabilities = horovod_build.tensorflow_cuda()
    assert wanted == int(build["cuda_version"].split(".")[0])
    assert capabilities.split(",") == [name.partition("_")[2] for name in build["cuda_compute_capabilities"]]
    for name in ("HOROVOD_GPU_OPERATIONS", "HOROVOD_NCCL_HOME", "HOROVOD_CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "tools"))
    touch(tmp_path / "tools/nvidia-smi").chmod(0o755)
    for name in ("bin/nvcc", "include/cuda_runtime.h", "include/nccl.h", "lib/libnccl.so"):
        touch(tmp_path / name)
    touch(tmp_path / "include/cuda_runtime_api.h", f"#define CUDART_VERSION  {wanted + 1}000\n")
    if horovod_build.cuda_version(Path("/usr/local/cuda")) // 1000 == wanted:
        pytest.skip("this host has a toolkit of TensorFlow's CUDA, which would be taken")
    assert horovod_build.find_nccl() == {}
    said = capsys.readouterr().err
    assert f"CUDA {wanted + 1} in {tmp_path} does not match TensorFlow, which uses CUDA {wanted}." in said
    assert f"Warning: no CUDA {wanted} compiler was found, so this Horovod is CPU-only and refuses GPUs" in said

    touch(tmp_path / "include/cuda_runtime_api.h", f"#define CUDART_VERSION  {wanted}050\n")
    found = horovod_build.find_nccl()
    assert found["HOROVOD_CUDA_HOME"] == str(tmp_path) and found["HOROVOD_BUILD_CUDA_CC_LIST"] == capabilities
    keys = [horovod_build.wheel_key("tensorflow-2.21.0", found, None)]
    for name, text in (
        ("include/cuda_runtime_api.h", f"#define CUDART_VERSION  {wanted}060\n"),
        ("include/nccl.h", "#define NCCL_MAJOR 2\n#define NCCL_MINOR 27\n#define NCCL_PATCH 7\n"),
    ):
        touch(tmp_path / name, text)  # In the same place, as after an upgrade.
        keys.append(horovod_build.wheel_key("tensorflow-2.21.0", found, None))
    monkeypatch.setenv("HOROVOD_BUILD_CUDA_CC_LIST", "90")
    keys.append(horovod_build.wheel_key("tensorflow-2.21.0", horovod_build.find_nccl(), None))
    assert len(set(keys)) == 4


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this host has a GPU")
def test_a_cuda_that_does_not_fit_alarms_only_where_a_gpu_is(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HOROVOD_GPU_OPERATIONS", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "tools"))
    for name in ("bin/nvcc", "include/cuda_runtime.h"):
        touch(tmp_path / name)
    touch(tmp_path / "include/cuda_runtime_api.h", "#define CUDART_VERSION  99000\n")
    wanted, _ = horovod_build.tensorflow_cuda()
    horovod_build.find_nccl()
    note = f"Note: CUDA 99 in {tmp_path} is not used, as TensorFlow uses CUDA {wanted}; without a GPU that is fine."
    said = capsys.readouterr().err
    assert note in said and "does not match" not in said and "Warning" not in said
    touch(tmp_path / "tools/nvidia-smi").chmod(0o755)
    horovod_build.find_nccl()
    assert f"CUDA 99 in {tmp_path} does not match TensorFlow, which uses CUDA {wanted}." in capsys.readouterr().err


def test_says_that_nccl_was_not_tried(tmp_path, monkeypatch, capsys):
    """With fewer than two GPUs the proof runs on the CPU."""
    nccl = {"HOROVOD_NCCL_LIB": "/a/libnccl.so.2"}
    monkeypatch.setattr(horovod_build, "find_nccl", lambda: nccl)
    monkeypatch.setattr(horovod_build, "_pip", lambda *arguments: None)
    key = horovod_build.wheel_key("-".join(horovod_build._tensorflow()), nccl, None)
    touch(tmp_path / key / "horovod.whl")
    for with_nccl in (False, True):
        monkeypatch.setattr(horovod_build, "prove_two_ranks", lambda tried=with_nccl: (1.0, tried))
        horovod_build.install(wheel_dir=tmp_path)
        assert ("NCCL was not tried, as that needs two GPUs" in capsys.readouterr().out) == (not with_nccl)


def test_the_build_ignores_contrary_variables_and_keeps_the_users(tmp_path, monkeypatch):
    for name in ("HOROVOD_WITHOUT_GLOO", "HOROVOD_WITH_MPI", "HOROVOD_GPU_OPERATIONS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HOROVOD_BUILD_CUDA_CC_LIST", "90")
    monkeypatch.delenv("MAKEFLAGS", raising=False)
    environment = horovod_build.build_environment({}, False, tmp_path)
    assert not {"HOROVOD_WITHOUT_GLOO", "HOROVOD_WITH_MPI", "HOROVOD_GPU_OPERATIONS"} & set(environment)
    assert environment["HOROVOD_WITHOUT_MPI"] == environment["HOROVOD_WITH_GLOO"] == "1"
    assert environment["HOROVOD_BUILD_CUDA_CC_LIST"] == "90"
    assert environment["MAKEFLAGS"] == f"-j{len(os.sched_getaffinity(0))}"
    assert environment["HOROVOD_CPU_OPERATIONS"] == "GLOO"
    monkeypatch.setenv("MAKEFLAGS", "-j1")
    environment = horovod_build.build_environment({}, True, tmp_path)
    assert environment["MAKEFLAGS"] == "-j1"
    assert environment["HOROVOD_WITH_MPI"] == "1"
    assert "HOROVOD_WITHOUT_MPI" not in environment
    assert environment["HOROVOD_CPU_OPERATIONS"] == "MPI"


def test_a_second_builder_waits(tmp_path, monkeypatch):
    said, entered = queue.Queue(), threading.Event()
    monkeypatch.setattr(horovod_build, "_say", said.put)

    def build_too() -> None:
        with horovod_build._locked(tmp_path / "key"):
            entered.set()

    with horovod_build._locked(tmp_path / "key"):
        thread = threading.Thread(target=build_too)
        thread.start()
        assert "waiting for it" in said.get(timeout=60)
        assert not entered.is_set()
    thread.join(60)
    assert entered.is_set()


@pytest.mark.slow
def test_a_failing_pip_is_one_line_that_names_its_log(tmp_path):
    log = touch(tmp_path / "build.log", "ERROR: of an earlier step\n")
    with pytest.raises(BuildError) as error:
        horovod_build._pip(["install", "--no-index", "--find-links=/nonexistent", "no-such-package"], log)
    assert "pip install failed: ERROR: " in str(error.value)
    assert "earlier" not in str(error.value)
    assert str(log) in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 1


@pytest.mark.slow
def test_says_how_far_a_long_build_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(horovod_build, "PROGRESS_SECONDS", 0.05)
    log = touch(tmp_path / "build.log", "  [ 7%] Building CXX object a/b.dir/c.cc.o\n  cd /tmp && c++ -c c.cc\n")
    horovod_build._pip(["--version"], log)
    assert capsys.readouterr().err.count("s  [ 7%] Building c.cc.o\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("reminder", "said"), [(60.0, [1, 12, 100]), (0.0, [1, 7, 12, 19, 100])])
def test_says_each_ten_percent_of_a_build_or_after_a_minute(tmp_path, monkeypatch, capsys, reminder, said):
    done = iter([1, 7, 12, 19, 100])

    def next_step(log):
        """Returns the steps one after the other, the last of them as often as it is asked for."""
        monkeypatch.setattr(horovod_build, "REMINDER_SECONDS", reminder if (percent := next(done, None)) else 60.0)
        return f"[{percent or 100:3d}%] Building c.cc.o"

    monkeypatch.setattr(horovod_build, "PROGRESS_SECONDS", 0.01)
    monkeypatch.setattr(horovod_build, "_last_step", next_step)
    horovod_build._pip(["--version"], tmp_path / "build.log")
    assert [int(percent) for percent in re.findall(r"\[ *(\d+)%", capsys.readouterr().err)] == said


@pytest.mark.slow
@pytest.mark.skipif(not all(map(shutil.which, ("g++", "cmake", "make"))), reason="needs g++, cmake and make")
def test_a_signal_ends_a_build_with_all_of_its_processes(tmp_path, monkeypatch):
    monkeypatch.setenv(MARK, mark := make_mark())
    command = [sys.executable, "-m", "mnist_dist", "install-horovod", "--force", "--wheel-dir", str(tmp_path)]
    build = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert wait_until(lambda: len(marked_processes(mark)) > 1, 60), "pip"
    build.terminate()
    assert build.communicate(timeout=60)[1].endswith("mnist-dist: ended by SIGTERM\n")
    assert build.returncode == 128 + signal.SIGTERM
    assert not marked_processes(mark) and not list(tmp_path.glob("horovod-build-*"))


@pytest.mark.slow
@pytest.mark.skipif(not all(map(shutil.which, ("g++", "cmake", "make"))), reason="needs g++, cmake and make")
def test_refuses_an_altered_archive(tmp_path, monkeypatch):
    touch(tmp_path / "index" / f"horovod-{horovod_build.VERSION}.tar.gz", "not what was released")
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "index")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(horovod_build, "BUILD_PACKAGES", ("pip",))
    with pytest.raises(BuildError, match=r"DO NOT MATCH THE HASHES.*altered file"):
        horovod_build.install(wheel_dir=tmp_path / "wheels")
    assert not list((tmp_path / "wheels").rglob("*.whl"))


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_builds_installs_and_proves(tmp_path):
    """Takes minutes the first time and seconds where the wheel is already in the user's cache."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    packages = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    touch(packages / "tensorflow.pth", sysconfig.get_path("purelib"))  # TensorFlow as it is here, not a copy of it.

    program = "from mnist_dist.distributed import horovod_build as h\n"
    program += "h.install(); assert h.waits_for_tensors()\n"
    done = run_python(python, "-c", program + "import horovod; print(horovod.__file__)")
    assert done.returncode == 0, done.stderr
    assert "two ranks all-reduced correctly in" in done.stdout
    assert str(packages) in done.stdout.splitlines()[-1]

    late = "import mnist_dist.distributed.horovod_build as h; h.PROOF_SECONDS = 0.2; h.prove_two_ranks()"
    done = run_python(python, "-c", late)
    assert "BuildError: install-horovod: test rank 0 of 2 failed (not done after 0 s)" in done.stderr

    touch(tmp_path / "broken" / "tensorflow.py", "raise RuntimeError('broken')")
    broken = os.pathsep.join([str(tmp_path / "broken"), str(REPOSITORY)])
    done = run_python(
        python, "-c", "from mnist_dist.distributed.horovod_build import *; prove_two_ranks()", PYTHONPATH=broken
    )
    assert "of 2 failed (status 1): RuntimeError: broken" in done.stderr


@pytest.mark.thorough
@pytest.mark.timeout(2400)
@pytest.mark.skipif(not TOOLKIT, reason="there is no CUDA compiler here")
def test_nccl_is_compiled_in(tmp_path):
    """With TensorFlow's NCCL. The compiler here may be of another CUDA, and still shows that all compiles and links.

    On purpose: `install` refuses another CUDA than TensorFlow's, so it is told that TensorFlow had this one.
    """
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    packages = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    touch(packages / "tensorflow.pth", sysconfig.get_path("purelib"))
    nccl = [f"nvidia-nccl-cu{horovod_build.tensorflow_cuda()[0]}", "--constraint", str(REPOSITORY / "constraints.txt")]
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *nccl], check=True)

    program = "from pathlib import Path; from mnist_dist.distributed import horovod_build as h\n"
    program += f"h.tensorflow_cuda = lambda: ({horovod_build.cuda_version(TOOLKIT) // 1000}, '90')\n"
    program += "h.PROOF_SECONDS = 900.0\n"  # With time for a busy machine.
    program += f"h.install(wheel_dir=Path({str(tmp_path)!r}))\n"
    program += "import horovod.tensorflow as hvd; print(hvd.nccl_built(), hvd.cuda_built(), hvd.gloo_built())"
    compiler = touch(tmp_path / "g++", '#!/bin/sh\nexec g++ "$@" -O0\n')  # Optimizing takes most of the time.
    compiler.chmod(0o755)
    done = run_python(python, "-c", program, HOROVOD_CUDA_HOME=str(TOOLKIT), CXX=str(compiler))
    assert done.returncode == 0, done.stderr
    *_, proof, built = done.stdout.splitlines()
    assert "(Gloo + NCCL)" in proof and "NCCL was not tried, as that needs two GPUs" in proof
    version, *others = built.split()
    header = packages / "nvidia" / "nccl" / "include" / "nccl.h"
    major, minor, patch = (horovod_build._defined(header, f"NCCL_{part}") for part in ("MAJOR", "MINOR", "PATCH"))
    assert int(version) == 10_000 * major + 100 * minor + patch and others == ["True", "True"]
