"""`python -m benchmarks`, in a checkout, is `mnist-dist bench`."""

import sys

from mnist_dist.__main__ import run

if __name__ == "__main__":
    sys.argv.insert(1, "bench")
    run()
