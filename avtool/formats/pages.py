"""What every page avtool writes has in common: filled templates, data that cannot end its element, a strict policy."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

_SLOT = re.compile(r"<!--(\w+)-->")
_UNSAFE = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


@cache
def asset(name: str) -> str:
    """A template, style sheet or script beside this module."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def fill(template: str, parts: Mapping[str, str]) -> str:
    """Puts HTML into the slots (`<!--name-->`) of a template, once: what is put in is not searched for slots.

    Raises:
        KeyError: a slot has no part.
    """
    return _SLOT.sub(lambda slot: parts[slot[1]], template)


def text(value: object) -> str:
    """Any text as HTML content or attribute value; control signs and lone surrogates are left out."""
    kept = (sign for sign in str(value) if sign in "\t\n" or not (sign < " " or "\x7f" <= sign < "\xa0"))
    return escape("".join(sign for sign in kept if not "\ud800" <= sign <= "\udfff"))


def embedded(data: Mapping[str, Any]) -> str:
    """JSON for a `<script type="application/json">`: ASCII, and without any sign that means something to HTML."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).translate(_UNSAFE)


def policy(style: str, script: str) -> str:
    """A Content-Security-Policy: nothing runs but this script, nothing is fetched but media of the user."""
    return (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; media-src 'self' file: blob:; "
        f"style-src {_source(style)}; script-src {_source(script)}"
    )


def _source(code: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"
