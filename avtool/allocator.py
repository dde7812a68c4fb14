"""Memory that is freed and asked for again: a network does that for every layer of every batch.

The C library of Linux gives large blocks back to the system at once, and the next layer pays for fresh, zeroed pages: a
sixth of the time of the small encoders. Elsewhere nothing here has an effect.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

KEPT_BYTES = 1 << 28  # free memory that is not given back, at most
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


def variables() -> dict[str, str]:
    """For the environment of a process that is started."""
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    return {**dict.fromkeys(names, str(KEPT_BYTES)), "MALLOC_ARENA_MAX": "2"}


def keep_memory() -> None:
    """The thresholds for this process, whose arenas are there already. Never called on import: it may not be ours."""
    with suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            libc.mallopt(option, KEPT_BYTES)
