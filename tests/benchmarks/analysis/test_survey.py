"""Who is named of a fleet, and who is not: on simulated surveys, whose noise has heavy tails."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from mnist_dist.benchmarks.analysis.survey import (
    WHOLE,
    Part,
    Surveyed,
    find,
    judge,
    read_surveyed,
    summarize,
    units_of,
)
from mnist_dist.benchmarks.records.record import GpuTelemetry, Telemetry
from mnist_dist.benchmarks.records.store import Store
from mnist_dist.errors import UserError
from mnist_dist.slurm.survey_report import render_survey
from tests.benchmarks.adversary_survey import fleet, named
from tests.benchmarks.factory import make_study, matmul

TEN_PERCENT = -math.log(0.9)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, 7])


@pytest.mark.parametrize(("nodes", "fleets", "noise"), [(8, 60, 0.01), (8, 60, 0.03), (1000, 1, 0.02)])
def test_of_equal_devices_hardly_any_fleet_names_somebody(nodes: int, fleets: int, noise: float) -> None:
    alarms = [named(fleet(rng(seed), nodes, noise=noise)) for seed in range(fleets)]
    assert sum(map(bool, alarms)) <= 0.05 * fleets, alarms


@pytest.mark.parametrize(("nodes", "fleets"), [(8, 20), (1000, 1)])
def test_a_device_that_is_a_tenth_slower_is_named_alone(nodes: int, fleets: int) -> None:
    for seed in range(fleets):
        assert named(fleet(rng(seed), nodes, slow={("n3", "0"): TEN_PERCENT})) == {("n3", "0")}


def test_one_of_several_devices_is_named_by_its_number() -> None:
    found = fleet(rng(0), 4, devices=4, slow={("n2", "3"): 0.2})
    assert named(found) == {("n2", "3")}


def test_what_disturbs_one_repeat_names_nobody() -> None:
    found = fleet(rng(0), 8)
    rates = found["n3",].parts["0"].log_rates["compute"]
    rates[:] = [rates[0], rates[1] - 0.04, rates[2] - 1.0]
    assert named(found) == set()


def test_nothing_is_judged_by_a_single_repeat() -> None:
    found = fleet(rng(0), 8, rounds=0, slow={("n3", "0"): 2.0})
    for each in found.values():
        for rates in each.parts["0"].log_rates.values():
            del rates[1:]
    assert judge(units_of(found)) == []


def test_a_slow_link_is_told_from_a_node_with_a_slow_network() -> None:
    pairs = [key for key in fleet(rng(0), 8) if len(key) > 1]
    assert named(fleet(rng(0), 8, slow={pairs[0]: 0.5})) == {pairs[0]}
    of_one = {pair: 0.5 for pair in pairs if "n5" in pair}
    assert len(of_one) == 3
    assert named(fleet(rng(0), 8, slow=of_one)) == {("n5",)}
    assert named(fleet(rng(0), 8, rounds=1, slow={pairs[0]: 0.5})) == set(), "four links are too few to compare"


def test_only_devices_of_a_type_are_compared() -> None:
    found = fleet(rng(0), 12)
    for number in range(1, 6):
        of_node = found[f"n{number}",]
        rates = {name: [each - 2.0 for each in values] for name, values in of_node.parts["0"].log_rates.items()}
        found[f"n{number}",] = Surveyed(machine="old", parts={"0": Part(log_rates=rates)})
    assert named(found) == set()
    few = fleet(rng(0), 4, rounds=0)
    assert judge(units_of(few)) == []


def test_throttling_and_errors_are_told_where_few_have_them() -> None:
    found = fleet(rng(0), 12, slow={("n9", "0"): 0.3})
    told = {
        "n4": {"throttled_by": ["power", "temperature"]},
        "n5": {"ecc_errors": 2},
        "n6": {"failures": ["train: out of memory"]},
    }
    for (node, *others), of_nodes in found.items():
        if not others:
            changed = {"throttled_by": ["power"]} | told.get(node, {})
            of_nodes.parts["0"] = of_nodes.parts["0"].model_copy(update=changed)
    findings = find(found, judge(units_of(found)), {"n77": "job 3: NODE_FAIL"})
    ways = {nodes[0]: ways for (nodes, _), ways in findings.items()}
    assert ways.pop("n9")[-1] == "throttled: power"
    assert ways == {
        "n4": ["throttled: temperature"],
        "n5": ["ECC: 2 uncorrected errors"],
        "n6": ["failed: train: out of memory"],
        "n77": ["lost while it was measured: job 3: NODE_FAIL"],
    }


def test_a_folder_of_studies_becomes_one_file(tmp_path: Path) -> None:
    folder = tmp_path / "nodes" / "n1"
    store = Store(folder / "0")
    gpu = GpuTelemetry(
        uuid="GPU-1", sm_clock_mhz=1000.0, temperature_celsius=80.0, throttled_by=("power",), ecc_errors=1
    )
    meter = Telemetry(
        source="nvml", seconds=1.0, energy_joules=1.0, power_watts=1.0, gpu_utilisation_percent=1.0, gpus=(gpu,)
    )
    records = make_study([matmul(1)], 2)
    for record in records:
        store.add(record.model_copy(update={"telemetry": meter}))
    found = summarize(folder)
    assert read_surveyed(tmp_path) == {("n1",): found}
    part = found.parts["0"]
    rates = [(record.measurements or {})["flops_per_second"] for record in records]
    expected = sorted(math.log(len(each) / sum(1 / rate for rate in each)) for each in rates)
    assert sorted(part.log_rates["compute"]) == pytest.approx(expected)
    assert (part.throttled_by, part.ecc_errors, part.failures) == (["power"], 1, [])
    (tmp_path / "nodes" / "n1.json").write_text('{"machine": 3, "parts": {}}')
    with pytest.raises(UserError, match=r"n1.json: machine: received 3, expected text.*survey again"):
        read_surveyed(tmp_path)


def test_the_text_begins_with_the_finding_and_the_page_holds_names_as_text() -> None:
    pairs = [key for key in fleet(rng(0), 8) if len(key) > 1]
    found = fleet(rng(0), 8, slow={("n3", "0"): 0.3, pairs[0]: 0.7})
    judged = judge(units_of(found))
    nodes = [key[0] for key in found if len(key) == 1]
    findings = find(found, judged, {"<n9>": "job 3: NODE_FAIL"})
    missing = {"N10": "it is drained"}
    text, page, told = render_survey("gpu", [*nodes, "N10"], list(found), 12, missing, judged, findings)
    first, *others = text.splitlines()
    assert first == f"3 stand out, 8 of 9 nodes surveyed: <n9>, n3 device 0, link of {' and '.join(pairs[0])}"
    assert "surveyed: 8 of 9 nodes of gpu, 12 of 12 links; not seen: N10 (it is drained)" in others
    assert others[-1] == "--exclude=<n9>,n3"
    assert told["exclude"] == ["<n9>", "n3"] and told["missing"] == missing and "N10 (it is drained)" in page
    assert {(each["nodes"], each["part"]) for each in told["findings"]} == {*findings}
    (name, percent, z), *_ = told["ranking"]["Compute of 8 devices"]
    assert name == "n3 device 0" and -30 < percent < -20 and z < -5
    assert "&lt;n9&gt;" in page and "<n9>" not in page and page.count('class="slow"') >= 2
    text, *_ = render_survey("gpu", nodes, list(found), 12, {}, judged, {})
    assert text.startswith("Nothing stands out, 8 of 8 nodes surveyed\n")
    text, *_ = render_survey("gpu", nodes, [("n1",)], 0, {}, [], {})
    assert text.startswith("Nothing can be judged: 1 of 8 nodes measured, with no 5 of one type to compare\n")


def test_a_whole_node_is_no_device() -> None:
    found = fleet(rng(0), 8, devices=2)
    found["n2",].parts[WHOLE].log_rates["all-reduce"] = [3.0, 3.0, 3.0]
    assert named(found) == {("n2",)}
