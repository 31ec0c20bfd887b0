#!/bin/sh
# Entry point of the image: train, bench, report, or any command; see docker/README.md.
set -eu

# Any user may run this, on a read-only file system: what programs write beside the results goes to /tmp where that
# can be written, else below the working folder, which is where the results are mounted. For a user without account
# Docker says that / is home, Podman the working folder.
TMPDIR=${TMPDIR:-/tmp}
if [ ! -w "$TMPDIR" ] && [ -w . ]; then
    TMPDIR=$PWD/.cache/tmp
    mkdir -p "$TMPDIR"
fi
HOME=${HOME:-/}
if [ "$HOME" = / ] || [ "$HOME" = "$PWD" ] || [ ! -w "$HOME" ]; then
    # The same each time, for what is cached there, and since a TMPDIR of the host keeps it; but nobody else's.
    HOME=$TMPDIR/home-$(id -u)
    mkdir -m 700 "$HOME" 2>/dev/null || { [ -O "$HOME" ] && [ ! -L "$HOME" ]; } || HOME=/
    # What the driver compiles of TensorFlow's kernels, for GPUs such as the H100, outlives this container.
    if [ "${NVIDIA_VISIBLE_DEVICES-}" ] && [ ! "${CUDA_CACHE_PATH-}" ] && [ -w . ]; then
        export CUDA_CACHE_PATH="$PWD/.cache/cuda"
        mkdir -p "$CUDA_CACHE_PATH"
    fi
fi
export HOME TMPDIR

case "${1:-help}" in
train | bench | report)
    if [ ! -w . ]; then
        echo "entrypoint: user $(id -u) cannot write to $PWD; mount a folder of that user there: --user \$(id -u):\$(id -g) --volume \$PWD/results:$PWD" >&2
        exit 2
    fi
    if [ "$PWD" = /results ] && ! grep -q ' /results ' /proc/self/mountinfo; then
        echo "entrypoint: no folder is mounted at /results; the results will go with this container" >&2
    fi
    ;;
esac

case "${1:-help}" in
train) exec mnist-dist "$@" ;;
bench) shift && exec mnist-dist bench run "$@" ;;
report) exec mnist-dist bench "$@" ;;
help)
    cat <<'USAGE'
train [FLAG...]             train the CNN on MNIST; see `train --help`
bench SUITE --results DIR   run a benchmark suite, for instance `quick`; see `bench --help`
report DIR                  render the report of a suite's results; see `report --help`
COMMAND [ARGUMENT...]       anything else, for instance `mnist-dist doctor` or `bash`
Relative folders are below /results: mount one of yours there.
USAGE
    ;;
*) exec "$@" ;;
esac
