import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mnist_dist.benchmarks.measure.process import Running
from mnist_dist.benchmarks.measure.rounds import Contender, Limits, Round
from mnist_dist.benchmarks.measure.telemetry import POWERCAP, Rapl, Sample, open_meter, summarize
from mnist_dist.benchmarks.records.record import Telemetry
from mnist_dist.gpus import open_nvml
from tests import nvml
from tests.benchmarks.harness import REPOSITORY
from tests.benchmarks.measure.test_rounds import SLEEPER

LARGEST = 262_143_328_850  # Microjoules, of a real package.


def has_gpu() -> bool:
    with open_nvml() as opened:
        return opened is not None and bool(opened.handles)


def has_rapl() -> bool:
    return any(os.access(zone / "energy_uj", os.R_OK) for zone in POWERCAP.glob("intel-rapl:*"))


def set_number(file: Path, value: int) -> None:
    """Changes a number at once, as sysfs does: no reader sees an empty file."""
    new = file.with_name("new")
    new.write_text(f"{value}\n")
    new.replace(file)


@pytest.fixture
def powercap() -> Iterator[Path]:
    """The folder of a host with two packages, laid out as Linux does; every zone has used 10 J."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # Unlike pytest's folders, open to other users.
        yield lay_out_powercap(Path(folder))


def lay_out_powercap(root: Path) -> Path:
    zones = {
        "intel-rapl": None,
        "intel-rapl:0": "package-0",
        "intel-rapl:0/intel-rapl:0:0": "core",
        "intel-rapl:0/intel-rapl:0:1": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }
    for zone, name in zones.items():
        folder = root / "devices" / zone
        folder.mkdir(parents=True)
        if name:
            (folder / "name").write_text(f"{name}\n")
            (folder / "max_energy_range_uj").write_text(f"{LARGEST}\n")
            (folder / "energy_uj").write_text("10000000\n")
    powercap = root / "powercap"
    powercap.mkdir()
    for zone in zones:
        (powercap / Path(zone).name).symlink_to(root / "devices" / zone)
    return powercap


def use(powercap: Path, zone: str, joules: float) -> None:
    file = powercap / zone / "energy_uj"
    set_number(file, (int(file.read_text()) + int(1e6 * joules)) % LARGEST)


@pytest.mark.skipif(has_gpu() or has_rapl(), reason="this host's power can be read")
def test_a_host_without_counters_has_no_meter() -> None:
    with open_meter() as meter:
        assert meter is None
    assert summarize([]) is None


@pytest.mark.skipif(not (has_gpu() or has_rapl()), reason="this host's power cannot be read")
def test_the_power_of_this_host() -> None:
    with open_meter() as meter:
        assert meter is not None
        before = meter()
        time.sleep(1)
        after = meter()
    assert before and after
    telemetry = summarize([(before, after)])
    assert telemetry is not None
    assert telemetry.source == ("nvml" if has_gpu() else "rapl")
    assert 0.5 < telemetry.power_watts < 100_000


def test_packages_and_their_memory_count_once(powercap: Path) -> None:
    rapl = Rapl(powercap)
    before = rapl.read()
    for zone in ("intel-rapl:0", "intel-rapl:1"):
        use(powercap, zone, 3)
    use(powercap, "intel-rapl:0:1", 0.5)
    for counted_elsewhere in ("intel-rapl:0:0", "intel-rapl:2", "intel-rapl-mmio:0"):
        use(powercap, counted_elsewhere, 100)
    after = rapl.read()
    assert after.joules - before.joules == pytest.approx(6.5)
    assert after.seconds > before.seconds
    assert after.utilisation_percent is None


def test_counters_that_overflow(powercap: Path) -> None:
    near_the_end = LARGEST / 1e6 - 15
    use(powercap, "intel-rapl:0", near_the_end)
    rapl = Rapl(powercap)
    joules = [rapl.read().joules]
    for _ in range(3):
        use(powercap, "intel-rapl:0", LARGEST / 1e6 * 0.7)
        joules.append(rapl.read().joules)
    assert int((powercap / "intel-rapl:0" / "energy_uj").read_text()) < LARGEST
    assert joules[-1] - joules[0] == pytest.approx(3 * 0.7 * LARGEST / 1e6, abs=1e-3)


@pytest.mark.slow
def test_energy_is_that_of_the_turns(powercap: Path, tmp_path: Path) -> None:
    """A contender is charged with what is used while it has the turn, and with nothing else: 1 J for each reading."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    def make(name: str) -> Contender:
        command = [sys.executable, str(SLEEPER), "0.01"]
        log = tmp_path / f"{name}.log"
        cores = os.sched_getaffinity(0)
        return Contender(name, lambda variables: Running(command, REPOSITORY, environment | variables, cores, log))

    with open_meter(powercap=powercap) as meter:
        assert meter is not None

        def read() -> Sample | None:
            use(powercap, "intel-rapl:1", 1)
            return meter()

        limits = Limits(seconds=3.0, width=0.0, ratios=[], timeout_seconds=60.0)
        standings = Round([make("one"), make("other")], limits, meter=read).run()
    for standing in standings.values():
        telemetry = summarize(standing.energy)
        assert telemetry is not None
        assert len(standing.energy) >= 3
        assert telemetry.energy_joules == pytest.approx(len(standing.energy))
        assert telemetry.seconds <= standing.own_seconds
        assert telemetry.power_watts == pytest.approx(telemetry.energy_joules / telemetry.seconds)
        assert (telemetry.source, telemetry.gpu_utilisation_percent) == ("rapl", None)
    apart = sorted((before.seconds, after.seconds) for each in standings.values() for before, after in each.energy)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(apart)), "no two at the same time"


