"""Facial expression recognition from noisy labels: DR-FER, its parts, and what they are compared with.

    import ferlab
    splits = ferlab.benchmarks.load("rendered")             # faces with given labels, truth and votes
    recogniser = ferlab.load_pretrained("runs/my_first")    # a run that ``ferlab train`` made
    recogniser.predict(splits.test.images)                  # [N, C] probabilities

Modules are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "Config": "config", "FaceSet": "data", "FerlabError": "errors", "Recogniser": "recogniser", "Splits": "data",
    "load_pretrained": "recogniser",
}
_MODULES = tuple(module.name for module in iter_modules(__path__))

__all__ = ["__version__", *_NAMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(f"ferlab.{_NAMES[name]}"), name)
    if name in _MODULES:
        return import_module(f"ferlab.{name}")
    raise AttributeError(f"module 'ferlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
