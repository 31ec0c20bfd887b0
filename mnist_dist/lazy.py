"""Modules that take seconds to import, as TensorFlow does: imported when something of them is first used."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

# Keras imports these where they are installed, for plots and tables that no command of this project asks it for: half a
# second of each process. Commands name them here; in a user's own program, Keras finds all that it looks for.
UNUSED_BY_COMMANDS = ("matplotlib", "pandas", "IPython")
hidden_from_keras: set[str] = set()


class Lazy:
    """Stands for a module; a type checker is shown the module itself."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)


if TYPE_CHECKING:
    import keras
    import scipy
    import tensorflow as tf
    from PIL import Image
    from scipy import ndimage
else:
    keras, scipy, tf, Image, ndimage = map(Lazy, ("keras", "scipy", "tensorflow", "PIL.Image", "scipy.ndimage"))

__all__ = ["UNUSED_BY_COMMANDS", "Image", "Lazy", "hidden", "hidden_from_keras", "keras", "ndimage", "scipy", "tf"]


@contextlib.contextmanager
def hidden(names: set[str]) -> Iterator[None]:
    """Makes modules look as if they were not installed, but for those that are imported already."""
    absent = names - sys.modules.keys()
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None there stops an import.
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
