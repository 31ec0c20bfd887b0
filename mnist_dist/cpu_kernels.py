"""The network as CPUs compute it fast: the same function as its Keras layers, over the same variables.

What differs from the layers, and changes no result beyond the order of sums:

- The images of a batch lie side by side, [rows, columns, images, channels]. Convolving each of them is then one
  convolution of a single wide image, dilated by the number of images: long rows, which suit oneDNN's kernels.
- The first convolution has one input channel, too few for these kernels. It is a matrix product of patches.
- Rows and columns that pooling discards are not computed.
- The gradient of ReLU is applied after pooling, where there is a quarter of it to do.

It needs TensorFlow with oneDNN: without it there are no gradients of dilated convolutions on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_dist.config import IMAGE_SIZE

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

Forward = Callable[..., "tf.Tensor"]
MIN_PART, MAX_PART = 16, 256  # Images; with fewer the kernels are less busy, with more the caches too small.


def count_parts(images: int, branches: int) -> int:
    """Returns in how many parts to compute a batch: one for each branch, unless they became too small or too large."""
    return min(max(branches, -(-images // MAX_PART)), max(1, images // MIN_PART))


def make_forward(model: keras.Model) -> Forward:
    """Returns `forward(images, training)`, which computes what `model(images, training=training)` does.

    Args:
        model: as `mnist_dist.model.build_model` makes it, without batch normalisation.

    Returns:
        A function from pixels [b, 28, 28, 1], b being known when it is traced, to the model's output [b, 10].
    """
    import tensorflow as tf

    normalize, conv_1, conv_2 = (model.get_layer(name) for name in ("normalize", "conv_1", "conv_2"))
    layers = list(model.layers)
    head = layers[layers.index(model.get_layer("flatten")) + 1 :]
    kernel_sizes = (conv_1.kernel.shape[0], conv_2.kernel.shape[0])

    def weights(layer: keras.layers.Conv2D) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.cast(layer.kernel.value, layer.compute_dtype), tf.cast(layer.bias.value, layer.compute_dtype)

    def forward(images: tf.Tensor, training: bool) -> tf.Tensor:
        edge_1, edge_2 = pooled_edges(*kernel_sizes)
        pixels = tf.cast(normalize(tf.reshape(images, [-1, IMAGE_SIZE**2])), conv_1.compute_dtype)
        pixels = tf.transpose(pixels)  # Not as bytes, which makes oneDNN complain.
        x = convolve_pixels(pixels, *weights(conv_1), edge_1)
        x = convolve(x, *weights(conv_2))
        x = images_first(tf.reshape(x, [edge_2**2, images.shape[0], -1]))
        x = tf.reshape(x, [images.shape[0], -1])
        for layer in head:
            x = layer(x, training=training)
        return x

    return forward


def pooled_edges(kernel_size_1: int, kernel_size_2: int) -> tuple[int, int]:
    """Returns how many rows (and columns) of the first and the second pooling reach the dense layer."""
    second = ((IMAGE_SIZE - kernel_size_1 + 1) // 2 - kernel_size_2 + 1) // 2
    return 2 * second + kernel_size_2 - 1, second


def convolve_pixels(pixels: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, edge: int) -> tf.Tensor:
    """Convolves images of one channel, adds the bias, pools 2 x 2 and applies ReLU.

    Args:
        pixels: [28 * 28, images], without a gradient.
        kernel: [k, k, 1, filters] of the same type.
        bias: [filters].
        edge: rows and columns of the result; further ones are not computed.

    Returns:
        [edge, edge, images, filters].
    """
    import tensorflow as tf

    size, filters, images = kernel.shape[0], kernel.shape[-1], pixels.shape[1]
    # A last row of ones makes the bias one more weight.
    pixels = tf.pad(pixels, [[0, 1], [0, 0]], constant_values=1)
    patches = tf.reshape(tf.gather(pixels, _patch_rows(size, edge)), [size**2 + 1, -1])
    weights = tf.concat([tf.reshape(kernel, [size**2, filters]), bias[tf.newaxis]], axis=0)

    @tf.custom_gradient
    def product_pool_relu(patches: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, Any]:
        product = tf.matmul(patches, weights, transpose_a=True)
        pooled, pool_gradient = _max_pool(tf.reshape(product, [edge**2, 4, images, filters]), [4, 1])
        # ReLU and pooling can change places, since both keep the order.
        result = tf.nn.relu(pooled)

        def gradient(upstream: tf.Tensor) -> tuple[None, tf.Tensor]:
            of_product = pool_gradient(_relu_gradient(upstream, result))
            return None, tf.matmul(patches, tf.reshape(of_product, [-1, filters]))

        return result, gradient

    return tf.reshape(product_pool_relu(patches, weights), [edge, edge, images, filters])


def convolve(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Convolves, adds the bias, applies ReLU and pools 2 x 2.

    Args:
        x: [rows, rows, images, channels] with rows - k + 1 even.
        kernel: [k, k, channels, filters] of the same type.
        bias: [filters].

    Returns:
        [pooled rows, pooled rows, images, filters].
    """
    import tensorflow as tf

    rows, _, images, channels = x.shape
    size, filters = kernel.shape[0], kernel.shape[-1]
    edge = rows - size + 1
    # One image whose neighbouring columns lie `images` columns apart.
    options = {"strides": [1, 1, 1, 1], "padding": "VALID", "dilations": [1, 1, images, 1]}

    @tf.custom_gradient
    def convolve_relu_pool(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, Any]:
        wide = tf.reshape(x, [1, rows, rows * images, channels])
        convolved = tf.raw_ops.Conv2D(input=wide, filter=kernel, **options)
        activated = tf.nn.relu(tf.nn.bias_add(convolved, bias))
        result, pool_gradient = _max_pool(tf.reshape(activated, [1, edge, edge, images * filters]), [2, 2])

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            masked = _relu_gradient(upstream, result)
            of_convolved = tf.reshape(pool_gradient(masked), convolved.shape)
            of_kernel = tf.raw_ops.Conv2DBackpropFilter(
                input=wide, filter_sizes=kernel.shape, out_backprop=of_convolved, **options
            )
            of_wide = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=wide.shape, filter=kernel, out_backprop=of_convolved, **options
            )
            return tf.reshape(of_wide, x.shape), of_kernel, _sum_of_rows(tf.reshape(masked, [-1, filters]))

        return result, gradient

    return tf.reshape(convolve_relu_pool(x, kernel, bias), [edge // 2, edge // 2, images, filters])


def images_first(x: tf.Tensor) -> tf.Tensor:
    """Exchanges the first two axes of x [pixels, images, channels].

    As a gather of rows, which is several times faster than TensorFlow's transposition of 16-bit numbers.
    """
    import tensorflow as tf

    pixels, images, channels = x.shape
    order = np.arange(pixels * images, dtype=np.int32).reshape(pixels, images).T.reshape(-1)
    back = np.argsort(order).astype(np.int32)

    @tf.custom_gradient
    def reorder(rows: tf.Tensor) -> tuple[tf.Tensor, Any]:
        return tf.gather(rows, order), lambda upstream: tf.gather(upstream, back)

    return tf.reshape(reorder(tf.reshape(x, [pixels * images, channels])), [images, pixels, channels])


def _patch_rows(size: int, edge: int) -> np.ndarray:
    """Returns the pixel that each weight meets in each patch: int32 [(size**2 + 1) * edge**2 * 4].

    The four patches of a pooling window stand together. The last weight, the bias, always meets the pixel after the
    last one.
    """
    row, column, top, left, down, right = np.ix_(*[np.arange(n) for n in (size, size, edge, edge, 2, 2)])
    pixels = (row + 2 * top + down) * IMAGE_SIZE + column + 2 * left + right
    return np.append(pixels, np.full(4 * edge**2, IMAGE_SIZE**2)).astype(np.int32)


def _max_pool(x: tf.Tensor, window: list[int]) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """Pools windows that do not overlap; the gradient needs this very operation to be fast."""
    import tensorflow as tf

    options = {"ksize": [1, *window, 1], "strides": [1, *window, 1], "padding": "VALID"}
    pooled = tf.raw_ops.MaxPool(input=x, **options)

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        upstream = tf.reshape(upstream, pooled.shape)
        return tf.raw_ops.MaxPoolGrad(orig_input=x, orig_output=pooled, grad=upstream, **options)

    return pooled, gradient


def _relu_gradient(upstream: tf.Tensor, result: tf.Tensor) -> tf.Tensor:
    """Keeps the gradient where the result of ReLU is positive."""
    import tensorflow as tf

    upstream = tf.reshape(upstream, result.shape)
    # Faster in bfloat16 than TensorFlow's own gradient of ReLU, and than tf.where, which could broadcast.
    return tf.raw_ops.Select(condition=result > 0, x=upstream, y=tf.zeros_like(upstream))


def _sum_of_rows(x: tf.Tensor) -> tf.Tensor:
    """Sums x [rows, columns] to [columns]; a matrix product adds up in float32 whatever the type."""
    import tensorflow as tf

    return tf.reshape(tf.matmul(tf.ones([1, x.shape[0]], x.dtype), x), [-1])
