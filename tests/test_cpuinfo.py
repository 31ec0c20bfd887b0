import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_dist.cpuinfo import CPUINFO, busy_cpu_seconds, cpu_flags, cpu_name, thread_siblings

INTEL = "processor\t: 0\nmodel name\t: Xeon\nflags\t\t: fpu amx_fp16\nvmx flags\t: vnmi\n\nmodel name\t: other\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd bf16\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"


@pytest.mark.parametrize(
    ("text", "name", "flags"),
    [
        (INTEL, "Xeon", {"fpu", "amx_fp16"}),
        (ARM, "implementer 0x41, part 0xd0c", {"fp", "asimd", "bf16"}),
        ("", platform.processor() or platform.machine(), set()),
    ],
)
def test_a_processor_in_the_words_of_linux(text: str, name: str, flags: set[str], tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    assert (cpu_name(file), cpu_flags(file)) == (name, flags)


def test_where_nothing_is_told(tmp_path: Path) -> None:
    assert cpu_name(tmp_path / "missing") and not cpu_flags(tmp_path / "missing")


@pytest.mark.skipif(not CPUINFO.exists(), reason="only Linux has this file")
def test_this_machine() -> None:
    assert cpu_name()
    assert cpu_flags() & {"fpu", "fp", "asimd"}


@pytest.mark.parametrize(
    ("text", "siblings"), [("0,64\n", [0, 64]), ("0-1\n", [0, 1]), ("0\n", [0]), ("\n", [0]), (None, [0])]
)
def test_the_hardware_threads_of_a_core(text: str | None, siblings: list[int], tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "cpu0" / "topology").mkdir(parents=True)
        (tmp_path / "cpu0" / "topology" / "thread_siblings_list").write_text(text)
    assert thread_siblings(0, tmp_path) == siblings


def test_a_sandbox_may_not_tell_what_the_cores_do(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu  0 0 0 0 0 0 0 0 0 0\nintr 0\n")
    assert busy_cpu_seconds(tmp_path / "stat") == busy_cpu_seconds(tmp_path / "missing") == 0.0


@pytest.mark.slow
def test_the_cores_are_busy_while_somebody_computes() -> None:
    before, used_before = busy_cpu_seconds(), sum(os.times()[2:4])
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 1: pass"], check=True)
    used = sum(os.times()[2:4]) - used_before
    assert used > 0.8 and busy_cpu_seconds() - before > 0.9 * used