def test_counters_that_go_away_cost_the_telemetry_only(powercap: Path) -> None:
    with open_meter(powercap=powercap) as meter:
        assert meter is not None and meter() is not None
        (powercap / "intel-rapl:0" / "energy_uj").unlink()
        assert meter() is None


@pytest.mark.parametrize("content", ["", "many\n"])
def test_counters_that_hold_no_number(powercap: Path, content: str) -> None:
    (powercap / "intel-rapl:0" / "energy_uj").write_text(content)
    with open_meter(powercap=powercap) as meter:
        assert meter is None


def test_counters_that_only_root_may_read(powercap: Path) -> None:
    root = os.geteuid() == 0
    for file in powercap.parent.glob("devices/**/energy_uj"):
        file.chmod(0o400 if root else 0)
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(PermissionError):
            Rapl(powercap)
        with open_meter(powercap=powercap) as meter:
            assert meter is None
    finally:
        if root:
            os.seteuid(0)


def test_a_reading_costs_next_to_nothing(powercap: Path) -> None:
    """Of two for each turn of a fifth of a second, by processor time."""
    with open_meter(powercap=powercap) as meter:
        assert meter is not None
        before = time.process_time()
        for _ in range(100):
            meter()
        assert time.process_time() - before < 100 * 1e-3


def test_power_is_that_of_the_turns() -> None:
    """Two turns of 0.2 s at 200 W; between them another one needed 1000 W."""
    first = Sample("rapl", 1.0, 1000), Sample("rapl", 1.2, 1040)
    second = Sample("rapl", 1.4, 1240), Sample("rapl", 1.6, 1280)
    found = summarize([first, second])
    assert found is not None
    assert found.model_dump(exclude={"gpus"}) == pytest.approx(
        {
            "source": "rapl",
            "seconds": 0.4,
            "energy_joules": 80,
            "power_watts": 200,
            "gpu_utilisation_percent": None,
        }
    )


def test_how_busy_gpus_were_is_read_at_the_end_of_turns() -> None:
    first = Sample("nvml", 0, 0, 0), Sample("nvml", 1, 150, 40)
    second = Sample("nvml", 5, 900, 5), Sample("nvml", 6, 1050, 60)
    assert summarize([first, second]) == Telemetry(
        source="nvml", seconds=2, energy_joules=300, power_watts=150, gpu_utilisation_percent=50
    )


def test_no_time_is_no_power() -> None:
    assert summarize([]) is None
    assert summarize([(Sample("rapl", 1, 2), Sample("rapl", 1, 2))]) is None


GPU_SCRIPT = """
import json, time
from mnist_dist.benchmarks.records.environment import find_hardware
from mnist_dist.benchmarks.measure.telemetry import open_meter, summarize
def measure(gpus, used=None):
    with open_meter(gpus) as meter:
        if meter is None:
            return None
        before = meter()
        time.sleep(0.3)
        return summarize([(before, meter())], used)
found = {"hardware": find_hardware(), "all": measure(None), "first": measure(1), "first of two": measure(None, 1)}
print(json.dumps({name: value and value.model_dump(mode="json") for name, value in found.items()}))
"""


def measure_gpus(driver: Path, **variables: str) -> dict[str, Any]:
    command = [sys.executable, "-c", GPU_SCRIPT]
    environment = nvml.environment(driver, **variables)
    return json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


