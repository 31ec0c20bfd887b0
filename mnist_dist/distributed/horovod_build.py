"""Builds Horovod for the installed TensorFlow, installs it and proves it with two real ranks.

Horovod 0.28.1, its last release, does not compile against TensorFlow 2.16 and later. Its source distribution is
fetched with pip, repaired and built once per combination of versions; the wheel is kept. Its version has a local part,
as in 0.28.1+mnistdist.4, which tells it from Horovod as released.
"""

import contextlib
import fcntl
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from mnist_dist.errors import EXIT_FAILED, UserError
from mnist_dist.files import user_folder
from mnist_dist.packages import TENSORFLOW, find_package

VERSION = "0.28.1"
SDIST_SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
PATCH_VERSION = 4  # Part of the wheel's key: raise it with every change to PATCHES_FILE or `build_environment`.
LOCAL_VERSION = "mnistdist"
PATCHES_FILE = Path(__file__).with_name("horovod_patches.yaml")

IDLE_CYCLE_MILLISECONDS = 20.0  # How often ranks that have nothing to send ask for news, such as a shutdown.

RUNTIME_PACKAGES = ("cloudpickle", "psutil", "pyyaml", "packaging")
BUILD_PACKAGES = ("setuptools", "wheel", *RUNTIME_PACKAGES)  # Horovod's setup.py wants the latter even to build.
BUILD_BYTES = 1_000_000_000
PROGRESS_SECONDS, REMINDER_SECONDS = 15.0, 60.0  # Between looks at the log, and between lines that say the same.
TENS = len("[ 1")  # Of a step such as `[ 12%] Building c.cc.o`, what holds its tens of percent.
PROOF_SECONDS = 120.0

_FAILURE = re.compile(r"\berror: |CMake Error|No space left on device|\bKilled\b|^ERROR: |\*\*\* ", re.MULTILINE)
_REMEDIES = (
    ("No space left on device", "free some disk space, or set TMPDIR to a folder on a larger disk"),
    ("Killed|cannot allocate memory", "memory ran out: set MAKEFLAGS=-j1 to compile one file at a time"),
    ("externally-managed", "create a virtual environment with `python3 -m venv` and work in it"),
    ("DO NOT MATCH THE HASHES", "the package index serves an altered file: name another one with PIP_INDEX_URL"),
    ("matching distribution|onnection|name resolution", "check the network, or name an index with PIP_INDEX_URL"),
    ("nvcc|cuda|nccl", "install a CUDA toolkit that fits, or set HOROVOD_GPU_OPERATIONS= (empty) for the CPU alone"),
)


class BuildError(UserError):
    """Horovod could not be built, installed or run, though nothing known was missing."""

    exit_code = EXIT_FAILED


def waits_for_tensors() -> bool:
    """Tells whether the installed Horovod was built here, so that its cycles begin when there is something to send."""
    try:
        return f"+{LOCAL_VERSION}." in importlib.metadata.version("horovod")
    except importlib.metadata.PackageNotFoundError:
        return False


def install(mpi: bool = False, wheel_dir: Path | None = None, force: bool = False) -> None:
    """Installs Horovod into this interpreter's environment; builds it where no fitting wheel is at hand.

    Args:
        mpi: build the MPI operations as well; Gloo, which needs no launcher, is always built.
        wheel_dir: where wheels are kept; by default mnist_dist/wheels in the user's cache folder.
        force: build even if a matching wheel exists.

    Raises:
        UserError: something that has to be installed first is missing.
        BuildError: the build, the installation or the proof with two ranks failed.
    """
    tensorflow, version = _tensorflow()
    nccl = find_nccl()
    variant = " + ".join(["Gloo", *(["NCCL"] if nccl else []), *(["MPI"] if mpi else [])])
    key = wheel_key(f"{tensorflow}-{version}", nccl, _mpi_compiler() if mpi else None)
    folder = (wheel_dir or default_wheel_dir()).absolute() / key
    with _locked(folder):
        wheel = None if force else next(folder.glob("*.whl"), None)
        if wheel is None:
            _say(f"Building Horovod {VERSION} ({variant}) takes some minutes; its output goes to {folder}/build.log")
            wheel = _build(folder, nccl, mpi)
        log = folder / "install.log"
        log.unlink(missing_ok=True)
        _pip(["install", *RUNTIME_PACKAGES], log)
        _pip(["install", "--no-deps", "--force-reinstall", str(wheel)], log)
        _say(f"Installed {wheel}")
        seconds, with_nccl = prove_two_ranks()
    what = f"Horovod {VERSION} ({variant}) on TensorFlow {version}"
    untried = "; NCCL was not tried, as that needs two GPUs" if nccl and not with_nccl else ""
    print(f"{what}: two ranks all-reduced correctly in {seconds:.0f} s{untried}", flush=True)


