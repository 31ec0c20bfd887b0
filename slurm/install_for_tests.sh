#!/usr/bin/env bash
# Installs Slurm from Debian's packages, for the tests that start a cluster on this machine. Does nothing where Slurm
# is installed already, and says why where it cannot install it.
set -euo pipefail

for program in munged slurmctld slurmd sbatch srun; do
    PATH=$PATH:/usr/sbin command -v "$program" >/dev/null || missing=yes
done
if [[ -z ${missing-} ]]; then exit; fi
left_out="Slurm is not installed, so the tests that need it are left out"
if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "$left_out; install slurm-wlm and munge, or run this as root on Debian." >&2
    exit
fi
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null; }; then
    echo "$left_out; apt-get could not install it, see above." >&2
fi
