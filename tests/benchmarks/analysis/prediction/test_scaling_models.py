import numpy as np
import pytest
from scipy import optimize, stats

from mnist_dist.benchmarks.analysis.limits import AllReduce
from mnist_dist.benchmarks.analysis.prediction.scaling_models import ScalingLaw, ScalingLawModel, fit_nonnegative
from mnist_dist.benchmarks.analysis.prediction.step_times import (
    Links,
    Ring,
    StepTimesModel,
    expected_excess,
    fit_ring,
    gradient_bytes,
)
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.config import Config, load_config

SIZES = [4**exponent for exponent in range(1, 14)]
RING = Ring(latency_seconds=30e-6, seconds_per_byte=0.8e-9)


def all_reduces(ring: Ring, devices: int, hosts: int = 1, noise: float = 0.0, seed: int = 0) -> list[AllReduce]:
    rng = np.random.default_rng(seed)
    case = Case(kind="collectives", strategy="horovod", devices=devices, hosts=hosts)
    seconds = ring.seconds(np.full(len(SIZES), float(devices)), np.array(SIZES, float))
    seconds = seconds * np.exp(noise * rng.standard_normal(len(SIZES)))
    return [AllReduce(case, size, each, each, each) for size, each in zip(SIZES, seconds.tolist(), strict=True)]


def test_seconds_of_a_ring_follow_its_formula() -> None:
    (seconds,) = RING.seconds(np.array([4.0]), 1e6)
    assert seconds == pytest.approx(2 * 3 * 30e-6 + 2 * 3 / 4 * 1e6 * 0.8e-9)
    assert RING.seconds(np.array([1.0]), 1e6) == [0.0]


def test_ring_is_recovered() -> None:
    exact = fit_ring(all_reduces(RING, 2) + all_reduces(RING, 4))
    assert (exact.latency_seconds, exact.seconds_per_byte) == pytest.approx((30e-6, 0.8e-9))
    noisy = fit_ring(all_reduces(RING, 2, noise=0.1, seed=1) + all_reduces(RING, 4, noise=0.1, seed=2))
    assert (noisy.latency_seconds, noisy.seconds_per_byte) == pytest.approx((30e-6, 0.8e-9), rel=0.1)


def test_outliers_hardly_move_the_ring() -> None:
    messages = all_reduces(RING, 2, noise=0.05) + all_reduces(RING, 4, noise=0.05, seed=1)
    slow = messages[3]
    messages[3] = AllReduce(slow.case, slow.size_bytes, 20 * slow.seconds, 0.0, 0.0)
    ring = fit_ring(messages)
    assert (ring.latency_seconds, ring.seconds_per_byte) == pytest.approx((30e-6, 0.8e-9), rel=0.1)


def test_too_few_messages_are_refused() -> None:
    with pytest.raises(ValueError, match="2 all-reduces of 2 sizes are too few"):
        fit_ring(all_reduces(RING, 2)[:2])
    with pytest.raises(ValueError, match="3 all-reduces of 1 sizes are too few"):
        fit_ring([all_reduces(RING, devices)[0] for devices in (2, 4, 8)])


def test_links_within_and_between_hosts_are_fitted_apart() -> None:
    slower = Ring(4 * RING.latency_seconds, 10 * RING.seconds_per_byte)
    links = Links.fit(all_reduces(RING, 2) + all_reduces(slower, 8, hosts=4), devices_per_host=2)
    devices = np.array([2.0, 4.0, 8.0])
    expected = [ring.seconds(devices, 1e6)[index] for index, ring in enumerate((RING, slower, slower))]
    assert links.seconds(devices, 1e6) == pytest.approx(expected)
    assert np.isnan(Links.fit(all_reduces(RING, 2), devices_per_host=2).seconds(np.array([4.0]), 1e6)).all()


LAWS = [ScalingLaw(8000, 0.05, 0.002), ScalingLaw(8000, 0.05, 0.0), ScalingLaw(8000, 0.0, 0.0)]


@pytest.mark.parametrize("law", LAWS)
def test_scaling_law_is_recovered(law: ScalingLaw) -> None:
    devices = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    fitted = ScalingLawModel(has_coherency=True).fit(devices, law.images_per_second(devices))
    assert vars(fitted) == pytest.approx(vars(law), abs=1e-9)
    rng = np.random.default_rng(0)
    noisy = law.images_per_second(devices) * np.exp(0.01 * rng.standard_normal(5))
    fitted = ScalingLawModel(has_coherency=True).fit(devices, noisy)
    assert fitted.rate == pytest.approx(law.rate, rel=0.03)
    assert (fitted.contention, fitted.coherency) == pytest.approx((law.contention, law.coherency), abs=0.015)