def default_wheel_dir() -> Path:
    folder = user_folder("XDG_CACHE_HOME", ".cache")
    if folder is None:
        raise UserError("--wheel-dir: this user has no home folder to keep the wheel in; name a folder.")
    return folder / "wheels"


def wheel_key(tensorflow: str, nccl: Mapping[str, str], mpi_compiler: Path | None) -> str:
    """Returns the name of a wheel's folder: everything that the compiled code depends on."""
    parts = ["horovod", VERSION, f"patch{PATCH_VERSION}", tensorflow, str(sysconfig.get_config_var("SOABI"))]
    parts += ["".join(platform.libc_ver()), "gloo", *(["nccl"] if nccl else []), *(["mpi"] if mpi_compiler else [])]
    if nccl or mpi_compiler:
        cuda, header = Path(nccl.get("HOROVOD_CUDA_HOME", "")), Path(nccl.get("HOROVOD_NCCL_INCLUDE", ""), "nccl.h")
        versions = cuda_version(cuda), [_defined(header, f"NCCL_{part}") for part in ("MAJOR", "MINOR", "PATCH")]
        parts.append(hashlib.sha256(repr((sorted(nccl.items()), versions, mpi_compiler)).encode()).hexdigest()[:8])
    return "-".join(parts)


def find_nccl() -> dict[str, str]:
    """Returns the build variables for NCCL, or nothing where the CUDA compiler or NCCL is missing.

    NCCL is looked for in HOROVOD_NCCL_HOME, beside the CUDA compiler, among pip's packages and in the system;
    HOROVOD_GPU_OPERATIONS set to nothing keeps it out.
    """
    if os.environ.get("HOROVOD_GPU_OPERATIONS", "NCCL") != "NCCL":
        return {}
    nvcc = _which("nvcc")
    homes = [*_folders("HOROVOD_CUDA_HOME", "CUDA_HOME"), *([nvcc.resolve().parents[1]] if nvcc else [])]
    complete = [home for home in (*homes, Path("/usr/local/cuda")) if (home / "include/cuda_runtime.h").exists()]
    wanted, capabilities = tensorflow_cuda()
    cuda, has_gpu = None, bool(shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists())
    for home in dict.fromkeys(home for home in complete if (home / "bin/nvcc").exists()):
        if cuda_version(home) // 1000 == wanted:
            cuda = cuda or home
        else:
            found = f"CUDA {cuda_version(home) // 1000} in {home}"
            unused = f"Note: {found} is not used, as TensorFlow uses CUDA {wanted}; without a GPU that is fine."
            _say(f"{found} does not match TensorFlow, which uses CUDA {wanted}." if has_gpu else unused)
    if cuda is None:
        if has_gpu:
            _say(
                f"Warning: no CUDA {wanted} compiler was found, so this Horovod is CPU-only and refuses GPUs; "
                "install a toolkit, or name one with HOROVOD_CUDA_HOME, and build with --force."
            )
        return {}
    pip_folder = Path(sysconfig.get_path("purelib"), "nvidia", "nccl")
    for root in (*_folders("HOROVOD_NCCL_HOME"), cuda, pip_folder, Path("/usr")):
        folders = [root / name for name in ("lib", "lib64", f"lib/{platform.machine()}-linux-gnu")]
        libraries = [library for folder in folders for library in sorted(folder.glob("libnccl.so*"))]
        header = root / "include" / "nccl.h"
        if libraries and header.exists():
            nccl = {"HOROVOD_NCCL_INCLUDE": str(header.parent), "HOROVOD_NCCL_LIB": str(libraries[0])}
            nccl["HOROVOD_BUILD_CUDA_CC_LIST"] = os.environ.get("HOROVOD_BUILD_CUDA_CC_LIST") or capabilities
            return {"HOROVOD_GPU_OPERATIONS": "NCCL", "HOROVOD_CUDA_HOME": str(cuda), **nccl}
    _say(f"Found CUDA in {cuda} but no NCCL, so this is for CPUs; for GPUs run `pip install nvidia-nccl-cu12` first.")
    return {}


