"""Distributed training and benchmarking of a CNN on MNIST with TensorFlow."""

__version__ = "0.1.0"
