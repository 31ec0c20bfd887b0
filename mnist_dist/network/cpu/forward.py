"""The network as CPUs compute it fast: the same function as its Keras layers, over the same variables.

What differs from the layers, and changes no result beyond rounding and the order of sums:

- The images of a batch lie side by side, [rows, columns, images, channels]. In bfloat16, the second convolution is then
  one of a single wide image, dilated by the number of images: long rows, which suit oneDNN's kernels. In float32,
  kernels.cc computes it, with its pooling and ReLU.
- The first convolution has one input channel, too few for oneDNN's kernels. kernels.cc computes it, with its
  pooling and ReLU, in float32 whatever the precision of the rest.
- Rows and columns that pooling discards are not computed.
- The gradients of both convolutions are sums over the outputs that pooling chose, one in four; kernels.cc
  multiplies only these, in float32. In bfloat16, on a CPU with AMX, tiles.h multiplies all of the second one's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mnist_dist.config import IMAGE_SIZE
from mnist_dist.cpuinfo import cpu_flags
from mnist_dist.lazy import keras, tf
from mnist_dist.network.cpu import build as kernel_build

Forward = Callable[..., "tf.Tensor"]
MIN_PART, MAX_PART = 16, 256  # Images; with fewer the kernels are less busy, with more the caches too small.


def count_parts(images: int, branches: int) -> int:
    """Returns in how many parts to compute a batch: one for each branch, unless they became too small or too large."""
    return min(max(branches, -(-images // MAX_PART)), max(1, images // MIN_PART))


def make_forward(model: keras.Model) -> Forward:
    """Returns `forward(images, training)`, which computes what `model(images, training=training)` does.

    Args:
        model: as `mnist_dist.network.model.build_model` makes it, without batch normalisation.

    Returns:
        A function from pixels [b, 28, 28, 1], b being known when it is traced, to the model's output [b, 10].

    Raises:
        KernelError: kernels.cc cannot be compiled.
    """
    normalize, conv_1, conv_2 = (model.get_layer(name) for name in ("normalize", "conv_1", "conv_2"))
    layers, dense = list(model.layers), model.get_layer("dense")
    head = layers[layers.index(dense) + 1 :]
    operations = kernel_build.load(cpu_flags())

    def forward(images: tf.Tensor, training: bool) -> tf.Tensor:
        pixels = tf.cast(normalize(tf.reshape(images, [-1, IMAGE_SIZE**2])), tf.float32)
        weights = [tf.convert_to_tensor(layer.kernel.value) for layer in (conv_1, conv_2, dense)]
        biases = [tf.convert_to_tensor(layer.bias.value) for layer in (conv_1, conv_2)]
        x = convolve_and_multiply(operations, pixels, weights, biases, conv_2.compute_dtype)
        x = tf.nn.bias_add(x, tf.cast(dense.bias.value, x.dtype))
        for layer in head:
            x = layer(x, training=training)
        return x

    return forward


def convolve_and_multiply(
    operations: Any, pixels: tf.Tensor, kernels: list[tf.Tensor], biases: list[tf.Tensor], dtype: str
) -> tf.Tensor:
    """Computes both convolutions, each with its bias, ReLU and pooling, and the product with the first dense kernel.

    Args:
        operations: those of kernels.cc.
        pixels: float32 [images, 28 * 28], without a gradient.
        kernels: float32 [size, size, 1, filters_1], [size, size, filters_1, filters_2] and [features, units].
        biases: float32 [filters_1] and [filters_2].
        dtype: of the results of either convolution and of the product.

    Returns:
        [images, units], as the layer `dense` has them before its bias.
    """
    images, size_1, size_2 = pixels.shape[0], kernels[0].shape[0], kernels[1].shape[0]
    filters_1, filters_2 = kernels[1].shape[2:]
    edge_1, edge_2 = pooled_edges(size_1, size_2)

    def convolve_dilated(first: tf.Tensor, kernel_2: tf.Tensor, bias_2: tf.Tensor) -> Any:
        convolved = tf.raw_ops.Conv2D(
            input=tf.reshape(first, [1, edge_1, edge_1 * images, filters_1]),
            filter=kernel_2,
            strides=[1, 1, 1, 1],
            padding="VALID",
            dilations=[1, 1, images, 1],  # Columns that are neighbours in an image lie that far apart.
        )
        convolved = tf.reshape(convolved, [2 * edge_2, 2 * edge_2, images, filters_2])
        return operations.mnist_dist_pool_relu(convolved=convolved, bias=bias_2)

    @tf.custom_gradient
    def compute(
        kernel_1: tf.Tensor, bias_1: tf.Tensor, kernel_2: tf.Tensor, bias_2: tf.Tensor, dense_kernel: tf.Tensor
    ) -> Any:
        first, winners_1 = operations.mnist_dist_convolve_pixels(
            images=pixels, kernel=kernel_1, bias=bias_1, edge=edge_1, T=dtype
        )
        kernel_2, dense_kernel = tf.cast(kernel_2, dtype), tf.cast(dense_kernel, dtype)
        if dtype == "float32":
            second, winners_2 = operations.mnist_dist_convolve_features(input=first, kernel=kernel_2, bias=bias_2)
        else:
            second, winners_2 = convolve_dilated(first, kernel_2, bias_2)
        features = tf.reshape(second, [images, edge_2**2 * filters_2])

        def gradient(of_product: tf.Tensor) -> tuple[tf.Tensor, ...]:
            upstream = tf.matmul(of_product, dense_kernel, transpose_b=True)
            gradients = operations.mnist_dist_convolution_gradients(
                images=pixels,
                winners_1=winners_1,
                features=first,
                kernel_2=kernel_2,
                winners_2=winners_2,
                upstream=tf.reshape(upstream, [images, edge_2, edge_2, filters_2]),
                kernel_size_1=size_1,
            )
            for of_variable, variable in zip(gradients, (kernel_1, bias_1, kernel_2, bias_2), strict=True):
                of_variable.set_shape(variable.shape)
            # The convolutions' gradients take longest, and go first. Left to itself, TensorFlow takes what is ready in
            # an order that chance gives each process for life: half of them were 4 % slower, as one core waited.
            with tf.control_dependencies([upstream]):
                of_dense_kernel = tf.cast(tf.matmul(features, of_product, transpose_a=True), tf.float32)
            return *gradients, of_dense_kernel

        return tf.matmul(features, dense_kernel), gradient

    return compute(kernels[0], biases[0], kernels[1], biases[1], kernels[2])


def pooled_edges(kernel_size_1: int, kernel_size_2: int) -> tuple[int, int]:
    """Returns how many rows (and columns) of the first and the second pooling reach the dense layer."""
    second = ((IMAGE_SIZE - kernel_size_1 + 1) // 2 - kernel_size_2 + 1) // 2
    return 2 * second + kernel_size_2 - 1, second
