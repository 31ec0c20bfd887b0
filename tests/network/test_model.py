import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mnist_dist.config import ModelConfig
from mnist_dist.data.dataset import Arrays
from mnist_dist.network.model import PIXEL_MEAN, PIXEL_STD, build_inference_model, build_model, load_model

SMALL = ModelConfig(filters=(2, 3), dense_units=5)


@pytest.fixture(autouse=True)
def quiet(tf: ModuleType) -> None:
    """TensorFlow is imported once, without its notices."""


@pytest.fixture(scope="module")
def pixels(arrays: Arrays) -> np.ndarray:
    return arrays.test_images[:8, ..., np.newaxis]


def equal_weights(first: Any, second: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first.get_weights(), second.get_weights(), strict=True))


def test_the_normalisation_is_that_of_the_training_images(arrays: Arrays) -> None:
    chunks = np.array_split(arrays.train_images.reshape(-1), 10)  # All at once would take 400 MB.
    counts = sum(np.bincount(chunk, minlength=256) for chunk in chunks)
    mean = np.average(np.arange(256), weights=counts)
    assert pytest.approx(mean, abs=1e-4) == PIXEL_MEAN
    assert pytest.approx(np.average((np.arange(256) - mean) ** 2, weights=counts) ** 0.5, abs=1e-4) == PIXEL_STD


def test_the_first_layer_normalises(pixels: np.ndarray) -> None:
    normalised = build_model(SMALL).get_layer("normalize")(pixels)
    expected = (pixels.astype(np.float64) - PIXEL_MEAN) / PIXEL_STD
    np.testing.assert_allclose(normalised, expected, atol=1e-5)


def test_the_default_is_the_well_known_network() -> None:
    model = build_model(ModelConfig())
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds == [
        *("InputLayer", "Rescaling"),
        *("Conv2D", "ReLU", "MaxPooling2D", "Conv2D", "ReLU", "MaxPooling2D"),
        *("Flatten", "Dense", "ReLU", "Dense"),
    ]
    convolutions = (3 * 3 * 1 + 1) * 32 + (3 * 3 * 32 + 1) * 64
    dense = (5 * 5 * 64 + 1) * 128 + (128 + 1) * 10
    assert model.count_params() == convolutions + dense == 225_034
    assert (model.input_shape, model.output_shape) == ((None, 28, 28, 1), (None, 10))


def test_widths_and_windows_are_those_of_the_configuration() -> None:
    model = build_model(ModelConfig(filters=(4, 6), kernel_sizes=(5, 2), dense_units=7))
    shapes = {weight.path: tuple(weight.shape) for weight in model.weights if weight.path.endswith("kernel")}
    assert shapes == {
        "conv_1/kernel": (5, 5, 1, 4),
        "conv_2/kernel": (2, 2, 4, 6),
        "dense/kernel": (5 * 5 * 6, 7),
        "logits/kernel": (7, 10),
    }


@pytest.mark.parametrize("kernel_sizes", [(25, 1), (1, 13), (3, 12), (23, 2)])
def test_the_largest_accepted_windows_work(kernel_sizes: tuple[int, int], pixels: np.ndarray) -> None:
    model = build_model(ModelConfig(filters=(2, 3), dense_units=5, kernel_sizes=kernel_sizes))
    assert model(pixels).shape == (8, 10)