def tensorflow_cuda() -> tuple[int, str]:
    """Returns for which CUDA the installed TensorFlow is built, 0 for none, and the capabilities, as in "80,90"."""
    spec = importlib.util.find_spec("tensorflow")
    try:
        text = Path(str(spec and spec.origin)).with_name("python").joinpath("platform", "build_info.py").read_text()
    except OSError:
        return 0, ""
    version = re.search(r"'cuda_version', '(\d+)", text)
    return int(version[1]) if version else 0, ",".join(re.findall(r"'(?:sm|compute)_(\d+)'", text))


def cuda_version(home: Path) -> int:
    """Returns that of a toolkit, such as 12050 for 12.5; 0 where it does not say."""
    return _defined(home / "include" / "cuda_runtime_api.h", "CUDART_VERSION")


def _defined(header: Path, name: str) -> int:
    with contextlib.suppress(OSError):
        if found := re.search(rf"^#define +{name} +(\d+)", header.read_text(errors="replace"), re.MULTILINE):
            return int(found[1])
    return 0


def prove_two_ranks() -> tuple[float, bool]:
    """Lets two processes all-reduce a vector over 127.0.0.1; returns how many seconds that took, and whether by NCCL.

    Raises:
        BuildError: a rank failed, got a wrong sum, or was not done within two minutes.
    """
    importlib.invalidate_caches()  # The folder may have been read before pip put Horovod there.
    try:
        from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer
    except ImportError as error:
        raise BuildError(f"install-horovod: Horovod was installed but cannot be imported: {error}.") from None
    started = time.monotonic()
    with RendezvousHTTPServer(("127.0.0.1", 0), RendezvousHandler, 0) as server, contextlib.ExitStack() as stack:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stack.callback(server.shutdown)
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(2)]
        ranks = []
        for rank, output in enumerate(outputs):
            command = [sys.executable, "-c", f"from {__name__} import run_rank; run_rank()"]
            environment = _rank_environment(rank, server.server_port)
            ranks.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT))
            stack.callback(ranks[-1].wait)
            stack.callback(ranks[-1].kill)
        while None in (states := [process.poll() for process in ranks]) and not any(states):
            if time.monotonic() - started > PROOF_SECONDS:
                break
            time.sleep(0.05)
        if any(state != 0 for state in states):
            guilty = states.index(next(filter(None, states), None))
            outputs[guilty].seek(0)
            last = (outputs[guilty].read().decode(errors="replace").split("\n")[-2:] or [""])[0]
            state = f"not done after {PROOF_SECONDS:.0f} s" if states[guilty] is None else f"status {states[guilty]}"
            raise BuildError(f"install-horovod: test rank {guilty} of 2 failed ({state}): {last.strip()[:300]}")
        outputs[0].seek(0)
        with_nccl = b"\nwith NCCL\n" in b"\n" + outputs[0].read()
    return time.monotonic() - started, with_nccl


def run_rank() -> None:
    """Is one rank of `prove_two_ranks`: with NCCL where every rank can have a GPU, else on the CPU."""
    import horovod.tensorflow as hvd
    import tensorflow as tf

    hvd.init()
    gpus = tf.config.list_physical_devices("GPU") if hvd.nccl_built() else []
    with_nccl = len(gpus) >= hvd.size()
    tf.config.set_visible_devices([gpus[hvd.rank()]] if with_nccl else [], "GPU")

    @tf.function(autograph=False)
    def reduce(vector: tf.Tensor) -> tf.Tensor:
        return hvd.grouped_allreduce([vector], op=hvd.Sum, name="proof")[0]

    vector = tf.range(1000, dtype=tf.float32)
    if hvd.size() != 2 or not bool(tf.reduce_all(reduce(vector * (hvd.rank() + 1.0)) == 3.0 * vector)):
        raise SystemExit(f"{hvd.size()} ranks all-reduced a vector to a wrong sum")
    print("with NCCL" if with_nccl else "on the CPU", flush=True)
    hvd.shutdown()


