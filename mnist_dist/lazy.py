"""Modules that take seconds to import, as TensorFlow does: imported when something of them is first used."""

import importlib
from typing import TYPE_CHECKING, Any


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

__all__ = ["Image", "Lazy", "keras", "ndimage", "scipy", "tf"]