@pytest.mark.parametrize(
    ("precision", "hidden"),
    [("float32", "float32"), ("mixed_bfloat16", "bfloat16"), ("mixed_float16", "float16")],
)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_types_of_weights_hidden_layers_and_logits(precision: str, hidden: str, batch_norm: bool) -> None:
    config = SMALL.model_copy(update={"batch_norm": batch_norm, "dropout": 0.5})
    model = build_model(config, precision=precision)
    assert {variable.dtype for variable in model.weights} == {"float32"}
    for layer in model.layers[2:-1]:
        assert layer.compute_dtype == hidden and layer.output.dtype == hidden, layer.name
    assert model.get_layer("normalize").output.dtype == "float32"
    assert model.output.dtype == "float32"
    assert build_model(config, precision=precision, probabilities=True).output.dtype == "float32"


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_sixteen_bits_compute_nearly_the_same(precision: str, pixels: np.ndarray) -> None:
    exact, rounded = build_model(ModelConfig()), build_model(ModelConfig(), precision=precision)
    assert equal_weights(exact, rounded)
    difference = np.abs(np.asarray(exact(pixels)) - np.asarray(rounded(pixels)))
    assert 0 < difference.max() < 0.1


def test_the_seed_alone_decides_the_initial_weights() -> None:
    first = build_model(ModelConfig(), seed=3)
    build_model(ModelConfig(), seed=4)
    assert equal_weights(first, build_model(ModelConfig(), seed=3))
    other = build_model(ModelConfig(), seed=4)
    for name in ("conv_1", "conv_2", "dense", "logits"):
        kernels = [model.get_layer(name).kernel.numpy() for model in (first, other)]
        assert not np.array_equal(*kernels), name
        assert abs(np.corrcoef(kernels[0].reshape(-1), kernels[1].reshape(-1))[0, 1]) < 0.3, name


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (ModelConfig(filters=(1, 1)), ("conv_1", "conv_2")),
        (ModelConfig(filters=(1, 10), kernel_sizes=(25, 1), dense_units=10), ("dense", "logits")),
    ],
)
def test_layers_of_one_shape_start_differently(config: ModelConfig, layers: tuple[str, str]) -> None:
    first, second = (build_model(config).get_layer(name).kernel.numpy() for name in layers)
    assert first.shape == second.shape and not np.any(first == second)


@pytest.mark.parametrize("seed", [0, 2**31 - 1])
def test_every_seed_works(seed: int) -> None:
    weights = build_model(ModelConfig(dropout=0.5, filters=(2, 3)), seed=seed).get_weights()
    assert all(np.isfinite(weight).all() for weight in weights)


def test_batch_normalisation(pixels: np.ndarray) -> None:
    plain, normalising = build_model(SMALL), build_model(SMALL.model_copy(update={"batch_norm": True}))
    assert normalising.count_params() == plain.count_params() - (2 + 3) + 4 * (2 + 3)
    assert normalising.get_layer("conv_1").use_bias is False
    before = normalising.get_layer("norm_1").moving_mean.numpy().copy()
    training = np.asarray(normalising(pixels, training=True))
    after = normalising.get_layer("norm_1").moving_mean.numpy()
    assert not np.array_equal(before, after)
    assert not np.allclose(training, normalising(pixels, training=False), atol=1e-3)
    assert np.array_equal(after, normalising.get_layer("norm_1").moving_mean.numpy()), (
        "inference changed the statistics"
    )


def test_dropout_while_training_only(pixels: np.ndarray) -> None:
    config = ModelConfig(dropout=0.5)
    first, second = build_model(config, seed=1), build_model(config, seed=1)
    inference = np.asarray(first(pixels))
    np.testing.assert_allclose(inference, build_model(ModelConfig(), seed=1)(pixels), atol=1e-5)
    dropped = [np.asarray(first(pixels, training=True)) for _ in range(2)]
    assert not np.allclose(dropped[0], inference, atol=1e-3)
    assert not np.allclose(dropped[0], dropped[1], atol=1e-3)
    assert np.array_equal(second(pixels, training=True), dropped[0]), "the seed does not decide what is dropped"
    assert not np.allclose(build_model(config, seed=2)(pixels, training=True), dropped[0], atol=1e-3)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_the_inference_model_gives_the_probabilities_of_the_logits_in_float32(
    pixels: np.ndarray, precision: str
) -> None:
    config = SMALL.model_copy(update={"batch_norm": True, "dropout": 0.25})
    trained = build_model(config, precision=precision, seed=9)
    for _ in range(3):
        trained(pixels, training=True)  # Moves the statistics of the batch normalisation.
    inference = build_inference_model(config, trained)
    assert equal_weights(inference, trained)
    assert {layer.compute_dtype for layer in inference.layers} == {"float32"}
    exact = build_model(config)
    exact.set_weights(trained.get_weights())
    logits = np.asarray(exact(pixels), np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    probabilities = np.asarray(inference(pixels))
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)


