"""Timelines made by hand, hostile texts, and stand-ins for what is slow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from avtool.timeline import AudioInfo, Event, MediaInfo, RunInfo, Timeline, VideoInfo

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>",
    '=HYPERLINK("http://x","y")',
    "+1",
    "-1+1",
    "@SUM(A1)",
    "\tx",
    "\rx",
    "a --> b",
    "blank\n\nline",
    "2\n00:00:00,000 --> 99:00:00,000",
    "{\\an8}<font>",
    "\x1b[31m",
    "\u202egnp",
    "\x00\x7f\x9b",
    "\udcff lone",
    "../../x",
    "C:\\x",
    "CON",
    "\u2028\u2029",
    "🎺 émoji",
    "x" * 1_000_000,
]


def make_timeline(path: str = "street.mp4", **changes: Any) -> Timeline:
    """A small timeline with one event and two candidates."""
    media = MediaInfo(
        path=path,
        bytes=48211034,
        mtime_ns=1763690000000000001,
        has_audio=True,
        has_video=True,
        duration=123.46,
        declared_duration=123.5,
        video=VideoInfo("h264", 1280, 720, "30000/1001", False),
        audio=AudioInfo("aac", 48000, 2),
        analysed_until=123.46,
    )
    run = RunInfo(
        tool="avtool 0.1.0",
        model="loco-mini",
        weights={"loco-mini": "ab"},
        settings={"min_score": 0.3},
        device="cpu",
        fingerprint="cd",
        details="encoders",
        encoders={"visual": "mini"},
    )
    events = (Event(12.34, 15.02, "dog bark", 0.91),)
    return replace(Timeline(media, events, (*events, Event(1.0, 2.0, "x", 0.06)), run), **changes)


CLASSES = ("flash", "tone", "flash and tone")


class FakeLocalizer:
    """Finds bright pictures, loud sound, and both at once; knows nothing else and needs no weights."""

    def __init__(self) -> None:
        from avtool.models.zoo import ModelInfo
        from avtool.vocabulary import Vocabulary

        self.info = ModelInfo(
            name="fake",
            kind="tags",
            vocabulary=Vocabulary(CLASSES, ("default", "default", "experimental"), (0.5, 0.5, 0.5)),
            visual=("fake",),
            audio=("fake",),
            weights={"fake.safetensors": "0" * 64},
            settings={"sigma": 0.4, "nms": "gaussian"},
            commercial="yes",
            summary="a stand-in",
            details="nothing",
        )

    def run(self, features: Any, start: int, stop: int) -> Any:
        """Scores of rows [start, stop)."""
        import numpy as np

        from avtool.models.zoo import WindowOutput

        part = features.part(start, stop)
        bright, loud = part.visual[:, 0] * part.seen, part.audio[:, 0] * part.heard
        none = np.zeros_like(bright)
        both = np.minimum(bright, loud)
        return WindowOutput(
            start,
            stop,
            np.stack([bright, loud, both], 1),
            np.stack([none, loud, loud], 1),
            np.stack([bright, none, bright], 1),
        )


def fake_encoder(modality: str) -> Any:
    """Mean brightness of pictures, or loudness of sound."""
    from avtool.features.encoders.catalog import Encoder
    from avtool.media.request import PictureSpec

    if modality == "visual":

        def see(pictures: Any) -> Any:
            mean = pictures.float().mean((1, 2, 3)) / 255  # (B,)
            return ((mean - 0.5) * 2.2).clamp(0, 1)[:, None], None

        return Encoder("fake", "visual", 1, 0, see, "1" * 64, PictureSpec(short=16))

    def hear(wave: Any) -> Any:
        return (wave.square().mean(1).sqrt() * 2.8).clamp(0, 1)[:, None], None

    return Encoder("fake", "audio", 1, 0, hear, "2" * 64, rate=8000, seconds=0.5)


def entry(make: Any, maps: bool = False) -> Any:
    """An entry of the catalog; `make` gets the options."""
    from avtool.features.encoders.catalog import Entry

    return Entry(lambda device, options: make(options), (), "none", maps=maps)


def install() -> None:
    """Puts the stand-ins where the model and the encoders are looked up; for a test, through `monkeypatch`."""
    from avtool.batch import jobs
    from avtool.features.encoders import catalog
    from avtool.models import zoo

    jobs.WORKER = "tests.batch.workers:Fake"
    zoo.load = lambda name, device: FakeLocalizer()  # type: ignore[assignment]
    catalog.VISUAL = {"fake": entry(lambda options: fake_encoder("visual"))}
    catalog.AUDIO = {"fake": entry(lambda options: fake_encoder("audio"))}
