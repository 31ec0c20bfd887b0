"""`mnist-dist doctor --gpu`: whether GPUs work, compute right, and fast enough, in one file to send."""
