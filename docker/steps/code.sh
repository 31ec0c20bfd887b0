#!/usr/bin/env bash
# Prepares the package in /opt/mnist_dist, and below /code what lets the environment in /opt/venv find it there.
set -euo pipefail

cd /opt/mnist_dist
# As in a checkout, since Apptainer copies what a link leads to.
for name in benchmarks slurm; do
    rm -rf "mnist_dist/$name"
    ln -s "../$name" "mnist_dist/$name"
done
/opt/venv/bin/python -m pip install --no-compile --no-deps --no-index --no-build-isolation --prefix /code --editable .
chmod -R a=rX,u+w . # Whatever the umask was with which the files were checked out.
/opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash . /code
