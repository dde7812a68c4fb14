"""Which pictures and which sound a row is made of, in every layout; files are read back by others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from avtool.errors import InputError, OutputError, UsageError
from avtool.extraction import Extractor, Recipe, ave_pictures
from avtool.features import store
from avtool.settings import Settings
from avtool.timeline import MediaInfo, VideoInfo
from tests.cli import fakes
from tests.cli.conftest import Ran

torch = pytest.importorskip("torch")

RATE = 8000
BITS, BIT = 10, 8  # a picture's number in black and white bars of 8 pixels


def numbered(path: Path, seconds: float, fps: Fraction | int, sound: bool = True, pictures: bool = True) -> Path:
    """A clip whose pictures say their number and whose sound says its time: sample = seconds / 16."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=fps, options={"qp": "10", "g": "12"}) if pictures else None
        audio = out.add_stream("pcm_s16le", rate=RATE, layout="mono") if sound else None
        if video:
            video.width, video.height, video.pix_fmt = BITS * BIT, 16, "yuv420p"
            for number in range(round(seconds * fps)):
                bits = [(number >> k) & 1 for k in range(BITS)]
                row = np.repeat(np.array(bits, np.uint8) * 255, BIT)
                frame = av.VideoFrame.from_ndarray(np.tile(row[None, :, None], (16, 1, 3)), format="rgb24")
                frame.pts = number
                out.mux(video.encode(frame))
            out.mux(video.encode())
        if audio:
            wave = (np.arange(round(seconds * RATE)) / RATE / 16 * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = RATE, 0
            out.mux(audio.encode(frame))
            out.mux(audio.encode())
    return path


def seeing(name: str, maps: bool = False) -> Any:
    """Reads the number of a picture; as a map if asked for."""
    from avtool.features.encoders.catalog import Encoder
    from avtool.media.request import PictureSpec

    def run(pictures: Any) -> Any:  # (B, 16, BITS * BIT, 3)
        bars = pictures[:, :, :, 0].float().reshape(len(pictures), 16, BITS, BIT).mean((1, 3)) > 127
        number = (bars * 2 ** torch.arange(BITS)).sum(1).float()
        embedding = number[:, None] + torch.tensor([0.0, 1000.0])
        maps_ = embedding[:, None, None].expand(-1, 7, 7, -1)
        return (maps_ if maps else embedding), number[:, None]

    return Encoder(name, "visual", 2, 1, run, "1" * 64, PictureSpec())


def hearing(name: str, seconds: float) -> Any:
    """Gives the time of the middle of a window."""
    from avtool.features.encoders.catalog import Encoder

    def run(wave: Any) -> Any:
        return 16 * wave.mean(1, keepdim=True), None

    return Encoder(name, "audio", 1, 0, run, "2" * 64, rate=RATE, seconds=seconds)


@pytest.fixture
def encoders(monkeypatch: pytest.MonkeyPatch, lent_decoders: None) -> Iterator[None]:
    from avtool.features.encoders import catalog

    def looks(name: str, maps: bool) -> Any:
        return fakes.entry(lambda options: replace(seeing(name, options.pool == "none"), options=options), maps)

    def hears(name: str, seconds: float) -> Any:
        return fakes.entry(lambda options: hearing(name, seconds))

    visual = {"mini": looks("mini", False), "resnet50-v2": looks("resnet50-v2", True)}
    monkeypatch.setattr(catalog, "VISUAL", {**visual, "resnet50-v1": looks("resnet50-v1", True)})
    audio = {"mini": hears("mini", 0.5), "vggish": hears("vggish", 0.96)}
    monkeypatch.setattr(catalog, "AUDIO", {**audio, "cnn14": replace(hears("cnn14", 1.0), protocols=("per-second",))})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def extract(path: Path, visual: str | None = None, audio: str | None = None, **recipe: Any) -> store.Features:
    with Extractor(Settings(visual=visual, audio=audio, device="cpu"), Recipe(**recipe)) as extractor:
        return extractor.features(path, lambda *_: None)


# ---------------------------------------------------------------- rows on one grid


def test_a_picture_a_row(encoders: None, tmp_path: Path) -> None:
    clip = numbered(tmp_path / "clip.mkv", 4, 25)
    features = extract(clip)
    rows = np.arange(8)
    assert features.visual is not None and features.audio is not None
    np.testing.assert_array_equal(features.visual[:, 0], np.floor((rows / 2 + 0.25) * 25))
    np.testing.assert_allclose(features.audio[:, 0], rows / 2 + 0.25, atol=2e-3)
    assert features.visual_tags is not None and features.visual_tags.shape == (8, 1)
    assert features.sampling["pictures_per_second"] is None and features.sampling["stride_seconds"] == 0.5


@pytest.mark.parametrize(
    ("segment", "stride", "fps"),
    [("1", None, 8), (None, "1/4", 4), ("0.96", "0.96", 5), ("1", "1/4", 16), ("2", "1", 3)],
)
def test_pictures_a_second(encoders: None, tmp_path: Path, segment: str, stride: str, fps: int) -> None:
    """A row is the mean of the pictures whose time lies in it; sound and pictures have the same rows."""
    clip = numbered(tmp_path / "clip.mkv", 5, 25)
    given = {k: Fraction(v) for k, v in (("segment", segment), ("stride", stride)) if v}
    features = extract(clip, segment=given.get("segment"), stride=given.get("stride"), fps=Fraction(fps))
    assert features.visual is not None and features.audio is not None
    assert len(features.visual) == len(features.audio) == len(features.times) == len(features.seen)
    moments = [(k + 0.5) / fps for k in range(5 * fps)]
    for row, (begin, end) in enumerate(features.times):
        inside = [floor(t * 25 + 1e-9) for t in moments if begin <= t < end]
        assert features.seen[row] == bool(inside)
        assert features.visual[row, 0] == pytest.approx(np.mean(inside) if inside else 0.0)
        if end <= 5:
            assert features.audio[row, 0] == pytest.approx((begin + end) / 2, abs=0.26)
    assert features.sampling["pictures_per_second"] == fps


def test_maps(encoders: None, tmp_path: Path) -> None:
    clip = numbered(tmp_path / "clip.mkv", 2, 10)
    features = extract(clip, "resnet50-v1", pool="none", fps=Fraction(4), segment=Fraction(1))
    assert features.visual is not None and features.visual.shape == (2, 7, 7, 2)
    np.testing.assert_allclose(features.visual[..., 1] - features.visual[..., 0], 1000)


def test_lengths_never_differ(encoders: None, tmp_path: Path) -> None:
    """Sound longer or shorter than the pictures, or one of them missing."""
    long = numbered(tmp_path / "long.mkv", 3.3, 25)
    for name, sound, pictures in (("silent", False, True), ("blind", True, False)):
        clip = numbered(tmp_path / f"{name}.mkv", 3.3, 25, sound, pictures)
        for recipe in ({}, {"fps": Fraction(7)}, {"segment": Fraction(1, 3)}, {"layout": "ave"}):
            features, full = extract(clip, **recipe), extract(long, **recipe)
            assert (features.visual is None, features.audio is None) == (not pictures, not sound)
            for array in (features.visual, features.audio, features.seen, features.heard):
                assert array is None or len(array) == features.rows == full.rows


def test_the_rows_of_a_model(encoders: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from avtool.models import zoo
    from avtool.timegrid import Grid

    info = replace(
        fakes.FakeLocalizer().info, visual=("resnet50-v1",), audio=("*",), grid=Grid(Fraction(1), Fraction(1, 2))
    )
    info = replace(info, settings={"pool": "none"})
    monkeypatch.setattr(zoo, "_installed", lambda: [(info, None)])
    for asked, pool in (({}, "none"), ({"pool": "gap"}, "gap"), ({"layout": "unav"}, "gap")):
        with Extractor(Settings(model="fake", device="cpu"), Recipe(**asked)) as extractor:
            extractor.load()
            assert (extractor.visual.name, extractor.audio.name, extractor.grid) == ("resnet50-v1", "mini", info.grid)
            assert extractor.visual.options.pool == pool
    wrong = Settings(model="fake", visual="mini", device="cpu")
    with pytest.raises(UsageError, match="cannot read --visual mini"), Extractor(wrong, Recipe()) as extractor:
        extractor.load()
    with pytest.raises(UsageError, match="no model 'fak'"), Extractor(Settings(model="fak"), Recipe()) as extractor:
        extractor.load()


# ---------------------------------------------------------------- AVE


@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30000, 1001), Fraction(30), Fraction(15), Fraction(60)])
def test_ave_takes_the_frames_of_the_published_script(encoders: None, tmp_path: Path, fps: Fraction) -> None:
    """Frame floor(l I + (i / 16) I), I = floor(n / 10), l = 0 ... 9, i = 0 ... 15, the mean of the 16."""
    clip = numbered(tmp_path / "clip.mkv", 10, fps)
    features = extract(clip, "resnet50", "vggish", layout="ave")
    frames = round(10 * fps)
    step = frames // 10
    expected = [np.mean([floor(row * step + (i / 16) * step) for i in range(16)]) for row in range(10)]
    assert features.visual_encoder == "resnet50-v2"
    assert features.visual is not None and features.visual.shape == (10, 7, 7, 2)
    np.testing.assert_allclose(features.visual[:, 3, 3, 0], expected, atol=1e-3)