@pytest.mark.slow
@pytest.mark.parametrize("variables", [{}, {"OLD": "1"}], ids=["counter", "momentary power"])
def test_gpus_through_nvml(driver: Path, variables: dict[str, str]) -> None:
    found = measure_gpus(driver, **variables)
    common = {
        "power_limit_watts": 700,
        "max_sm_clock_mhz": 1981,
        "max_memory_clock_mhz": 1982,
        "ecc": True,
        "mig": False,
    }
    assert found["hardware"]["gpus"] == [
        common
        | {"name": f"Stand-in {i}", "memory_bytes": size, "uuid": f"GPU-{i}", "pci_id": f"00000000:0{i + 1}:00.0"}
        for i, size in enumerate((80 * 2**30, 0))
    ]
    states = [
        {"uuid": "GPU-0", "sm_clock_mhz": 1200, "temperature_celsius": 60, "throttled_by": ["power"], "ecc_errors": 0},
        {
            "uuid": "GPU-1",
            "sm_clock_mhz": 1201,
            "temperature_celsius": 61,
            "throttled_by": ["temperature"],
            "ecc_errors": 0,
        },
    ]
    assert [found[name]["gpus"] for name in ("all", "first", "first of two")] == [states, states[:1], states[:1]]
    assert found["hardware"]["gpu_driver"] == "550.54.15"
    for name, watts, percent in (("all", 300, 15), ("first", 100, 10), ("first of two", 100, 10)):
        telemetry = found[name]
        assert telemetry["source"] == "nvml"
        assert telemetry["power_watts"] == pytest.approx(watts, rel=0.05)
        assert telemetry["energy_joules"] == pytest.approx(watts * telemetry["seconds"], rel=0.05)
        assert telemetry["gpu_utilisation_percent"] == pytest.approx(percent)


@pytest.mark.slow
def test_gpus_of_other_jobs_do_not_count(driver: Path) -> None:
    found = measure_gpus(driver, CUDA_VISIBLE_DEVICES="GPU-1")
    assert [gpu["name"] for gpu in found["hardware"]["gpus"]] == ["Stand-in 1"]
    assert [found[name]["power_watts"] for name in ("all", "first")] == pytest.approx([200, 200], rel=0.05)


@pytest.mark.slow
def test_a_broken_driver_is_no_driver(driver: Path) -> None:
    found = measure_gpus(driver, BROKEN="1")
    assert found["hardware"]["gpus"] == [] and found["hardware"]["gpu_driver"] is None
    assert (found["all"] is None) == (not has_rapl())


@pytest.mark.slow
def test_what_is_forbidden_costs_nothing_else(driver: Path) -> None:
    """One field of one GPU at a time, or a GPU as a whole."""
    everything = measure_gpus(driver)["hardware"]["gpus"]
    fields = {
        "memory_bytes": "DeviceGetMemoryInfo",
        "uuid": "DeviceGetUUID",
        "pci_id": "DeviceGetPciInfo",
        "power_limit_watts": "DeviceGetEnforcedPowerLimit",
        "ecc": "DeviceGetEccMode",
    }
    for field, function in fields.items():
        found = measure_gpus(driver, FORBID=f"{function}_v3" if function.endswith("PciInfo") else function, OF0="1")
        lost = {field: 0 if field == "memory_bytes" else None}
        assert found["hardware"]["gpus"] == [everything[0] | lost, everything[1]], field
        assert found["all"]["power_watts"] == pytest.approx(300, rel=0.05)
    found = measure_gpus(driver, FORBID="DeviceGetUtilizationRates DeviceGetTemperature")
    assert found["all"]["gpu_utilisation_percent"] is None and found["all"]["gpus"][0]["temperature_celsius"] is None
    assert (
        found["all"]["power_watts"] == pytest.approx(300, rel=0.05) and found["all"]["gpus"][0]["sm_clock_mhz"] == 1200
    )
    found = measure_gpus(driver, FORBID="DeviceGetTotalEnergyConsumption DeviceGetPowerUsage", OF0="1")
    assert found["all"]["power_watts"] is None and found["all"]["gpus"][1]["throttled_by"] == ["temperature"]
    found = measure_gpus(driver, LOST="1")
    assert [gpu["uuid"] for gpu in found["hardware"]["gpus"]] == ["GPU-1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        (None, ["MIG-10"]),  # CUDA takes one part, and then no whole GPU.
        ("MIG-11", ["MIG-11"]),
        ("2", ["GPU-1"]),
        ("GPU-1", ["GPU-1"]),
        ("", []),
    ],
)
def test_parts_of_a_gpu(driver: Path, visible: str | None, uuids: list[str]) -> None:
    variables = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    gpus = measure_gpus(driver, MIG="1", **variables)["hardware"]["gpus"]
    assert [gpu["uuid"] for gpu in gpus] == uuids
    assert all(gpu["mig"] == gpu["uuid"].startswith("MIG-") for gpu in gpus)