def test_batch_statistics_are_those_of_all_replicas(pixels: np.ndarray) -> None:
    """Half a batch is normalised as in the whole batch, when told the other half's mean, then its variance."""
    config = SMALL.model_copy(update={"batch_norm": True})
    whole = build_model(config)
    convolved = np.asarray(whole.get_layer("conv_1")(whole.get_layer("normalize")(255 - pixels)))
    expected = np.asarray(whole.get_layer("norm_1")(convolved, training=True))
    mine, others = convolved[:4], convolved[4:].astype(np.float64)
    axes, mean = (0, 1, 2), convolved.mean((0, 1, 2), dtype=np.float64)
    moments = [others.mean(axes), ((others - mean) ** 2).mean(axes)]
    from_the_other = iter(np.stack(moments).astype(np.float32))
    replica = build_model(config, replica_mean=lambda tensor: (tensor + next(from_the_other)) / 2)
    np.testing.assert_allclose(replica.get_layer("norm_1")(mine, training=True), expected[:4], atol=1e-3)
    for name in ("moving_mean", "moving_variance"):
        of_whole, of_replica = (getattr(model.get_layer("norm_1"), name).numpy() for model in (whole, replica))
        np.testing.assert_allclose(of_replica, of_whole, rtol=1e-3)


# --- Loading ---


def test_a_saved_model_loads_and_predicts_the_same(tmp_path: Path, pixels: np.ndarray) -> None:
    model = build_inference_model(SMALL, build_model(SMALL, seed=5))
    model.save(tmp_path / "model.keras")
    np.testing.assert_allclose(load_model(tmp_path)(pixels), model(pixels), atol=1e-6)


def test_there_is_no_folder_or_no_model(tmp_path: Path, user_error: Callable[..., str]) -> None:
    missing = tmp_path / "missing"
    assert user_error(load_model, missing) == (
        f"WORKDIR: '{missing}' does not exist; expected a folder written by `mnist-dist train`."
    )
    assert user_error(load_model, tmp_path) == (
        f"WORKDIR: '{tmp_path}' is not the folder of a run; expected one written by `mnist-dist train`."
    )
    (tmp_path / "config.yaml").touch()
    line = user_error(load_model, tmp_path)
    assert (
        line.startswith(f"WORKDIR: '{tmp_path}' holds no model.keras; finish the training with") and "--resume" in line
    )


@pytest.mark.parametrize("damage", ["empty", "half", "text"])
def test_a_damaged_model(tmp_path: Path, damage: str, user_error: Callable[..., str]) -> None:
    file = tmp_path / "model.keras"
    build_model(SMALL).save(file)
    content = file.read_bytes()
    file.write_bytes({"empty": b"", "half": content[: len(content) // 2], "text": b"hello"}[damage])
    line = user_error(load_model, tmp_path)
    assert re.fullmatch(rf"WORKDIR: cannot load '{re.escape(str(file))}' \(.+\); it is damaged: train again\.", line)


def test_code_in_a_model_file_is_not_run(tmp_path: Path, user_error: Callable[..., str]) -> None:
    import keras

    inputs = keras.Input((28, 28, 1))
    model = keras.Model(inputs, keras.layers.Lambda(lambda x: x * 2)(inputs))
    model.save(tmp_path / "model.keras")
    assert "cannot load" in user_error(load_model, tmp_path)
