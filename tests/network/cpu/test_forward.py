"""The fused form against the layers of Keras: values, gradients, and what it leaves out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mnist_dist.config import ModelConfig
from mnist_dist.cpuinfo import cpu_flags
from mnist_dist.data.dataset import Arrays
from mnist_dist.network.cpu.build import LEVELS, find_level, load
from mnist_dist.network.cpu.forward import MAX_PART, convolve_and_multiply, count_parts, make_forward, pooled_edges
from mnist_dist.network.flops import flops_per_image
from mnist_dist.network.forward import decide_kernels
from mnist_dist.network.model import build_model
from mnist_dist.runtime import find_device

KERNEL_SIZES = [(3, 3), (5, 3), (2, 4), (4, 5), (1, 1), (25, 1), (1, 13), (3, 12), (23, 2)]


@pytest.fixture(autouse=True)
def onednn(tf: ModuleType) -> None:
    decision = decide_kernels("auto", find_device(), "float32", "off")
    if decision.value != "fused":
        pytest.skip(f"there is no fused form here: {decision.reason}")


def build(kernel_sizes: tuple[int, int] = (3, 3), *, filters: tuple[int, int] = (5, 7), **options: Any) -> Any:
    """A model whose biases are not zero, so that ReLU cuts and ties of pooling come out positive."""
    precision = options.pop("precision", "float32")
    config = ModelConfig(filters=filters, kernel_sizes=kernel_sizes, dense_units=9, **options)
    model = build_model(config, precision=precision, seed=2)
    random = np.random.default_rng(3)
    for variable in model.trainable_variables:
        if variable.path.endswith("bias"):
            variable.assign(0.3 * random.normal(size=variable.shape))
    return model


def draw_images(count: int) -> np.ndarray:
    """Noise, and images of one grey, on which all windows of a pooling tie."""
    images = np.random.default_rng(4).integers(0, 256, (count, 28, 28, 1), np.uint8)
    images[::3] = np.array([0, 255, 40], np.uint8)[np.arange(len(images[::3])) % 3, None, None, None]
    return images


def compute(model: Any, forward: Any, images: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns the logits and the gradient of each variable, of a sum with random factors."""
    import tensorflow as tf

    factors = np.random.default_rng(5).normal(size=(len(images), 10)).astype(np.float32)

    @tf.function
    def run() -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            logits = forward(images, training=True)
            objective = tf.reduce_sum(factors * logits)
        return logits, tape.gradient(objective, [variable.value for variable in model.trainable_variables])

    logits, gradients = run()
    names = [variable.path for variable in model.trainable_variables]
    return logits.numpy(), {name: array.numpy() for name, array in zip(names, gradients, strict=True)}


def distance(actual: np.ndarray, expected: np.ndarray) -> float:
    """Returns the length of the difference, relative to that of what was expected."""
    return float(np.linalg.norm(actual - expected) / (np.linalg.norm(expected) + 1e-12))


# --- The same function ---


@pytest.mark.parametrize("kernel_sizes", KERNEL_SIZES)
def test_values_and_gradients_in_float32(kernel_sizes: tuple[int, int]) -> None:
    model, images = build(kernel_sizes), draw_images(7)
    expected_logits, expected = compute(model, model, images)
    logits, gradients = compute(model, make_forward(model), images)
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        assert distance(gradient, expected[name]) < 1e-5, name


