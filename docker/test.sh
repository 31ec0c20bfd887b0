#!/usr/bin/env bash
# Runs the quick suite in the built image, as any user on a read-only file system, and checks it: docker/test.sh cpu|gpu
set -euo pipefail
cd "$(dirname "$0")/.."
source docker/engine.sh

image=mnist-dist:${1-}
results=$PWD/runs/image-test-$(date +%Y%m%d-%H%M%S)
mkdir -p "$results"
user=$(id -u):$(id -g)
if [[ $user = 0:0 ]]; then
    user=12345:23456
    chown "$user" "$results"
fi

case $ENGINE in
    docker) options=() ;;
    podman)
        # Else Podman makes /tmp and others writable, and a rootless one gives the files to another user.
        options=(--read-only-tmpfs=false --security-opt label=disable)
        [[ $(id -u) = 0 ]] || options+=(--userns keep-id)
        ;;
    buildah)
        container=$(buildah from "$image")
        trap 'buildah rm "$container" >/dev/null' EXIT
        ;;
esac
if [[ ${1-} = gpu ]]; then
    options+=(--ulimit memlock=-1)
    [[ $ENGINE = docker ]] && options+=(--gpus all)
    [[ $ENGINE = podman ]] && options+=(--device nvidia.com/gpu=all)
fi

# Buildah has no --read-only: there, ownership keeps the user from writing, which is checked at the end.
in_image() {
    if [[ $ENGINE = buildah ]]; then
        buildah run --user "$user" --volume "$results:/results" "$container" -- /opt/mnist_dist/docker/entrypoint.sh "$@"
    else
        "$ENGINE" run --rm --read-only --network none --shm-size 1g --cap-drop ALL --security-opt no-new-privileges \
            --user "$user" --volume "$results:/results" "${options[@]}" "$image" "$@"
    fi
}

touch "$results/start"
in_image mnist-dist doctor
in_image bench quick --results /results/quick
in_image report /results/quick >/dev/null
python3 docker/check_report.py "$results/quick"
if [[ $ENGINE = buildah ]]; then
    root=$(buildah mount "$container")
    changed=$(find "$root" -xdev -newer "$results/start" -type f ! -path "$root/tmp/*")
    [[ -z $changed ]] || { echo "image-test: files were written outside /results and /tmp: $changed" >&2; exit 1; }
elif in_image touch /opt/mnist_dist/x 2>/dev/null; then
    echo "image-test: the file system of the container can be written" >&2
    exit 1
fi
echo "image-test: $image ran the quick suite as user $user; report: $results/quick/report.html"
