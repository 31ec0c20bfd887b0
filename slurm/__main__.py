"""`python -m slurm`, in a checkout, is `mnist-dist slurm`."""

import sys

from mnist_dist.__main__ import run

if __name__ == "__main__":
    sys.argv.insert(1, "slurm")
    run()
