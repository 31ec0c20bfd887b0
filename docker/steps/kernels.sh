#!/usr/bin/env bash
# Compiles the kernels for CPUs beside their source in /steps/mnist_dist/network/cpu, for every level of this architecture.
set -euo pipefail

command -v g++ >/dev/null || {
    apt-get update
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends g++
    rm -rf /var/lib/apt/lists/*
}
cd /steps
/opt/venv/bin/python -c 'from mnist_dist.network.cpu import build; build.build_for_image()'
