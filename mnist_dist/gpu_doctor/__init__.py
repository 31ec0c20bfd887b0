"""`mnist-dist doctor --gpu`: whether GPUs work, compute right and are as fast as they should be, as one file to send."""
