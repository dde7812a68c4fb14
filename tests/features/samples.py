"""Features made by hand, for the tests of what reads them."""

from __future__ import annotations

from typing import Any

import numpy as np

from avtool.features.store import Features
from avtool.timeline import MediaInfo


def features(rows: int, **parts: Any) -> Features:
    """Features of `rows` half-second segments, all seen and heard, with nothing in them but `parts`."""
    starts = np.arange(rows) / 2
    seconds = rows / 2
    whole: dict[str, Any] = {
        "visual": None,
        "audio": None,
        "visual_tags": None,
        "audio_tags": None,
        "seen": np.ones(rows, bool),
        "heard": np.ones(rows, bool),
        "times": np.stack([starts, starts + 0.5], 1),
        "visual_encoder": "fake",
        "audio_encoder": "fake",
        "weights": {},
        "scaling": "",
        "media": MediaInfo("x.mp4", 1, 0, True, True, seconds, None, None, None, seconds),
    }
    return Features(**{**whole, **parts})
