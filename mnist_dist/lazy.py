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
    import tensorflow as tf
else:
    keras, tf = Lazy("keras"), Lazy("tensorflow")

__all__ = ["Lazy", "keras", "tf"]
