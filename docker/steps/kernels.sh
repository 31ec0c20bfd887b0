#!/usr/bin/env bash
# Compiles the kernels for CPUs beside their source in /opt/mnist_dist, for every level of this architecture.
set -euo pipefail

command -v g++ >/dev/null || {
    apt-get update
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends g++
    rm -rf /var/lib/apt/lists/*
}
cd /opt/mnist_dist
/opt/venv/bin/python -c 'from mnist_dist import kernel_build; kernel_build.build_for_image()'
