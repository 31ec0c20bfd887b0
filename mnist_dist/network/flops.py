"""Floating-point operations of a training step, counted by hand."""

from mnist_dist.config import IMAGE_SIZE, ModelConfig

NUM_CLASSES = 10


def flops_per_image(config: ModelConfig, *, cropped: bool = False) -> int:
    """Counts what a training step takes for one image: two for each multiply-add of convolutions and dense layers.

    A layer multiplies three times: forward, for the gradient of its weights, and for that of its input, which the
    first layer does not need. Everything else is left out. All products count, also those with the zeros that pooling
    puts into gradients, which the fused form leaves out, except where tiles make it faster to compute them all.

    Args:
        cropped: leave out the rows and columns that pooling discards, where they are not computed.
    """
    forward = []
    edge, channels = IMAGE_SIZE, 1
    edges = []
    for size in config.kernel_sizes:
        edges.append(edge - size + 1)
        edge = edges[-1] // 2
    if cropped:  # From the last pooling back: what it takes, and so what the layer before must give.
        edges[1] = 2 * edge
        edges[0] = 2 * (edges[1] + config.kernel_sizes[1] - 1)
    for filters, size, out_edge in zip(config.filters, config.kernel_sizes, edges, strict=True):
        forward.append(2 * out_edge**2 * size**2 * channels * filters)
        channels = filters
    forward += [2 * edge**2 * channels * config.dense_units, 2 * config.dense_units * NUM_CLASSES]
    return 3 * sum(forward) - forward[0]
