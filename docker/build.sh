#!/usr/bin/env bash
# Builds the image mnist-dist:cpu or mnist-dist:gpu: docker/build.sh cpu|gpu [OPTION OF THE ENGINE'S BUILD...]
set -euo pipefail
cd "$(dirname "$0")/.."
source docker/engine.sh

variant=${1-}
shift || true
options=(--build-arg "VERSION=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' mnist_dist/__init__.py)")
options+=(--build-arg "CREATED=$(date --utc +%Y-%m-%dT%H:%M:%SZ)")
if commit=$(git rev-parse HEAD 2>/dev/null); then
    options+=(--build-arg "REVISION=$commit$(git diff --quiet HEAD || echo -dirty)")
fi
case $variant in
    cpu) ;;
    gpu) while read -r argument; do options+=(--build-arg "$argument"); done <docker/gpu.args ;;
    *) echo "docker/build.sh: received '$variant', expected cpu or gpu" >&2; exit 2 ;;
esac
# Docker's image format, because that of OCI cannot hold the SHELL instruction.
[[ $ENGINE = docker ]] || options+=(--format docker)
# The cache that the others always have; with vfs each of its layers would be a copy of the whole file system.
[[ $ENGINE = buildah && ${STORAGE_DRIVER-} != vfs ]] && options+=(--layers)
export DOCKER_BUILDKIT=1 # Docker before version 23 takes its old builder, which does not know --mount.
exec "$ENGINE" build --file docker/Dockerfile --tag "mnist-dist:$variant" "${options[@]}" "$@" .
