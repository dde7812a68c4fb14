"""Decides which packets must be decoded so that exactly the wanted pictures come out.

Two rules (both leave every wanted picture bit-identical): pictures that nothing refers to are decoded only if they are
wanted themselves, and a group of pictures is decoded up to its last wanted packet, or not at all. A group starts with
a key frame. In open groups pictures shown before the key frame refer to the group before; if one of them is wanted, the
group before is decoded to its end and the decoder is not flushed between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

from av.packet import Packet

GROUP_BYTES = 48 << 20  # a group that grows beyond this is not waited for
GROUP_PACKETS = 3000

# Decoders whose packets are pictures with flags and times to rely on.
CODECS = {
    "h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "vp8", "vp9", "libdav1d", "mjpeg", "prores", "dnxhd", "ffv1",
    "rawvideo", "huffyuv", "ffvhuff", "utvideo", "v210", "dvvideo", "png",
}  # fmt: skip
# Decoders that obey the first rule picture by picture; libdav1d reads it once, when it is opened.
BY_PICTURE = {"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "vp8", "vp9"}


class SkipFailed(Exception):
    """The stream is not regular enough to skip anything; decode it in full from the start."""


@dataclass(frozen=True)
class Feed:
    """Decode this packet; `wanted` tells whether its picture must come out."""

    packet: Packet[Any]
    wanted: bool


@dataclass(frozen=True)
class Drain:
    """Take out what the decoder still holds and reset it: what follows does not refer to what came before."""


Step = Feed | Drain
Wanted = Callable[[int, int | None], bool]  # (pts of a picture, pts of the next or None for the last) -> is it wanted
Regular = Callable[[int | None, int], bool]  # (pts of the picture before or None, pts) -> do the times go on in order


class Planner:
    """Takes video packets in decoding order and gives the steps to decode what is wanted."""

    def __init__(self, wanted: Wanted, regular: Regular) -> None:
        self._wanted = wanted
        self._regular = regular
        self._last: int | None = None  # pts of the last picture shown in the groups seen
        self._before: Group | None = None  # complete, waiting for what follows
        self._group: Group | None = None  # being collected
        self._continuous = True  # the decoder has seen every reference picture before `_before`
        self._given_up = False  # a group too long to wait for: from here on everything is decoded

    def push(self, packet: Packet[Any]) -> Iterator[Step]:
        """Steps that are certain after one more packet.

        Raises:
            SkipFailed: a packet without a timestamp, or timestamps that repeat, jump, or run backwards between groups.
        """
        if self._given_up:
            yield Feed(packet, True)
            return
        if packet.pts is None:
            raise SkipFailed("a packet has no timestamp")
        if packet.is_keyframe and self._group is not None:
            yield from self._close_group()
        if self._group is None:
            self._group = Group()
        self._group.add(packet)
        if self._group.bytes > GROUP_BYTES or len(self._group.packets) > GROUP_PACKETS:
            yield from self._give_up()

    def finish(self) -> Iterator[Step]:
        """The steps that are left at the end of the stream."""
        if self._group is not None:
            yield from self._close_group()
        if self._before is not None:
            yield from self._steps(self._before, self._before.wanted(self._wanted, None), to_end=False)
            self._before = None

    def _close_group(self) -> Iterator[Step]:
        """Decides the group before, now that the one that follows it is complete."""
        assert self._group is not None
        before, after, self._group = self._before, self._group, None
        self._check(after)
        self._before = after
        if before is None:
            return
        wanted = before.wanted(self._wanted, after.shown[0] if after.shown else None)
        yield from self._steps(before, wanted, to_end=after.needs_before(self._wanted))

    def _steps(self, group: Group, wanted: set[int], to_end: bool) -> Iterator[Step]:
        """Decodes `group` as far as its last wanted packet, or to the end."""
        packets = group.packets
        last = len(packets) if to_end else 1 + max((i for i, p in enumerate(packets) if p.pts in wanted), default=-1)
        leading = group.key if not self._continuous else None  # what is shown before the key frame cannot be decoded
        if last == 0:
            if self._continuous:
                yield Drain()
            self._continuous = False
            return
        for packet in packets[:last]:
            if leading is None or packet.pts is None or packet.pts >= leading:
                yield Feed(packet, packet.pts in wanted)
        self._continuous = last == len(packets)
        if not self._continuous:
            yield Drain()

    def _check(self, group: Group) -> None:
        """Sorts a group's timestamps, and refuses those that repeat, run backwards or jump."""
        group.shown.sort()
        for pts in group.shown:
            if (self._last is not None and pts <= self._last) or not self._regular(self._last, pts):
                raise SkipFailed(f"timestamp {pts} follows {self._last}")
            self._last = pts

    def _give_up(self) -> Iterator[Step]:
        assert self._group is not None
        group, self._group, self._given_up = self._group, None, True
        self._check(group)
        if self._before is not None:
            wanted = self._before.wanted(self._wanted, group.shown[0] if group.shown else None)
            yield from self._steps(self._before, wanted, to_end=True)
            self._before = None
        leading = None if self._continuous else group.key
        for packet in group.packets:
            if leading is None or packet.pts is None or packet.pts >= leading:
                yield Feed(packet, True)


class Group:
    """Packets from one key frame up to the next, in decoding order."""

    def __init__(self) -> None:
        self.packets: list[Packet[Any]] = []
        self.bytes = 0
        self.shown: list[int] = []  # pts of the pictures on screen, sorted once the group is complete

    @property
    def key(self) -> int | None:
        return self.packets[0].pts

    def add(self, packet: Packet[Any]) -> None:
        self.packets.append(packet)
        self.bytes += packet.size
        if not packet.is_discard and packet.pts is not None:  # discarded ones are decoded but never shown
            self.shown.append(packet.pts)

    def wanted(self, wanted: Wanted, after: int | None) -> set[int]:
        """The pts that are wanted, `after` being the first of the next group."""
        following = [*self.shown[1:], after]
        return {pts for pts, following_pts in zip(self.shown, following, strict=False) if wanted(pts, following_pts)}

    def needs_before(self, wanted: Wanted) -> bool:
        """Whether a picture shown before the key frame is wanted."""
        early = [pts for pts in self.shown if self.key is not None and pts <= self.key]
        return any(wanted(pts, following) for pts, following in pairwise(early))


def rows_between(scale: Fraction, shift: Fraction, first: int, stop: int | None) -> Wanted:
    """The test whether a picture is on screen at the centre of a row in [first, stop).

    Args:
        scale: rows per tick of the timestamps.
        shift: rows from the raw timestamp 0 to the centre of row 0, so that row = ceil(pts * scale - shift).
    """
    a, b = scale.numerator * shift.denominator, shift.numerator * scale.denominator
    d = scale.denominator * shift.denominator

    def wanted(pts: int, following: int | None) -> bool:
        row = max(first, -((b - pts * a) // d))  # first row whose centre is not before this picture
        if stop is not None and row >= stop:
            return False
        return following is None or row < -((b - following * a) // d)

    return wanted
