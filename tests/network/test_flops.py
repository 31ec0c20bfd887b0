"""The count of floating-point operations, against a count by hand and against TensorFlow's own."""

from types import ModuleType

import pytest

from mnist_dist.config import ModelConfig
from mnist_dist.network.flops import flops_per_image
from mnist_dist.network.model import build_model


def test_the_count_of_the_default_network() -> None:
    convolution_1 = 2 * 26 * 26 * 3 * 3 * 1 * 32
    convolution_2 = 2 * 11 * 11 * 3 * 3 * 32 * 64
    dense = 2 * 5 * 5 * 64 * 128 + 2 * 128 * 10
    assert flops_per_image(ModelConfig()) == 2 * convolution_1 + 3 * convolution_2 + 3 * dense == 15_396_864


def test_the_count_without_what_pooling_discards() -> None:
    convolution_1 = 2 * 24 * 24 * 3 * 3 * 1 * 32
    convolution_2 = 2 * 10 * 10 * 3 * 3 * 32 * 64
    dense = 2 * 5 * 5 * 64 * 128 + 2 * 128 * 10
    assert flops_per_image(ModelConfig(), cropped=True) == 2 * convolution_1 + 3 * convolution_2 + 3 * dense


@pytest.mark.parametrize("kernel_sizes", [(3, 3), (5, 3), (2, 7), (5, 5)])
def test_the_forward_count_is_tensorflows(tf: ModuleType, kernel_sizes: tuple[int, int]) -> None:
    from tensorflow.python.profiler import model_analyzer, option_builder

    config = ModelConfig(filters=(6, 10), kernel_sizes=kernel_sizes, dense_units=14)
    model = build_model(config)
    graph = tf.function(model.call).get_concrete_function(tf.TensorSpec([1, 28, 28, 1])).graph
    options = option_builder.ProfileOptionBuilder(option_builder.ProfileOptionBuilder.float_operation())
    options = options.with_empty_output().build()
    node, forward = model_analyzer.profile(graph, cmd="op", options=options), 0
    while node.children:  # A chain, with a link for each type of operation.
        node = node.children[0]
        forward += node.float_ops if node.name in ("Conv2D", "MatMul") else 0
    first_layer = 2 * (28 - kernel_sizes[0] + 1) ** 2 * kernel_sizes[0] ** 2 * 6
    assert flops_per_image(config) == 3 * forward - first_layer
