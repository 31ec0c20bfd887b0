#!/usr/bin/env bash
# Takes out of /opt/venv what only building needs, and compiles the rest, which a read-only container cannot.
set -euo pipefail

site=$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
rm -rf "$site"/tensorflow/include   # C++ headers: nothing is compiled against this TensorFlow any more.
rm -rf "$site"/clang/native         # libclang: TensorFlow requires it and never imports it.
find "$site"/tensorflow "$site"/horovod -name '*.so*' -type f -exec strip --strip-unneeded {} +
/opt/venv/bin/python -m pip uninstall --quiet --yes pip wheel
find /opt/venv -name __pycache__ -prune -exec rm -rf {} +
# By unchecked hash: the same bytes at each build, and no look at the source when it is imported.
/opt/venv/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash "$site"
