#!/usr/bin/env bash
# Builds Horovod for the environment in /opt/venv, installs it there and proves it with two ranks.
set -euo pipefail

apt-get update
DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends cmake g++ make
rm -rf /var/lib/apt/lists/*
export PIP_CONSTRAINT=/steps/constraints.txt
cd /steps
/opt/venv/bin/python -c '
from pathlib import Path
from mnist_dist.distributed import horovod_build
horovod_build.install(wheel_dir=Path("/wheels"))
' || { tail --lines 100 /wheels/*/*.log; exit 1; }