def patch_source(source: Path) -> None:
    """Repairs the unpacked source, see PATCHES_FILE; raises BuildError where a text is not there exactly once."""
    import yaml

    for patch in yaml.safe_load(PATCHES_FILE.read_text(encoding="utf-8")):
        name, old, new = patch["file"], patch["old"], patch["new"]
        text = (source / name).read_text()
        if text.count(old) != 1:
            found = f"'{old.strip()}' {text.count(old)} times, expected once"
            raise BuildError(f"install-horovod: {name} has {found}; this is not the source of Horovod {VERSION}.")
        (source / name).write_text(text.replace(old, new))


def explain_failure(log: str) -> str:
    """Returns the first error in the output of a compiler, CMake or pip, and what to do where that is known."""
    found = _FAILURE.search(log)
    lines = log[log.rfind("\n", 0, found.start()) + 1 :].split("\n") if found else log.splitlines()[-1:]
    quote = " ".join(" ".join(lines[: 3 if "CMake Error" in lines[0] else 1]).split()) if lines else "no output"
    remedy = next((f"; {text}" for pattern, text in _REMEDIES if re.search(pattern, quote, re.IGNORECASE)), "")
    return quote[:400] + remedy


def build_environment(nccl: Mapping[str, str], mpi: bool, folder: Path) -> dict[str, str]:
    """Returns the variables that make Horovod's setup.py build what is wanted; may put a link into `folder`."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("HOROVOD_W", "HOROVOD_G"))}
    for name in ("WITH_TENSORFLOW", "WITHOUT_PYTORCH", "WITHOUT_MXNET", "WITHOUT_NVTX", "WITH_GLOO"):
        environment[f"HOROVOD_{name}"] = "1"
    environment["HOROVOD_WITH_MPI" if mpi else "HOROVOD_WITHOUT_MPI"] = "1"
    environment["HOROVOD_CPU_OPERATIONS"] = "MPI" if mpi else "GLOO"
    environment["HOROVOD_LOCAL_VERSION"] = f"{LOCAL_VERSION}.{PATCH_VERSION}"
    environment["CMAKE_POLICY_VERSION_MINIMUM"] = "3.5"  # CMake 4 refuses Gloo's CMakeLists.txt without it.
    environment |= nccl
    environment["PATH"] = _search_path()
    environment.setdefault("MAKEFLAGS", f"-j{len(os.sched_getaffinity(0))}")
    if nccl:
        # pip's package has libnccl.so.2 but no libnccl.so to link with, and lies where no loader looks by itself.
        library = Path(nccl["HOROVOD_NCCL_LIB"])
        (folder / "libnccl.so").unlink(missing_ok=True)
        (folder / "libnccl.so").symlink_to(library)
        environment["PATH"] = os.pathsep.join([f"{nccl['HOROVOD_CUDA_HOME']}/bin", environment["PATH"]])
        flags = f"{os.environ.get('LDFLAGS', '')} -Wl,-rpath,{library.parent}".strip()
        environment |= {"HOROVOD_NCCL_LIB": str(folder), "HOROVOD_NCCL_LINK": "SHARED", "LDFLAGS": flags}
    return environment


def _build(folder: Path, nccl: Mapping[str, str], mpi: bool) -> Path:
    """Puts the wheel into `folder` once it is complete, and the output of all steps into build.log there."""
    _check_tools()
    log = folder / "build.log"
    log.unlink(missing_ok=True)
    _pip(["install", *BUILD_PACKAGES], log)
    with tempfile.TemporaryDirectory(prefix="horovod-build-") as name:
        scratch = Path(name)
        requirement = scratch / "requirements.txt"
        requirement.write_text(f"horovod=={VERSION} --hash=sha256:{SDIST_SHA256}\n")
        # pip compares the hash before it runs the package's setup.py for the metadata.
        fetch = ["download", "--no-deps", "--no-binary=:all:", "--no-build-isolation", "--require-hashes"]
        _pip([*fetch, f"--dest={scratch}", f"--requirement={requirement}"], log)
        with tarfile.open(scratch / f"horovod-{VERSION}.tar.gz") as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.10.11 has none yet.
            archive.extractall(scratch)  # noqa: S202 - and its hash is known.
        source = scratch / f"horovod-{VERSION}"
        patch_source(source)
        partial = folder / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        options = ["--verbose", "--no-deps", "--no-build-isolation", f"--wheel-dir={partial}"]
        _pip(["wheel", *options, str(source)], log, build_environment(nccl, mpi, folder))
    built = next(partial.glob("*.whl"))
    wheel = built.replace(folder / built.name)
    partial.rmdir()
    return wheel


def _check_tools() -> None:
    missing = [tool for tool in (os.environ.get("CXX") or "g++", "cmake", "make") if _which(tool) is None]
    if missing:
        names = " ".join(missing)
        raise UserError(f"install-horovod: {names} not found on PATH; install first, e.g. `apt-get install {names}`.")
    scratch = tempfile.gettempdir()
    free = shutil.disk_usage(scratch).free
    if free < BUILD_BYTES:
        size = f"{free / 1e9:.1f} GB free, expected {BUILD_BYTES / 1e9:.1f}"
        raise UserError(f"install-horovod: {scratch} has {size}; free some, or set TMPDIR to another folder.")


def _mpi_compiler() -> Path:
    compiler = _which("mpicxx")
    if compiler is None:
        raise UserError(
            "install-horovod: --mpi needs mpicxx, which is not on PATH; load your cluster's MPI module, or "
            "`apt-get install libopenmpi-dev openmpi-bin`, or leave --mpi out: Gloo needs no MPI."
        )
    return compiler.resolve()


def _tensorflow() -> tuple[str, str]:
    """Returns name and version of the installed TensorFlow package, without importing it."""
    found = find_package(*TENSORFLOW)
    if found is None:
        raise UserError(f"install-horovod: no TensorFlow in {sys.prefix}; install it first: `pip install tensorflow`.")
    return found


def _pip(arguments: list[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
    """Runs pip with its output appended to `log`; says each ten percent, and each minute, how far it is."""
    if importlib.util.find_spec("pip") is None:
        raise UserError(f"install-horovod: {sys.prefix} has no pip; run `{sys.executable} -m ensurepip` first.")
    started = told_at = time.monotonic()
    told = ""
    with log.open("ab") as output:
        offset = output.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "pip", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PROGRESS_SECONDS)
                break
            step, now = _last_step(log), time.monotonic()
            if step[:TENS] != told[:TENS] or now - told_at >= REMINDER_SECONDS:
                told, told_at = step, now
                _say(f"{now - started:5.0f} s  {step}")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # The compilers too, which pip would leave behind.
            process.wait()
    if process.returncode:
        reason = explain_failure(log.read_bytes()[offset:].decode(errors="replace"))
        raise BuildError(f"install-horovod: pip {arguments[0]} failed: {reason}; the whole output is in {log}.")


def _last_step(log: Path) -> str:
    steps = re.findall(r"^ *(\[ *\d+%\] \w+).*?([^/\s]+)$", log.read_text(errors="replace"), re.MULTILINE)
    return " ".join(steps[-1]) if steps else "preparing"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Creates the folder and keeps other processes out of it; the lock goes with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("w")
    except OSError as error:
        raise UserError(f"--wheel-dir: cannot write '{folder}': {error.strerror}; name another folder.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"Another process works on the same wheel; waiting for it ({folder / 'lock'}).")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # Some network file systems have no locks.
        yield


def _rank_environment(rank: int, port: int) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HOROVOD_")}
    horovod = f"RANK={rank} SIZE=2 LOCAL_RANK={rank} LOCAL_SIZE=2 CROSS_RANK=0 CROSS_SIZE=1 HOSTNAME=127.0.0.1"
    horovod += f" CONTROLLER=gloo CPU_OPERATIONS=gloo GLOO_IFACE=lo GLOO_RENDEZVOUS_PORT={port}"
    horovod += " GLOO_RENDEZVOUS_ADDR=127.0.0.1"
    environment |= {f"HOROVOD_{name}": value for name, value in (pair.split("=") for pair in horovod.split())}
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return environment | {"PYTHONPATH": os.pathsep.join(paths), "TF_CPP_MIN_LOG_LEVEL": "3"}


def _search_path() -> str:
    """Returns PATH after the interpreter's own folder: there is pip's cmake, even if nobody activated it."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _folders(*variables: str) -> list[Path]:
    return [Path(os.environ[name]) for name in variables if os.environ.get(name)]


def _which(program: str) -> Path | None:
    found = shutil.which(program, path=_search_path())
    return Path(found) if found else None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