def test_ave_sound_drifts(encoders: None, tmp_path: Path) -> None:
    """VGGish's stock hop: example t covers 0.96 t to 0.96 t + 0.96; Cnn14 hears each second alone."""
    clip = numbered(tmp_path / "clip.mkv", 10, 25)
    for name, hop in (("vggish", 0.96), ("cnn14", 1.0)):
        features = extract(clip, None, name, layout="ave")
        starts = np.arange(10) * hop
        assert features.audio is not None and features.audio_times is not None
        np.testing.assert_allclose(features.audio_times, np.stack([starts, starts + hop], 1))
        np.testing.assert_allclose(features.audio[:, 0], starts + hop / 2, atol=2e-3)
        np.testing.assert_allclose(features.times[:, 0], np.arange(10))


@pytest.mark.parametrize("seconds", [7.3, 9.9, 12.0])
def test_ave_of_other_lengths(encoders: None, tmp_path: Path, seconds: float) -> None:
    features = extract(numbered(tmp_path / "clip.mkv", seconds, 25), None, "vggish", layout="ave")
    assert features.visual is not None and features.audio is not None
    assert (len(features.visual), len(features.audio), features.rows) == (10, 10, 10)
    assert [n.code for n in features.notices if n.code == "short_clip"] == (["short_clip"] if seconds < 9.5 else [])
    assert features.visual[:, 0].max() < 250 + 1000 and features.sampling["pool"] == "gap"


