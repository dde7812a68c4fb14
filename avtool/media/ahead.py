"""Decodes files ahead of their reader: a decode child for each, a thread that empties it, a queue counted in bytes."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from avtool import interrupts
from avtool.media.child import DecodeChild
from avtool.media.request import DecodeReport, DecodeRequest, Item, Limits, Picture, Progress
from avtool.timeline import MediaInfo

QUEUE_BYTES = 64 << 20  # decoded and not taken yet; about 200 pictures of 256 x 448, or a minute of 1080p at 1/s
ITEM_BYTES = 256  # what an item costs besides its samples


class Ahead:
    """Probes and decodes one file in the background; both answers may be asked for later, once each.

    Args:
        child: decodes this file and nothing else meanwhile; it ends if the file is given up.
        path: the file.
        limits, audio_track: as for `probe`.
        request: what to decode, given what the probe has found.
        queue_bytes: how far the decoder may run ahead.
    """

    def __init__(
        self,
        child: DecodeChild,
        path: str | os.PathLike[str],
        limits: Limits,
        audio_track: int | None,
        request: Callable[[MediaInfo], DecodeRequest],
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        self.child, self._path, self._request = child, path, request
        self._limits, self._audio_track = limits, audio_track
        self._limit = queue_bytes
        self._changed = threading.Condition()
        self._items: deque[Item] = deque()
        self._bytes = 0
        self._media: MediaInfo | None = None
        self._error: BaseException | None = None
        self._given_up = self._ended = False
        self._seen = (0.0, 0.0)  # seconds decoded, seconds in all
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def media(self) -> MediaInfo:
        """What is in the file.

        Raises:
            InputError: as `DecodeChild.probe`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._media is not None or self._error is not None)
        if self._media is None:
            assert self._error is not None
            raise self._error
        return self._media

    def items(self, on_progress: Progress | None = None) -> Iterator[Item]:
        """The decoded items, the report last; leaving early gives the file up.

        Raises:
            InputError, UsageError: as `DecodeChild.decode`.
        """
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._items or self._ended)
                    if not self._items:
                        break
                    item = self._items.popleft()
                    self._bytes -= _size(item)
                    self._changed.notify_all()
                    done, total = self._seen
                if on_progress is not None and total > 0:
                    on_progress("decode", done, total)
                yield item
                if isinstance(item, DecodeReport):
                    return
            if self._error is not None:
                raise self._error
        finally:
            self.give_up()

    def give_up(self) -> None:
        """Ends the work, if it has not ended, and waits until the child is free for another file."""
        with self._changed:
            self._given_up = True
            self._items.clear()
            self._changed.notify_all()
        while self._thread.is_alive():
            if not self._ended:
                self.child.kill()
            self._thread.join(0.05)

    def _work(self) -> None:
        try:
            media = self.child.probe(self._path, self._limits, self._audio_track)
            with self._changed:
                self._media = media
                self._changed.notify_all()
            for item in self.child.decode(self._path, self._request(media), self._note):
                if not self._put(item):
                    return
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _note(self, stage: str, done: float, total: float) -> None:
        self._seen = (done, total)

    def _put(self, item: Item) -> bool:
        """Waits for room; False if nobody wants the file any more."""
        size = _size(item)
        with self._changed:
            self._changed.wait_for(lambda: self._given_up or self._bytes + size <= self._limit or not self._items)
            if self._given_up:
                return False
            self._items.append(item)
            self._bytes += size
            self._changed.notify_all()
        return True


def _size(item: Item) -> int:
    if isinstance(item, DecodeReport):
        return ITEM_BYTES
    return ITEM_BYTES + (item.pixels.nbytes if isinstance(item, Picture) else item.samples.nbytes)


class Decoders:
    """The decode children of whoever does one file after another: one at hand, and one for each file begun ahead."""

    def __init__(self) -> None:
        self._child: DecodeChild | None = None
        self._forget: Callable[[], None] = lambda: None
        self._ahead: dict[Path, Ahead] = {}  # files under way before they are asked for
        self._spare: list[DecodeChild] = []  # children that have nothing to do
        self._lock = threading.Lock()

    def at_hand(self) -> DecodeChild:
        """A child for what is done now; it runs, or starts."""
        if self._child is None:
            self._child = DecodeChild()
            self._forget = interrupts.on_interrupt(self._child.close)  # waits, so that no child is left
            self._child.start()
        return self._child

    def prepare(self) -> None:
        """Starts a child for the next file that is begun ahead; does not wait for it."""
        self._spare.append(DecodeChild())
        self._spare[-1].start()

    def begin(
        self,
        path: str | os.PathLike[str],
        limits: Limits,
        audio_track: int | None,
        request: Callable[[MediaInfo], DecodeRequest],
    ) -> None:
        """Begins to probe and decode a file in the background, unless it is begun; returns at once.

        Nothing of the file is touched by this process itself, so what crashes a decoder ends a child.

        Args:
            path, limits, audio_track, request: as for `Ahead`.
        """
        with self._lock:
            if Path(path) not in self._ahead:
                child = self._spare.pop() if self._spare else DecodeChild()
                self._ahead[Path(path)] = Ahead(child, path, limits, audio_track, request)

    def take(self, path: str | os.PathLike[str]) -> Ahead | None:
        """What was begun for a file, for `give_back` in the end; None if nothing was."""
        return self._ahead.pop(Path(path), None)

    def give_back(self, ahead: Ahead | None) -> None:
        """Ends what was begun, if it has not ended; its child is free for another file."""
        if ahead is not None:
            ahead.give_up()
            self._spare.append(ahead.child)

    def close(self) -> None:
        """Ends all children."""
        for path in list(self._ahead):
            self.give_back(self.take(path))
        while self._spare:
            self._spare.pop().close()
        if self._child is not None:
            self._child.close()
            self._forget()
            self._child = None