def test_amdahl_has_no_coherency() -> None:
    devices = np.array([1.0, 2.0, 4.0, 8.0])
    law = ScalingLawModel(has_coherency=False).fit(devices, LAWS[1].images_per_second(devices))
    assert vars(law) == pytest.approx(vars(LAWS[1]))
    bent = ScalingLawModel(has_coherency=False).fit(devices, LAWS[0].images_per_second(devices))
    assert bent.coherency == 0.0


def test_speed_up_beyond_the_ideal_is_no_negative_contention() -> None:
    devices = np.array([1.0, 2.0, 4.0])
    law = ScalingLawModel(has_coherency=True).fit(devices, 8000 * devices**1.1)
    assert (law.contention, law.coherency) == (0.0, 0.0)
    assert law.rate == pytest.approx(8000 * 2**0.1)  # The geometric mean of the rates of each device.


@pytest.mark.parametrize("seed", range(5))
def test_fit_agrees_with_a_general_optimizer(seed: int) -> None:
    rng = np.random.default_rng(seed)
    columns = rng.random((6, 3))
    values = columns @ rng.random(3) * np.exp(0.3 * rng.standard_normal(6))
    found = fit_nonnegative(columns, values)
    general = optimize.least_squares(
        lambda c: np.log(columns @ c / values), np.full(3, 0.5), bounds=(0, np.inf), xtol=1e-12, ftol=1e-12, gtol=1e-12
    )
    cost = float(np.sum(np.log(columns @ found / values) ** 2))
    assert cost == pytest.approx(2 * general.cost, rel=1e-4)


def test_expected_excess_of_a_normal_sample() -> None:
    """The expected maximum of n normal values: 0.564, 1.03, 2.51 and 3.24 deviations for n = 2, 4, 100 and 1000."""
    times = 1 + 0.01 * stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    excess = expected_excess(times, np.array([1.0, 2.0, 4.0, 100.0, 1000.0]))
    assert excess == pytest.approx([0.0, 0.00564, 0.0103, 0.0251, 0.0324], abs=2e-4)


def test_expected_excess_grows_beyond_the_sample() -> None:
    """Of an exponential sample the maximum grows with log(n) at the pace of its mean, by Gumbel's limit."""
    times = np.random.default_rng(1).exponential(1.0, 400)
    excess = expected_excess(times, np.array([400.0, 4000.0, 40_000.0]))
    assert np.diff(excess) == pytest.approx(np.log(10), rel=0.25)
    assert expected_excess(np.ones(1), np.array([1.0, 1000.0])) == pytest.approx([0.0, 0.0])


def step_times_model(links: Links) -> StepTimesModel:
    jitter = 1 + 0.02 * np.random.default_rng(0).standard_normal(500)
    return StepTimesModel(links, (links,), 900_000, jitter / jitter.mean(), 128, is_strong=False)


@pytest.mark.parametrize("overlap", [0.5e-3, 0.0, -1e-3])
def test_step_times_recover_the_overlap(overlap: float) -> None:
    devices = np.array([1.0, 2.0, 4.0, 8.0])
    model = step_times_model(Links(RING, None))
    exposed = np.maximum(0.0, RING.seconds(devices, 900_000) - overlap)
    seconds = 0.01 * model.relative_busy(devices) + np.where(devices > 1, exposed, 0.0)
    law = model.fit(devices, 128 * devices / seconds)
    assert law.compute_seconds == pytest.approx(0.01)
    assert law.overlap_seconds == pytest.approx(overlap, abs=2e-6)
    assert law.step_seconds(devices) == pytest.approx(seconds, rel=1e-4)
    assert law.links.within_host == RING


def test_step_times_in_strong_scaling_share_the_images() -> None:
    jitterless = np.ones(10)
    model = StepTimesModel(Links(RING, None), (), 900_000, jitterless, 128, is_strong=True, fixed_share=0.2)
    assert model.images_per_step(np.array([1.0, 4.0])).tolist() == [128.0, 128.0]
    assert model.relative_busy(np.array([1.0, 4.0])) == pytest.approx([1.0, 0.2 + 0.8 / 4])


def test_step_times_need_the_links_that_were_used() -> None:
    model = step_times_model(Links(RING, None, devices_per_host=2))
    with pytest.raises(ValueError, match="no all-reduce was measured on the links"):
        model.fit(np.array([1.0, 2.0, 4.0]), np.array([8000.0, 15000.0, 28000.0]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{}, {"model.batch_norm": True, "model.filters": [8, 24], "model.dense_units": 40}]
)
def test_gradient_bytes_are_those_of_the_model(settings: dict[str, object]) -> None:
    from mnist_dist.network.model import build_model

    config = load_config("default", settings)
    parameters = sum(int(np.prod(variable.shape)) for variable in build_model(config.model).trainable_variables)
    assert gradient_bytes(config.model_dump(mode="json")) == 4 * parameters


def test_gradient_bytes_of_the_default_model() -> None:
    assert gradient_bytes(Config().model_dump(mode="json")) == 4 * 225_034
    assert gradient_bytes({"optimizer": {"gradient_compression": "float16"}}) == 2 * 225_034
