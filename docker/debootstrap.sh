#!/usr/bin/env bash
# Makes a base image where none can be pulled: docker/debootstrap.sh SUITE IMAGE [MIRROR], as root; for instance
#   docker/debootstrap.sh bookworm localhost/debian:bookworm
# Needs buildah and debootstrap. The image has no Python; the Dockerfile installs the distribution's.
set -euo pipefail

(($# >= 2)) || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
root=$(mktemp --directory)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root" # It becomes the image's /, which every user has to read.
debootstrap --variant=minbase "$1" "$root" "${@:3}"
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/var/log/*.log
container=$(buildah from scratch)
buildah add --quiet "$container" "$root" / >/dev/null
buildah config --cmd bash "$container"
buildah commit --quiet --rm "$container" "$2"
