"""Classify blurred images without deblurring them.

`import bjax` costs nothing: a module below, and with it JAX, is imported where it is first named (`bjax.predict.load`).
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bjax import blur as blur
    from bjax import errors as errors
    from bjax import export as export
    from bjax import models as models
    from bjax import predict as predict
    from bjax import sharpness as sharpness
    from bjax import tokens as tokens
    from bjax import weights as weights

    __version__: str

__all__ = ["__version__", "blur", "errors", "export", "models", "predict", "sharpness", "tokens", "weights"]


def __getattr__(name: str):
    if name == "__version__":  # pyproject.toml has it
        return importlib.import_module("importlib.metadata").version("bjax")
    if name in __all__:
        return importlib.import_module(f"bjax.{name}")
    raise AttributeError(f"module 'bjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
