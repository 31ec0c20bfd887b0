from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mnist_dist.config import OptimizerConfig
from mnist_dist.network.optimizers import build_optimizer

NAMES = ["adam", "adamw", "rmsprop", "sgd", "lamb"]
START = np.array([1.0, -2.0, 0.5], np.float32)
CURVATURE = np.array([1.0, 3.0, 0.1], np.float32)  # Of the quadratic sum(CURVATURE * x**2) / 2.
RATES = np.array([0.1, 0.05, 0.2, 0.01], np.float32)


@pytest.fixture(autouse=True)
def quiet(tf: ModuleType) -> None:
    """TensorFlow is imported once, without its notices."""


def variable(value: np.ndarray, name: str = "kernel") -> Any:
    import keras

    return keras.Variable(value, name=name)


def build(
    name: Any,
    variables: list[Any],
    *,
    rates: np.ndarray = RATES,
    loss_scaling: bool = False,
    fused: bool = False,
    **options: Any,
) -> Any:
    config = OptimizerConfig(name=name, **options)
    optimizer = build_optimizer(config, rates.astype(np.float32), loss_scaling=loss_scaling, one_operation=fused)
    optimizer.build(variables)
    return optimizer


def descend(name: str, steps: int, **options: Any) -> np.ndarray:
    """Minimises the quadratic and returns x after each step: float [steps, 3]."""
    x = variable(START)
    optimizer = build(name, [x], **options)
    path = []
    for _ in range(steps):
        optimizer.apply([CURVATURE * x.numpy()], [x])
        path.append(x.numpy())
    return np.stack(path)


def sgd(gradient: np.ndarray, state: dict[str, np.ndarray], step: int) -> np.ndarray:
    """Nesterov's momentum (Sutskever et al., "On the importance of initialization and momentum", 2013)."""
    state["m"] = 0.7 * state.get("m", 0.0) - RATES[step] * gradient
    return 0.7 * state["m"] - RATES[step] * gradient


def adam(gradient: np.ndarray, state: dict[str, np.ndarray], step: int) -> np.ndarray:
    """Kingma and Ba, "Adam: a method for stochastic optimization", 2015, with epsilon before the correction."""
    state["m"] = 0.6 * state.get("m", 0.0) + 0.4 * gradient
    state["v"] = 0.9 * state.get("v", 0.0) + 0.1 * gradient**2
    correction = np.sqrt(1 - 0.9 ** (step + 1)) / (1 - 0.6 ** (step + 1))
    return -RATES[step] * correction * state["m"] / (np.sqrt(state["v"]) + 1e-3)


def rmsprop(gradient: np.ndarray, state: dict[str, np.ndarray], step: int) -> np.ndarray:
    """Hinton's lecture 6e, 2012, with a decay of 0.9 and momentum."""
    state["v"] = 0.9 * state.get("v", 0.0) + 0.1 * gradient**2
    state["m"] = 0.7 * state.get("m", 0.0) + RATES[step] * gradient / np.sqrt(state["v"] + 1e-3)
    return -state["m"]


@pytest.mark.parametrize(("name", "update"), [("sgd", sgd), ("adam", adam), ("adamw", adam), ("rmsprop", rmsprop)])
def test_steps_follow_the_formula_with_the_rate_of_each_step(name: str, update: Callable[..., np.ndarray]) -> None:
    taken = descend(name, len(RATES), momentum=0.7, beta_1=0.6, beta_2=0.9, epsilon=1e-3)
    x = START.astype(np.float64)
    state: dict[str, np.ndarray] = {}
    for step in range(len(RATES)):
        x = x + update(CURVATURE * x, state, step)
        np.testing.assert_allclose(taken[step], x, rtol=1e-5, err_msg=f"step {step}")


def test_lamb_scales_steps_to_the_weights() -> None:
    """The first step is lr * |x| long (You et al., "Large batch optimization for deep learning", 2020)."""
    step = descend("lamb", 1, epsilon=1e-7)[0] - START
    assert np.linalg.norm(step) == pytest.approx(RATES[0] * np.linalg.norm(START), rel=1e-4)
    assert np.array_equal(np.sign(step), -np.sign(START))


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_descends(name: str) -> None:
    path = descend(name, 60, rates=np.full(60, 0.02, np.float32))
    losses = (CURVATURE * path**2).sum(axis=1)
    assert losses[-1] < 0.3 * (CURVATURE * START**2).sum()


@pytest.mark.parametrize("name", NAMES)
def test_without_a_rate_nothing_moves(name: str) -> None:
    rates = np.array([0.0, 0.1, 0.0], np.float32)
    path = descend(name, 3, rates=rates, momentum=0.0)
    assert np.array_equal(path[0], START)
    assert not np.array_equal(path[1], path[0])
    assert np.array_equal(path[2], path[1])


