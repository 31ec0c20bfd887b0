"""What computes on a GPU computes here on devices of the CPU, by the same functions; the driver alone is made up."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from mnist_dist.doctor import ABSENT, BROKEN, OK, Finding
from mnist_dist.gpu_doctor import checks
from mnist_dist.gpu_doctor.checks import ARITHMETIC, COMPILED, EXACT, SLOW
from tests import nvml

# In a process of its own, as the devices of one are set up once; what follows `ask` is what a test wants to know.
PROGRAM = """
import dataclasses, json, resource
from mnist_dist.distributed.strategies.mirrored import Mirrored
from mnist_dist.gpu_doctor import checks
from mnist_dist.gpu_doctor.checks import ARITHMETIC, COMPILED, Form
from mnist_dist.runtime import select_devices

found, both = {}, ["CPU:0", "CPU:1"]

def ask(name, check, *arguments):
    for each in check(*arguments):
        found[f"{name} {each.subject}".strip()] = (each.status, each.detail)
    print(json.dumps(found), flush=True)

select_devices(2)
"""


def ask(code: str, environment: Mapping[str, str] | None = None) -> dict[str, tuple[str, str]]:
    """Returns status and detail of the findings that code asks for, by subject."""
    command = [sys.executable, "-c", PROGRAM + code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {subject: (status, detail) for subject, (status, detail) in json.loads(done.stdout.splitlines()[-1]).items()}


def test_a_bound_is_loose_for_a_type_and_tight_for_a_coarser_one() -> None:
    """Where TF32 stands in for float32, an error of the root of its unit roundoff exceeds the bound."""
    assert ARITHMETIC["float32"].bound < 2 ** (-11 / 2) < ARITHMETIC["TF32"].bound < ARITHMETIC["bfloat16"].bound < 0.5
    assert EXACT.bound < 1e-7 and COMPILED["XLA"].bound == ARITHMETIC["TF32"].bound


@pytest.mark.parametrize(
    ("finding", "status"),
    [
        (Finding("Horovod", OK, "0.28.1 with Gloo, NCCL; idle ranks sleep"), OK),
        (Finding("Horovod", OK, "0.28.1 with Gloo; without NCCL"), BROKEN),
        (Finding("Horovod", ABSENT, "not installed"), ABSENT),
        (Finding("Horovod", BROKEN, "does not load"), BROKEN),
    ],
)
def test_horovod_without_nccl_is_broken(finding: Finding, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "check_strategies", lambda: [finding])
    (found,) = checks.check_horovod([])
    assert found.status == status
    assert found.detail.removeprefix(finding.detail) == (
        "; without NCCL it takes no GPUs: `mnist-dist install-horovod --force`" if status != finding.status else ""
    )


@pytest.mark.slow
def test_what_computes_right_and_what_does_not() -> None:
    """One form computes in bfloat16 what it calls float32; one sum is not summed; floors of speed are moved."""
    found = ask("""
ask("", checks.check_arithmetic, ["CPU:1"], {
    "float32": ARITHMETIC["float32"],
    "float16": ARITHMETIC["float16"],
    "wrong": Form("mixed_bfloat16", 24),
    "newer": Form("float32", 24, (100, 0)),
})
ask("", checks.check_xla, ["CPU:0"])
ask("one", checks.check_all_reduce, both[:1])
checks.SLOWEST_PCIE = 0.0
ask("fast", checks.check_all_reduce, both, 2**16)
checks.SLOWEST_PCIE = 1e9
ask("slow", checks.check_all_reduce, both, 2**16)
Mirrored.reduce = lambda _, tensor: tensor
ask("wrong", checks.check_all_reduce, both, 2**16)
""")
    assert {subject: status for subject, (status, _) in found.items()} == {
        **{"CPU:1 float32": OK, "CPU:1 float16": OK, "CPU:1 wrong": BROKEN, "CPU:1 newer": ABSENT, "CPU:0 XLA": OK},
        **{"one all-reduce": ABSENT, "fast all-reduce": OK, "slow all-reduce": SLOW, "wrong all-reduce": BROKEN},
    }
    assert found["CPU:1 newer"][1] == "needs compute capability 100.0"
    assert found["CPU:1 wrong"][1].endswith(" of a gradient against float64, expected at most 0.001")
    assert found["slow all-reduce"][1].endswith(" GB/s of bus bandwidth, expected at least 1e+09 with PCIe")
    assert found["wrong all-reduce"][1] == "memory summed 4 ones to 2"


@pytest.mark.thorough
def test_the_largest_batch_that_memory_holds() -> None:
    """First of the network. Then of a tensor of a MiB for each image, with 0.6 GB of memory left.

    That raises what a GPU raises. Of the network, TensorFlow on a CPU without memory may end by a signal.
    """
    found = ask("""
import tensorflow as tf

ask("network", checks.check_batch, both, 64, 64)
checks.gradient = lambda device, form, batch: tf.zeros([batch, 2**18])
limit = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + 6 * 10**8
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for number, finding in enumerate(checks.check_batch(both, 64, 2**14)):
    ask(str(number), lambda: [finding])
""")
    fits = "images at once fit into the memory of CPU:0"
    assert found.pop("network batch") == found["0 batch"] == (OK, f"64 {fits}")
    *told, last = found.values()
    assert told == [(OK, f"{64 << doublings} {fits}") for doublings in range(len(told))] and 1 <= len(told) <= 4
    assert last == (ABSENT, f"{64 << len(told):,} images at once are more than CPU:0 has memory for")


@pytest.mark.thorough
def test_what_the_driver_says(driver: Path) -> None:
    """Of GPU 1 it does not tell the memory, which others fill meanwhile."""
    code = (
        'ask("", checks.check_driver, [])\nask("", checks.check_memory, both[:1])\nask("", checks.check_libraries, [])'
    )
    found = ask(code, nvml.environment(driver, FILLS="1"))
    status, detail = found["driver's 0"]
    assert status == BROKEN and detail.startswith(
        "Stand-in 0, driver 550.54.15; its memory had 3 uncorrected ECC errors"
    )
    assert found["driver's 1"][1].endswith(
        "; its clock is throttled by temperature before anything runs; see its cooling and power"
    )
    assert found["memory of 0"][0] == BROKEN and "memory of 1" not in found
    assert found["memory of 0"][1].endswith(" MiB of 81,920, expected at most half")
    assert {status for subject, (status, _) in found.items() if subject.startswith("lib")} == {BROKEN}
    sound = ask(code, nvml.environment(driver, cuda=True, HEALTHY="1"))
    assert {status for status, _ in sound.values()} == {OK} and len(sound) == len(found)