@pytest.mark.slow
@pytest.mark.parametrize("filters", [(1, 1), (3, 16), (17, 2), (32, 64)])
@pytest.mark.parametrize("images", [1, 2, 33])
def test_any_number_of_images_and_filters(filters: tuple[int, int], images: int) -> None:
    model, batch = build(filters=filters), draw_images(images)
    expected_logits, expected = compute(model, model, batch)
    logits, gradients = compute(model, make_forward(model), batch)
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        assert distance(gradient, expected[name]) < 1e-5, name


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_the_code_for_lesser_cpus(level: str) -> None:
    """Runs the tests of values and gradients again, in a process that takes this CPU for one of a lower level."""
    own = find_level(cpu_flags())
    if own is None or list(LEVELS).index(level) <= list(LEVELS).index(own):
        pytest.skip(f"the other tests run the code for {own or 'this architecture'}")
    pretend = f"from mnist_dist.network.cpu import build; build.find_level = lambda flags: {level!r}"
    again = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    tests = [
        __file__,
        "-k",
        "float32 or any_number or equal_pixels or exact_in_bfloat16",
        "-p",
        "no:cacheprovider",
        "-q",
    ]
    done = subprocess.run(
        [sys.executable, "-c", f"{pretend}\n{again}", *tests],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kernel_sizes", [(3, 3), (5, 3)])
def test_bfloat16_is_nearer_to_float32_than_the_layers_are(kernel_sizes: tuple[int, int], arrays: Arrays) -> None:
    """Up to the dense layers, whose ReLU has a sharp edge: there, single units decide about the distance."""
    import keras
    import tensorflow as tf

    images = arrays.test_images[:200, ..., np.newaxis]

    def compute_convolutions(precision: str, fused: bool) -> list[np.ndarray]:
        model = build(kernel_sizes, filters=(32, 64), precision=precision)
        layers = [model.get_layer(name) for name in ("conv_1", "conv_2")]
        normalized = keras.Model(model.inputs, model.get_layer("normalize").output)([images])
        of_layers = keras.Model(model.inputs, model.get_layer("flatten").output)
        with tf.GradientTape() as tape:
            if fused:
                kernels, biases = (
                    [tf.convert_to_tensor(v) for v in vs] for vs in zip(*(x.weights for x in layers), strict=True)
                )
                tape.watch([*kernels, *biases])
                pixels = tf.reshape(normalized, [len(images), -1])
                kernels.append(tf.eye(of_layers.output.shape[-1]))  # The product is the features themselves.
                dtype = layers[1].compute_dtype
                features = convolve_and_multiply(load(cpu_flags()), pixels, kernels, biases, dtype)
            else:
                kernels, biases = (
                    [variable.value for variable in vs] for vs in zip(*(x.weights for x in layers), strict=True)
                )
                features = of_layers([images])
            factors = np.random.default_rng(5).normal(size=features.shape)
            objective = tf.reduce_sum(tf.cast(factors, features.dtype) * features)
        gradients = tape.gradient(objective, [*kernels[:2], *biases])
        return [np.asarray(tf.cast(tensor, tf.float32)) for tensor in (features, *gradients)]

    exact = compute_convolutions("float32", fused=False)
    of_layers = compute_convolutions("mixed_bfloat16", fused=False)
    of_kernels = compute_convolutions("mixed_bfloat16", fused=True)
    for kernels, layers, expected in zip(of_kernels, of_layers, exact, strict=True):
        assert distance(kernels, expected) < min(distance(layers, expected), 0.1)


@pytest.mark.parametrize(
    ("images", "kernel_sizes", "filters"),
    [
        (1, (3, 3), (32, 64)),
        (33, (3, 3), (32, 64)),
        (64, (5, 3), (32, 64)),
        (40, (3, 4), (64, 32)),
        (40, (2, 2), (32, 96)),
        (31, (25, 1), (32, 32)),
        (40, (3, 3), (32, 65)),  # Too few filters for tiles, or too many.
        (40, (3, 3), (17, 64)),
    ],
)
def test_gradients_of_what_is_exact_in_bfloat16(
    tf: ModuleType, images: int, kernel_sizes: tuple[int, int], filters: tuple[int, int]
) -> None:
    """Products of two such values are exact in float32, so that sums alone may differ from those in float32."""
    random, (edge_1, edge_2) = np.random.default_rng(8), pooled_edges(*kernel_sizes)

    def draw(*shape: int) -> Any:
        return tf.cast(random.normal(size=shape), tf.bfloat16)

    size_1, size_2 = kernel_sizes
    factors = {
        "features": draw(edge_1, edge_1, images, filters[0]),
        "kernel_2": draw(size_2, size_2, *filters),
        "upstream": draw(images, edge_2, edge_2, filters[1]),
    }
    winners = {
        "winners_1": tf.constant(random.integers(0, 8, (edge_1, edge_1, images, filters[0])), tf.uint8),
        "winners_2": tf.constant(random.integers(0, 8, (images, edge_2, edge_2, filters[1])), tf.uint8),
    }
    pixels = tf.constant(random.normal(size=(images, 784)), tf.float32)
    compute = load(cpu_flags()).mnist_dist_convolution_gradients
    expected = compute(
        images=pixels,
        kernel_size_1=size_1,
        **winners,
        **{name: tf.cast(values, tf.float32) for name, values in factors.items()},
    )
    gradients = compute(images=pixels, kernel_size_1=size_1, **winners, **factors)
    for name in expected._fields:
        assert distance(getattr(gradients, name).numpy(), getattr(expected, name).numpy()) < 5e-6, name


def test_the_gradients_of_the_convolutions_go_first(tf: ModuleType) -> None:
    """They take longest. Else chance decides, process by process, whether another core waits for them."""
    model = build((3, 3), filters=(32, 64))
    forward = make_forward(model)

    @tf.function(autograph=False)
    def compute_gradients(images: Any) -> Any:
        with tf.GradientTape() as tape:
            objective = tf.reduce_sum(forward(images, training=True))
        return tape.gradient(objective, [variable.value for variable in model.trainable_variables])

    graph = compute_gradients.get_concrete_function(tf.TensorSpec([16, 28, 28, 1], tf.uint8)).graph
    (convolutions,) = (each for each in graph.get_operations() if each.type == "MnistDistConvolutionGradients")
    upstream = convolutions.inputs[-1].op.inputs[0].op  # Before it was reshaped.
    (dense,) = (each for each in graph.get_operations() if upstream in each.control_inputs)
    assert upstream.type == dense.type == "MatMul"
    assert dense.outputs[0].shape == model.get_layer("dense").kernel.shape


def test_digits(arrays: Arrays) -> None:
    model = build_model(ModelConfig(), seed=6)
    images = arrays.test_images[:50, ..., np.newaxis]
    np.testing.assert_allclose(make_forward(model)(images, training=False), model(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shade", [0, 128, 255])
def test_of_equal_pixels_one_has_the_gradient(shade: int) -> None:
    """An image of one grey: each window of the first pooling ties, and its gradient must not count four times."""
    model = build()
    images = np.full((3, 28, 28, 1), shade, np.uint8)
    _, expected = compute(model, model, images)
    _, gradients = compute(model, make_forward(model), images)
    assert np.abs(expected["conv_1/kernel"]).max() > 0.1
    for name, gradient in gradients.items():
        assert distance(gradient, expected[name]) < 1e-5, name


def test_where_nothing_is_positive_there_is_no_gradient() -> None:
    model = build()
    model.get_layer("conv_2").bias.assign(np.full(7, -1e3))
    logits, gradients = compute(model, make_forward(model), draw_images(4))
    assert np.isfinite(logits).all()
    for name in ("conv_1/kernel", "conv_1/bias", "conv_2/kernel", "conv_2/bias", "dense/kernel"):
        assert not gradients[name].any(), name
    assert gradients["dense/bias"].any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_not_a_number_stays_so(tf: ModuleType, dtype: str) -> None:
    operations, values, bias = load(cpu_flags()), tf.fill([2, 2, 1, 5], tf.constant(np.nan, dtype)), tf.zeros([5])
    if dtype == "float32":
        features, winners = operations.mnist_dist_convolve_features(
            input=values, kernel=tf.ones([1, 1, 5, 5]), bias=bias
        )
    else:
        features, winners = operations.mnist_dist_pool_relu(convolved=values, bias=bias)
    assert np.isnan(features.numpy().astype(np.float32)).all()
    assert not winners.numpy().any(), "a gradient passes, as at the first of equal values"


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_the_same_every_time(precision: str) -> None:
    """oneDNN's operations in between have tiles of their own, on the same threads."""
    model, images = build((3, 3), filters=(32, 64), precision=precision), draw_images(64)
    logits, gradients = compute(model, make_forward(model), images)
    for _ in range(3):
        again = compute(model, make_forward(model), images)
        assert np.array_equal(again[0], logits)
        assert all(np.array_equal(again[1][name], gradients[name]) for name in gradients)


@pytest.mark.parametrize(
    ("values", "kernel", "bias", "line"),
    [
        ((6, 6, 2, 3), (3, 3, 3, 4), 5, "bias: received [5], expected [4]"),
        ((6, 6, 2, 3), (3, 3, 2, 4), 4, "kernel: received [3, 3, 2, 4], expected [3, 3, 3, 4]"),
        ((6, 5, 2, 3), (3, 3, 3, 4), 4, "input: received [6, 5, 2, 3], expected [6, 6, 2, 3]"),
        ((5, 5, 2, 3), (3, 3, 3, 4), 4, "input: received [5, 5, 2, 3], expected [4, 4, 2, 3]"),
        ((2, 2, 2, 3), (3, 3, 3, 4), 4, "expected a kernel that fits the input"),
        ((6, 6, 3), (3, 3, 3, 4), 4, "input: received [6, 6, 3], expected 4 dimensions"),
    ],
)
def test_features_that_do_not_fit(
    tf: ModuleType, values: tuple[int, ...], kernel: tuple[int, ...], bias: int, line: str
) -> None:
    inputs = {"input": tf.zeros(values), "kernel": tf.zeros(kernel), "bias": tf.zeros([bias])}
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        load(cpu_flags()).mnist_dist_convolve_features(**inputs)
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("images", "kernel", "bias", "edge", "line"),
    [
        ((2, 783), (3, 3, 1, 4), 4, 12, "images: received [2, 783], expected [2, 784]"),
        ((2, 784), (3, 3, 2, 4), 4, 12, "kernel: received [3, 3, 2, 4], expected [3, 3, 1, 4]"),
        ((2, 784), (3, 3, 1, 4), 5, 12, "bias: received [5], expected [4]"),
        ((2, 784), (3, 3, 1, 4), 4, 14, "expected a kernel that fits the images"),
        ((2, 28, 28), (3, 3, 1, 4), 4, 12, "images: received [2, 28, 28], expected 2 dimensions"),
    ],
)
def test_shapes_that_do_not_fit(
    tf: ModuleType, images: tuple[int, ...], kernel: tuple[int, ...], bias: int, edge: int, line: str
) -> None:
    inputs = {"images": tf.zeros(images), "kernel": tf.zeros(kernel), "bias": tf.zeros([bias])}
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        load(cpu_flags()).mnist_dist_convolve_pixels(**inputs, edge=edge, T=tf.float32)
    assert line in str(caught.value)


def test_dropout_while_training_only() -> None:
    model, images = build(dropout=0.5), draw_images(64)
    forward = make_forward(model)
    inference = np.asarray(forward(images, training=False))
    np.testing.assert_allclose(inference, model(images, training=False), rtol=1e-5, atol=1e-5)
    dropped = [np.asarray(forward(images, training=True)) for _ in range(20)]
    assert not np.allclose(dropped[0], dropped[1], atol=1e-3)
    assert distance(np.mean(dropped, axis=0), inference) < 0.3 < distance(dropped[0], inference)


def test_probabilities() -> None:
    model = build_model(ModelConfig(filters=(2, 3), dense_units=5), probabilities=True)
    images = draw_images(5)
    np.testing.assert_allclose(make_forward(model)(images, training=False), model(images), atol=1e-6)


def test_the_model_stays_as_it_was() -> None:
    model = build()
    names, weights = [variable.path for variable in model.variables], model.get_weights()
    compute(model, make_forward(model), draw_images(4))
    assert [variable.path for variable in model.variables] == names
    assert all(np.array_equal(*pair) for pair in zip(weights, model.get_weights(), strict=True))


# --- Its parts ---


@pytest.mark.parametrize("kernel_sizes", KERNEL_SIZES)
def test_what_reaches_the_dense_layer(kernel_sizes: tuple[int, int]) -> None:
    first, second = pooled_edges(*kernel_sizes)
    model = build(kernel_sizes)
    assert model.get_layer("pool_2").output.shape[1] == second
    whole = model.get_layer("pool_1").output.shape[1]
    assert whole - 1 <= first <= whole
    assert first - kernel_sizes[1] + 1 == 2 * second


@pytest.mark.parametrize("kernel_sizes", [(3, 3), (5, 4), (2, 7)])
def test_what_pooling_discards_is_not_computed(tf: ModuleType, kernel_sizes: tuple[int, int]) -> None:
    from tensorflow.python.profiler import model_analyzer, option_builder

    config = ModelConfig(filters=(6, 10), kernel_sizes=kernel_sizes, dense_units=14)
    forward = make_forward(build_model(config, precision="mixed_bfloat16"))  # Of float32, TensorFlow counts less.
    run = tf.function(lambda images: forward(images, training=False), autograph=False)
    graph = run.get_concrete_function(tf.TensorSpec([1, 28, 28, 1], tf.uint8)).graph
    options = option_builder.ProfileOptionBuilder(option_builder.ProfileOptionBuilder.float_operation())
    node, counted = model_analyzer.profile(graph, cmd="op", options=options.with_empty_output().build()), 0
    while node.children:  # A chain, with a link for each type of operation.
        node = node.children[0]
        counted += node.float_ops if node.name in ("Conv2D", "MatMul") else 0
    edge = pooled_edges(*kernel_sizes)[0]
    (operation,) = [node for node in graph.get_operations() if node.type == "MnistDistConvolvePixels"]
    assert operation.get_attr("edge") == edge
    first_layer = 2 * 2 * (2 * edge) ** 2 * kernel_sizes[0] ** 2 * 6  # Without a gradient of the images.
    assert 3 * counted + first_layer == flops_per_image(config, cropped=True)


@pytest.mark.parametrize(
    ("images", "branches", "parts"),
    [
        (128, 1, 1),
        (128, 2, 2),
        (100, 3, 3),
        (128, 16, 8),  # None below 16 images.
        (20, 4, 1),
        (1, 2, 1),
        (1000, 2, 4),  # None above 256.
        (1000, 8, 8),
        (MAX_PART + 1, 1, 2),
    ],
)
def test_parts_of_a_batch(images: int, branches: int, parts: int) -> None:
    assert count_parts(images, branches) == parts
