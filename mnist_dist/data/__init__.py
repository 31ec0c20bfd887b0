"""What is learnt from: the embedded MNIST, arrays of the user's own, and the tf.data pipelines."""
