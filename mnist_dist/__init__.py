"""Distributed training and benchmarking of a CNN on MNIST with TensorFlow."""

__version__ = "1.0.0"
