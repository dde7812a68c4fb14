"""Small pictures and a waveform for the formats that show them; a result is written without them if need be."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from avtool.cli import console
from avtool.errors import InputError

if TYPE_CHECKING:
    from avtool.session import Session
    from avtool.timeline import Preview, Timeline


def decoder(formats: Collection[str]) -> AbstractContextManager[Session | None]:
    """A session that decodes, where one of the formats needs it."""
    from avtool.formats import PICTURED

    if not PICTURED.keys() & set(formats):
        return nullcontext(None)
    from avtool.session import Session
    from avtool.settings import Settings

    return Session(Settings())


def of(timeline: Timeline, formats: Collection[str], session: Session | None) -> Preview | None:
    """The preview of a timeline's video; None where no format shows it or the video cannot be read, which is said."""
    from avtool.formats import PICTURED

    if session is None or not PICTURED.keys() & set(formats) or not timeline.media.path:
        return None
    try:
        return session.preview(timeline.media)
    except InputError as error:
        text = f"no pictures in {', '.join(sorted(PICTURED.keys() & set(formats)))}: {error.what}"
        console.current().warn(text, "no_preview", timeline.media.path)
        return None
