"""The same work, training a CNN on MNIST, as a user would otherwise do it; and goals for how we compare.

Each peer is a script of its own that is started in a fresh process, some in an environment of their own:

    python -m benchmarks.peers.NAME --data mnist.npz --mode throughput|accuracy --seconds S --seed N --out result.json
"""