def test_ave_grid_of_odd_files() -> None:
    video = VideoInfo("h264", 16, 16, "25", False)
    media = MediaInfo("x", 1, 1, True, True, 10.0, 10.0, video, None, 10.0)
    assert ave_pictures(media).stride == Fraction(1, 16)
    for odd in (
        replace(media, video=None),
        replace(media, duration=0.01),
        replace(media, video=replace(video, average_rate="0")),
    ):
        assert ave_pictures(odd).stride > 0


# ---------------------------------------------------------------- files, read by others


@pytest.fixture
def avtool(encoders: None, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    from avtool.cli.app import run

    def call(*arguments: str | Path) -> Ran:
        capfd.readouterr()
        code = run(["extract-features", *map(str, arguments), "--device", "cpu"])
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return call


def test_npz_layout(avtool: Callable[..., Ran], tmp_path: Path) -> None:
    clip = numbered(tmp_path / "clip.mkv", 4, 25)
    ran = avtool(clip, "-o", tmp_path, "--no-tags", "--dtype", "float16", "--fps", "8", "--segment", "1")
    assert ran.code == 0, ran.err
    with np.load(tmp_path / "clip.features.npz", allow_pickle=False) as file:
        assert sorted(file) == ["about", "audio", "heard", "seen", "times", "visual"]
        assert file["visual"].dtype == file["audio"].dtype == np.float16 and file["times"].dtype == np.float64
        about = json.loads(str(file["about"]))
    assert about["sampling"]["pictures_per_second"] == 8 and about["scaling"]
    assert set(about["weights"].values()) == {"1" * 64, "2" * 64}
    assert store.load_npz(tmp_path / "clip.features.npz").visual.dtype == np.float32  # type: ignore[union-attr]


def test_ave_layout(avtool: Callable[..., Ran], tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py, which reads them, is not installed")
    clip = numbered(tmp_path / "clip.mkv", 10, 25)
    ran = avtool(clip, "-o", tmp_path, "--layout", "ave", "--visual", "resnet50", "--audio", "vggish")
    assert ran.code == 0, ran.err
    with h5py.File(tmp_path / "clip.features.h5") as file:
        assert file["visual"].shape == (10, 7, 7, 2) and file["audio"].shape == (10, 1)
        assert file["audio_times"][9, 0] == pytest.approx(8.64) and file["times"][9, 0] == 9
        assert json.loads(file.attrs["about"])["visual_encoder"] == "resnet50-v2"
    features = store.load(tmp_path / "clip.features.h5")
    assert features.audio_times is not None and features.sampling["pool"] == "none"


def test_unav_layout(avtool: Callable[..., Ran], tmp_path: Path) -> None:
    clip = numbered(tmp_path / "v_1.a.mkv", 6, 25)
    ran = avtool(clip, "-o", tmp_path, "--layout", "unav", "--audio", "cnn14", "--segment", "1", "--stride", "1/4")
    assert ran.code == 0, ran.err
    visual, audio = np.load(tmp_path / "v_1.a_mini.npy"), np.load(tmp_path / "v_1.a_cnn14.npy")
    about = json.loads((tmp_path / "v_1.a.features.json").read_text())
    assert visual.shape == (about["rows"], 2) and audio.shape == (about["rows"], 1)
    assert (about["window_seconds"], about["stride_seconds"]) == (1.0, 0.25)
    assert about["files"] == {"visual": "v_1.a_mini.npy", "audio": "v_1.a_cnn14.npy"}
    centre = about["first_seconds"] + about["stride_seconds"] * np.arange(len(visual)) + about["window_seconds"] / 2
    np.testing.assert_array_equal(visual[:20, 0], np.floor(centre[:20] * 25))
    features, _ = store.load_npy(tmp_path / "v_1.a.features.json")
    np.testing.assert_array_equal(features.visual, visual)
    assert avtool(clip, "-o", tmp_path / "mini", "--layout", "unav").code == 0
    assert sorted(p.name for p in (tmp_path / "mini").iterdir()) == [
        "v_1.a.features.json", "v_1.a_mini_audio.npy", "v_1.a_mini_visual.npy",
    ]  # fmt: skip


def test_ave_features_packed_for_training(avtool: Callable[..., Ran], tmp_path: Path) -> None:
    """Rows in the order of the annotations, a clip of two classes twice; read by the data set's own reader."""
    pytest.importorskip("h5py", reason="h5py, which reads them, is not installed")
    from avtool.training.datasets.hdf5 import read_rows

    clips = [numbered(tmp_path / f"{name}.mkv", 10, fps) for name, fps in (("a1", 25), ("b2", 30))]
    annotations = tmp_path / "Annotations.txt"
    annotations.write_text("Bark&b2&good&0&10\nBus&gone&good&0&3\nBus&a1&good&2&9\nCat&b2&good&1&4\n")
    out = tmp_path / "out"
    arguments = ("-o", out, "--layout", "ave", "--visual", "resnet50", "--audio", "vggish", "--pack", annotations)
    ran = avtool(*clips, *arguments)
    assert ran.code == 0 and "1 of 4 rows have no clip" in ran.err and "packed " in ran.err
    visual, audio = read_rows(out / "visual_feature.h5"), read_rows(out / "audio_feature.h5")
    assert visual.shape == (4, 10, 7, 7, 2) and audio.shape == (4, 10, 1) and visual.dtype == np.float32
    one, two = (store.load(out / f"{name}.features.h5") for name in ("a1", "b2"))
    for row, features in enumerate((two, None, one, two)):
        np.testing.assert_array_equal(visual[row], 0 if features is None else features.visual)
        np.testing.assert_array_equal(audio[row], 0 if features is None else features.audio)
    assert avtool(*clips, *arguments).code == 0
    other = (*arguments[:5], "resnet50-v1", *arguments[6:], "--overwrite")
    assert "do not fit together" in avtool(clips[0], *other).err
    for bad in (("--layout", "npz"), ("--layout", "ave", "--beside")):
        assert avtool(clips[0], *bad, "--pack", annotations).code == 2
    assert avtool(clips[0], "-o", out, "--layout", "ave", "--pack", tmp_path / "none.txt").code == 3


@pytest.mark.parametrize("layout", ["npz", "ave", "unav"])
def test_run_again(avtool: Callable[..., Ran], tmp_path: Path, layout: str) -> None:
    """What is whole and would come out the same is left alone; anything else is not replaced unasked."""
    if layout == "ave":
        pytest.importorskip("h5py")
    one, two = numbered(tmp_path / "one.mkv", 2, 10), numbered(tmp_path / "two.mkv", 2, 10)
    out = tmp_path / "out"
    arguments = ("-o", out, "--layout", layout)
    assert avtool(one, *arguments).code == 0
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.iterdir()}
    ran = avtool(one, two, *arguments)
    assert ran.code == 0 and "is there and whole" in ran.err and ran.err.count("wrote ") == 1
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in before}
    ran = avtool(one, *arguments, "--dtype", "float16")
    assert ran.code == 6 and "made by other settings" in ran.err
    one.touch()
    assert avtool(one, *arguments).code == 6
    assert avtool(one, *arguments, "--overwrite").code == 0
    assert avtool(one, *arguments).code == 0
    for file in sorted(out.glob("one*")):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) - 20])
        assert avtool(one, *arguments).code == 6, file
        file.write_bytes(whole)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--layout", "h5"), ("--pool", "max"), ("--dtype", "int8"), ("--fps", "0"), ("--fps", "many"),
        ("--layout", "ave", "--fps", "4"), ("--layout", "unav", "--pool", "none"), ("--visual", "none"),
        ("--model", "x"), ("--segment", "1/0"), ("--segment", "-1"),
    ],
)  # fmt: skip
def test_slips(avtool: Callable[..., Ran], tmp_path: Path, arguments: tuple[str, ...]) -> None:
    clip = numbered(tmp_path / "clip.mkv", 1, 10)
    ran = avtool(clip, "-o", tmp_path / "out", *arguments)
    assert ran.code == 2 and len(ran.lines) <= 3 and not (tmp_path / "out").exists()


