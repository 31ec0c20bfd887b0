#!/usr/bin/env bash
# Installs what the package needs, at the versions of constraints.txt, into a new environment in /opt/venv.
set -euo pipefail

python3 -m venv /opt/venv
/opt/venv/bin/python -m pip install --no-compile --constraint /steps/constraints.txt --requirement /steps/requirements.txt
