#!/usr/bin/env bash
# Installs the named packages of the distribution, unless the base image has a Python that fits: 3.10 to 3.13.
set -euo pipefail

fits() {
    python3 -c 'import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'
}

fits 2>/dev/null && exit
apt-get update
DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$@"
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log
fits || { echo "python.sh: found $(python3 --version 2>&1), expected Python 3.10 to 3.13: choose another BASE_IMAGE" >&2; exit 2; }
