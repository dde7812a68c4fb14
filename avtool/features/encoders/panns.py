"""Imports the network classes of panns-inference without what that package does when it is imported.

`import panns_inference` runs wget, writes into the home directory, and pulls matplotlib, librosa and numba. Only its
module `models` is imported here, under a bare package; what that module imports besides torch has stand-ins, whose
spectrogram passes through the log-mels that avtool makes itself. Afterwards `sys.modules` is as it was.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

from torch import nn

from avtool.errors import WeightsError

_PACKAGE = "panns_inference"
_LOCK = threading.Lock()


class _Through(nn.Identity):
    """In place of torchlibrosa's layers: gives back what it is given."""


def _module(name: str, **names: Any) -> ModuleType:
    module = ModuleType(name)
    module.__path__ = []
    vars(module).update(names)
    return module


def _stand_ins(path: list[str]) -> dict[str, ModuleType]:
    package = _module(_PACKAGE)
    package.__path__ = path
    return {
        _PACKAGE: package,
        "matplotlib": _module("matplotlib"),
        "matplotlib.pyplot": _module("matplotlib.pyplot"),
        "torchlibrosa": _module("torchlibrosa"),
        "torchlibrosa.stft": _module("torchlibrosa.stft", Spectrogram=_Through, LogmelFilterBank=_Through),
        "torchlibrosa.augmentation": _module("torchlibrosa.augmentation", SpecAugmentation=_Through),
    }


@contextmanager
def _replaced(stand_ins: dict[str, ModuleType]) -> Iterator[None]:
    """Puts modules in place of others, and everything back as it was."""
    families = {name.partition(".")[0] for name in stand_ins}
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in families}
    for name in before:
        del sys.modules[name]
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in [n for n in sys.modules if n.partition(".")[0] in families]:
            del sys.modules[name]
        sys.modules.update(before)


@cache
def models() -> Any:
    """The module `panns_inference.models`; its networks take log-mels (B, 1, T, bands) in place of waveforms.

    Raises:
        WeightsError: panns-inference is not installed.
    """
    with _LOCK:
        spec = PathFinder.find_spec(_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise WeightsError(
                "panns-inference is not installed", "cnn14 is its network", "pip install panns-inference"
            )
        with _replaced(_stand_ins(list(spec.submodule_search_locations))):
            return import_module(f"{_PACKAGE}.models")
