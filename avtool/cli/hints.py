"""Advice that is worth saying once: what was said is kept in the cache folder."""

from __future__ import annotations

from contextlib import suppress

from avtool.errors import OutputError
from avtool.files import write_atomic

BETTER_MODEL = "better-model.said"  # file in the cache folder that holds the advice as it was given


def once(text: str, stamp: str = BETTER_MODEL) -> str:
    """`text`, or "" where the same was said before.

    Where nothing can be kept, it is said each time.

    Args:
        text: one line of advice; "" for none.
        stamp: name of the file that remembers it.
    """
    if not text:
        return ""
    from avtool.weights import cache_dir  # brings NumPy, which `--help` does not need

    file = cache_dir() / stamp
    with suppress(OSError, ValueError):
        if file.read_text(encoding="utf-8") == text:
            return ""
    with suppress(OutputError):
        write_atomic(file, text)
    return text
