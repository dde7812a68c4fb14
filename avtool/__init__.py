"""avtool says what happens in a video that can be both heard and seen, and when.

The public names load what they need on first use, so importing the package costs nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing takes longer than everything else on the way to the interrupt handlers
if TYPE_CHECKING:
    from typing import Any

    from avtool.pipeline import extract_features, localize
    from avtool.settings import Settings
    from avtool.timeline import Event, Timeline

__version__ = "0.1.0"
__all__ = ["Event", "Settings", "Timeline", "__version__", "extract_features", "localize"]

_HOMES = {
    "Event": ("avtool.timeline", "Event"),
    "Settings": ("avtool.settings", "Settings"),
    "Timeline": ("avtool.timeline", "Timeline"),
    "extract_features": ("avtool.pipeline", "extract_features"),
    "localize": ("avtool.pipeline", "localize"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'avtool' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _HOMES[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