def test_names_that_collide(avtool: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    one, two = numbered(tmp_path / "clip.mkv", 1, 10), numbered(tmp_path / "a" / "clip.mkv", 1, 10)
    for layout in ("npz", "unav"):
        ran = avtool(one, two, "-o", tmp_path / "out", "--layout", layout)
        assert ran.code == 2 and str(one) in ran.err and str(two) in ran.err


def test_foreign_and_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "y.json").write_text(json.dumps({"files": {"visual": "../../etc/passwd"}}))
    for name in ("x.json", "y.json", "missing.json"):
        with pytest.raises(InputError):
            store.load_npy(tmp_path / name)
    h5py = pytest.importorskip("h5py")
    (tmp_path / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["avadataset"] = np.zeros((1, 10, 128))
    for name in ("x.h5", "y.h5", "missing.h5"):
        with pytest.raises(InputError, match="is not a feature file"):
            store.load(tmp_path / name)


def test_a_file_that_cannot_be_written(encoders: None, tmp_path: Path) -> None:
    features = extract(numbered(tmp_path / "clip.mkv", 1, 10))
    (tmp_path / "taken").write_text("")
    for write, name in ((store.save_npz, "a.npz"), (store.save_npy, "a.features.json")):
        with pytest.raises(OutputError):
            write(features, tmp_path / "taken" / name)
