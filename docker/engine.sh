# shellcheck shell=bash
# Which container engine there is; sourced. ENGINE names one, else the first that works of docker, podman and buildah.

works() {
    case $1 in
        docker | podman | buildah) "$1" info >/dev/null 2>&1 ;;
        *) false ;;
    esac
}

if [[ ${ENGINE-} ]]; then
    works "$ENGINE" || { echo "ENGINE: received '$ENGINE', expected docker, podman or buildah, installed and running" >&2; exit 2; }
else
    for ENGINE in docker podman buildah none; do works "$ENGINE" && break; done
    if [[ $ENGINE = none ]]; then
        echo "make: found no working docker, podman or buildah; install one (apt-get install buildah)" >&2
        exit 2
    fi
fi
