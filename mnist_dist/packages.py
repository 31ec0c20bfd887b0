"""Which packages are installed, as their metadata say: nothing is imported. Standard library only."""

import importlib.util
from importlib import metadata

TENSORFLOW = ("tensorflow", "tensorflow-cpu")  # The packages that most have it from; others are looked for.


def find_package(*names: str) -> tuple[str, str] | None:
    """Returns name and version of the first of some packages that is installed, or None.

    The first name is also that of the import, by which a package of yet another name is found, such as tf-nightly.
    """
    for name in names:
        try:
            return name, metadata.version(name) or "unknown"  # None where an installation was broken off.
        except metadata.PackageNotFoundError:
            continue
    if importlib.util.find_spec(names[0]) is None:
        return None
    others = metadata.packages_distributions().get(names[0])  # It reads the metadata of all, which takes a second.
    return (others[0], metadata.version(others[0])) if others else None
