"""Decodes files ahead of their reader: a thread that empties a decode child into a queue counted in bytes."""

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
AT_ONCE = 2  # the file in hand and the next one


class Ahead:
    """Probes and decodes one file in the background; both answers may be asked for later, once each.

    Args:
        path: the file.
        limits, audio_track: as for `probe`.
        request: what to decode, given what the probe has found.
        queue_bytes: how far the decoder may run ahead.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        limits: Limits,
        audio_track: int | None,
        request: Callable[[MediaInfo], DecodeRequest],
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        self._path, self._request = path, request
        self._limits, self._audio_track = limits, audio_track
        self._limit = queue_bytes
        self._changed = threading.Condition()
        self._items: deque[Item] = deque()
        self._bytes = 0
        self._media: MediaInfo | None = None
        self._error: BaseException | None = None
        self._given_up = self._ended = False
        self._seen = (0.0, 0.0)  # seconds decoded, seconds in all
        self._child: DecodeChild | None = None
        self._thread: threading.Thread | None = None

    def start(self, child: DecodeChild, free: Callable[[DecodeChild], None] = lambda child: None) -> None:
        """Begins; until then whoever asks for an answer waits.

        Args:
            child: decodes this file and nothing else meanwhile; its process ends if the file is given up.
            free: told, in another thread, when the child may do something else.
        """
        self._child = child
        self._thread = threading.Thread(target=self._work, args=(child, free), daemon=True)
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
        """Ends the work, if it has begun and not ended, and waits until the child is free for another file."""
        with self._changed:
            self._given_up = True
            self._items.clear()
            self._changed.notify_all()
        while self._thread is not None and self._thread.is_alive():
            with self._changed:
                if not self._ended and self._child is not None:
                    self._child.kill()
            self._thread.join(0.05)

    def _work(self, child: DecodeChild, free: Callable[[DecodeChild], None]) -> None:
        try:
            media = child.probe(self._path, self._limits, self._audio_track)
            with self._changed:
                self._media = media
                self._changed.notify_all()
            for item in child.decode(self._path, self._request(media), self._note):
                if not self._put(item):
                    return
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True  # from here on the child is not this file's to kill
                self._changed.notify_all()
            free(child)

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
    """The decode children of whoever does one file after another: one at hand, and some for files begun ahead."""

    def __init__(self) -> None:
        self._child: DecodeChild | None = None
        self._forget: Callable[[], None] = lambda: None
        self._ahead: dict[Path, Ahead] = {}  # files begun before they are asked for
        self._waiting: deque[Ahead] = deque()  # those of them that have no child yet
        self._children: list[DecodeChild] = []  # for files begun ahead
        self._spare: list[DecodeChild] = []  # those of them that have nothing to do
        self._most = AT_ONCE
        self._lock = threading.Lock()

    def at_hand(self) -> DecodeChild:
        """A child for what is done now; it runs, or starts."""
        if self._child is None:
            self._child = DecodeChild()
            self._forget = interrupts.on_interrupt(self._child.close)  # waits, so that no child is left
            self._child.start()
        return self._child

    def prepare(self, processors: int = AT_ONCE) -> None:
        """Starts a child for the next file that is begun ahead; does not wait for it.

        Args:
            processors: more files than these are not decoded at once, since nothing is gained; nor more than AT_ONCE.
        """
        self._most = max(1, min(processors, AT_ONCE))
        with self._lock:
            self._spare.append(self._another())
            self._spare[-1].start()

    def begin(
        self,
        path: str | os.PathLike[str],
        limits: Limits,
        audio_track: int | None,
        request: Callable[[MediaInfo], DecodeRequest],
    ) -> None:
        """Begins to probe and decode a file in the background, as soon as a child is free, unless it is begun.

        Returns at once. Nothing of the file is touched by this process itself, so what crashes a decoder ends a child.

        Args:
            path, limits, audio_track, request: as for `Ahead`.
        """
        with self._lock:
            if Path(path) not in self._ahead:
                self._ahead[Path(path)] = ahead = Ahead(path, limits, audio_track, request)
                self._waiting.append(ahead)
                self._start_waiting()

    def take(self, path: str | os.PathLike[str]) -> Ahead | None:
        """What was begun for a file, for `give_back` in the end; None if nothing was.

        Whoever asks for a file waits for no other that nobody has asked for: it gets one more child if all are busy.
        """
        with self._lock:
            ahead = self._ahead.pop(Path(path), None)
            if ahead is not None and ahead in self._waiting:
                self._waiting.remove(ahead)
                ahead.start(self._another(), self._free)
        return ahead

    def give_back(self, ahead: Ahead | None) -> None:
        """Ends what was taken, if it has not ended; its child is free for another file."""
        if ahead is not None:
            ahead.give_up()

    def give_up(self, path: str | os.PathLike[str]) -> None:
        """Takes a `begin` back."""
        with self._lock:
            ahead = self._ahead.pop(Path(path), None)
            if ahead is not None and ahead in self._waiting:
                self._waiting.remove(ahead)
        self.give_back(ahead)

    def close(self) -> None:
        """Ends all children."""
        for path in list(self._ahead):
            self.give_up(path)
        while self._children:
            self._children.pop().close()
        self._spare.clear()
        if self._child is not None:
            self._child.close()
            self._forget()
            self._child = None

    def _free(self, child: DecodeChild) -> None:
        with self._lock:
            self._spare.append(child)
            self._start_waiting()

    def _start_waiting(self) -> None:
        """With the lock held: files that wait begin, in their order, as far as there are children."""
        while self._waiting and (self._spare or len(self._children) < self._most):
            self._waiting.popleft().start(self._spare.pop() if self._spare else self._another(), self._free)

    def _another(self) -> DecodeChild:
        self._children.append(DecodeChild())
        return self._children[-1]
