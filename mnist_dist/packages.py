"""Which packages are installed, as their metadata say: nothing is imported. Standard library only."""

from __future__ import annotations

import importlib.util
from importlib import metadata

TENSORFLOW = ("tensorflow", "tensorflow-cpu")  # The packages that most have it from; others are looked for.


def find_package(*names: str) -> tuple[str, str] | None:
    """Returns name and version of the first of some packages that is installed, or None.

    Args:
        names: the first is also that of the import, by which a package of yet another name is found, such as
            tf-nightly; that takes a second.
    """
    return next(iter(_found(names) or _found(_providers(names[0]))), None)


def _found(names: tuple[str, ...]) -> list[tuple[str, str]]:
    found = []
    for name in names:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        found.append((name, version or "unknown"))  # None where an installation was broken off.
    return found


def _providers(module: str) -> tuple[str, ...]:
    if importlib.util.find_spec(module) is None:
        return ()
    return tuple(metadata.packages_distributions().get(module, ()))