def test_after_the_last_step_the_last_rate_stays() -> None:
    path = descend("sgd", 6, momentum=0.0)
    for step in (4, 5):
        np.testing.assert_allclose(path[step], path[step - 1] * (1 - RATES[-1] * CURVATURE), rtol=1e-5)


@pytest.mark.parametrize("loss_scaling", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_is_decoupled_and_leaves_offsets_and_scales_alone(name: str, loss_scaling: bool) -> None:
    variables = [variable(START, part) for part in ("kernel", "bias", "gamma", "beta")]
    optimizer = build(name, variables, weight_decay=0.5, loss_scaling=loss_scaling)
    for _ in range(2):
        optimizer.apply([np.zeros_like(START)] * 4, variables)
    np.testing.assert_allclose(variables[0].numpy(), START * (1 - 0.5 * RATES[0]) * (1 - 0.5 * RATES[1]), rtol=1e-5)
    for untouched in variables[1:]:
        assert np.array_equal(untouched.numpy(), START), untouched.name


@pytest.mark.parametrize("name", NAMES)
def test_by_default_no_weight_decays(name: str) -> None:
    x = variable(START)
    build(name, [x]).apply([np.zeros_like(START)], [x])
    assert np.array_equal(x.numpy(), START)


# --- Adam in one operation ---


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.3}, {"loss_scaling": True}])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_fused_updates_are_those_of_keras(tf: ModuleType, name: str, options: dict[str, Any]) -> None:
    random = np.random.default_rng(0)
    shapes = {"kernel": (3, 4), "bias": (4,)}
    pairs = []
    for fused in (False, True):
        variables = [variable(np.full(shape, 0.5, np.float32), part) for part, shape in shapes.items()]
        pairs.append((build(name, variables, fused=fused, rates=np.linspace(0.01, 0.1, 30), **options), variables))

    @tf.function
    def step(gradients: list[Any]) -> None:
        for optimizer, variables in pairs:
            optimizer.apply(gradients, variables)

    for _ in range(30):
        step(
            [
                tf.constant(random.normal(size=shape) * 10.0 ** random.integers(-6, 3), tf.float32)
                for shape in shapes.values()
            ]
        )
    (plain, plain_variables), (fused, fused_variables) = pairs
    plain_variables, fused_variables = plain_variables + plain.variables, fused_variables + fused.variables
    assert [one.path for one in fused_variables] == [one.path for one in plain_variables]
    assert not np.allclose(plain_variables[0].numpy(), 0.5, atol=0.1)
    for one, other in zip(plain_variables, fused_variables, strict=True):
        np.testing.assert_allclose(other.numpy(), one.numpy(), rtol=1e-5, atol=1e-6, err_msg=one.path)


# --- Loss scaling ---


def scale(optimizer: Any) -> float:
    return float(optimizer.scale_loss(1.0))


@pytest.mark.parametrize("name", NAMES)
def test_scaled_gradients_give_the_same_updates(name: str) -> None:
    plain, scaled = variable(START), variable(START)
    optimizer, scaling = build(name, [plain]), build(name, [scaled], loss_scaling=True)
    assert scale(scaling) >= 1024
    for _ in range(3):
        optimizer.apply([CURVATURE * plain.numpy()], [plain])
        scaling.apply([CURVATURE * scaled.numpy() * scale(scaling)], [scaled])
        np.testing.assert_allclose(scaled.numpy(), plain.numpy(), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_overflows_is_left_out_and_the_scale_halved(name: str, bad: float) -> None:
    x, y = variable(START), variable(START, "other")
    optimizer = build(name, [x, y], loss_scaling=True, weight_decay=0.5)
    before = scale(optimizer)
    gradient = START.copy()
    gradient[1] = bad
    optimizer.apply([gradient, START], [x, y])
    assert np.array_equal(x.numpy(), START) and np.array_equal(y.numpy(), START)
    assert scale(optimizer) == before / 2
    optimizer.apply([START * scale(optimizer), START], [x, y])
    assert np.isfinite(x.numpy()).all() and not np.array_equal(x.numpy(), START)
    assert scale(optimizer) == before / 2


def test_the_scaling_works_in_a_compiled_step(tf: ModuleType) -> None:
    x = variable(START)
    optimizer = build("adam", [x], loss_scaling=True)

    @tf.function
    def step(gradient: Any) -> None:
        optimizer.apply([gradient], [x])

    before = scale(optimizer)
    step(tf.fill([3], np.inf))
    assert np.array_equal(x.numpy(), START) and scale(optimizer) == before / 2
    step(tf.constant(START) * scale(optimizer))
    np.testing.assert_allclose(x.numpy(), START - RATES[0] * np.sign(START), rtol=1e-3)
