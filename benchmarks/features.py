"""Features as avtool makes them against a plain loop as people write it today: CPU seconds and wall, taken in turns.

The plain loop decodes every picture to RGB with PyAV, takes the ones it wants through PIL and torchvision's transform,
and runs torchvision's network in batches, float32, NCHW; for sound it decodes with PyAV, resamples with librosa
(soxr_hq), and runs panns-inference's network with torchlibrosa's front end. avtool decodes in its child process, whose
CPU time counts. Weights are random (time does not depend on them) and pass through `avtool weights import`'s road.
Loading is not counted on either side; both run on one thread.

The clips are made here: H.264 High of x264 "veryfast", yuv420p tagged BT.709 at 1080p and left untagged at 360p, 30
pictures a second, a key frame every 60, 3 B-frames, AAC 48 kHz stereo; a picture that pans over moving noise.

    python benchmarks/features.py [--rounds 3] [--seconds 12] [--only ENCODER ...] [--sizes 1080p 360p] [--fps 1 8]
    python benchmarks/features.py --memory        peak resident memory of two encoders in one process
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

RATE = 30  # pictures a second
SIZES = {"1080p": (1920, 1080), "360p": (640, 360)}
PICTURES = ("resnet50-v2", "vgg19", "mobilenet_v2")
SOUNDS = ("cnn14",)
PAIRS = (("resnet50-v2", "cnn14"), ("vgg19", "vggish"), ("vgg19", "cnn14"))
BATCH = 8


# ---------------------------------------------------------------- material


def make_clip(path: Path, width: int, height: int, seconds: float) -> Path:
    """See the top of this file."""
    import av

    rng = np.random.default_rng(0)
    ground = rng.integers(0, 255, (height // 40 + 20, width // 40 + 20, 3), np.uint8).repeat(40, 0).repeat(40, 1)
    fine = rng.integers(0, 60, (height // 4 + 64, width // 4 + 64, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    options = {"preset": "veryfast", "crf": "23", "g": "60", "keyint_min": "60", "sc_threshold": "0", "bf": "3"}
    if height >= 720:
        options["x264-params"] = "colorprim=bt709:transfer=bt709:colormatrix=bt709"
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=RATE, options=options)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = out.add_stream("aac", rate=48_000, layout="stereo")
        _add_sound(out, audio, seconds, rng)
        for number in range(round(seconds * RATE)):
            a, b = number * 2 % 500, number * 5 % 200
            picture = ground[a : a + height, a : a + width] // 2 + fine[b : b + height, :width]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
    return path


def _add_sound(out: Any, stream: Any, seconds: float, rng: np.random.Generator) -> None:
    import av

    t = np.arange(round(seconds * 48_000)) / 48_000
    tone = 0.3 * np.sin(2 * np.pi * (200 + 300 * t) * t)
    wave = (tone + 0.05 * rng.standard_normal((2, len(t)))).astype(np.float32)
    for first in range(0, len(t), 1024):
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[:, first : first + 1024]), "fltp", "stereo")
        frame.sample_rate, frame.pts = 48_000, first
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def make_weights(folder: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Random weights in a cache folder of their own; gives the networks of others with the same weights."""
    import torch

    from avtool import weights
    from tests.features.upstream import hashless, published

    known, networks = hashless(), {}
    weights.manifest = lambda: known  # random weights under the names of real ones, in this process only
    for name in names:
        networks[name] = network = their_network(name)
        file = published(network, folder / "upstream.pth")
        weights.import_weights(file, name, accept_unpinned=True)
        file.unlink()
        assert not any(p.isnan().any() for p in network.state_dict().values() if isinstance(p, torch.Tensor))
    return networks


def their_network(name: str) -> Any:
    """The network of its own library, with random weights."""
    import torchvision

    from tests.features.upstream import empty, shake

    if name == "vggish":
        from avtool.features.encoders import vggish

        return shake(vggish._shell().to_empty(device="cpu"))
    if name == "cnn14":
        return their_cnn14()
    maker = getattr(torchvision.models, name.split("-")[0])
    return shake(empty(lambda: maker(weights=None)))


def their_cnn14() -> Any:
    """panns-inference's network with torchlibrosa's front end; only its __init__, which downloads, is left out."""
    from importlib import import_module
    from importlib.util import find_spec
    from types import ModuleType

    from tests.features.upstream import shake

    spec = find_spec("panns_inference")
    assert spec is not None, "pip install panns-inference"
    package = ModuleType("panns_inference")
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["panns_inference"] = package
    network = import_module("panns_inference.models").Cnn14(32_000, 1024, 320, 64, 50, 14_000, 527)
    fixed = {k: v.clone() for k, v in network.state_dict().items() if "_extractor." in k}
    shake(network).load_state_dict(fixed, strict=False)
    return network


# ---------------------------------------------------------------- the plain loops


def plain_pictures(path: Path, network: Any, transform: Any, fps: Fraction, batch: int = BATCH) -> Any:
    """Every picture decoded to RGB, every wanted one through PIL; pooled features of the last map (N, D)."""
    import av
    import torch
    from PIL import Image

    wanted = wanted_frames(path, fps)
    inputs: list[Any] = []
    rows: list[Any] = []
    with torch.no_grad(), av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            rgb = frame.to_ndarray(format="rgb24")
            inputs += [transform(Image.fromarray(rgb)) for _ in range(wanted.count(number))]
            while len(inputs) >= batch:
                rows.append(pooled(network, torch.stack(inputs[:batch])))
                del inputs[:batch]
        if inputs:
            rows.append(pooled(network, torch.stack(inputs)))
    return np.concatenate(rows)


def wanted_frames(path: Path, fps: Fraction) -> list[int]:
    """The frame on screen in the middle of each step."""
    import av

    with av.open(str(path)) as container:
        count = container.streams.video[0].frames
    steps = int(count * fps / RATE)
    return [int((step + Fraction(1, 2)) / fps * RATE) for step in range(steps)]


def pooled(network: Any, x: Any) -> Any:
    """The mean of the last map, with the class scores computed as in ours."""
    import torch

    if hasattr(network, "layer4"):
        kept: list[Any] = []
        handle = network.layer4.register_forward_hook(lambda module, given, out: kept.append(out))
        network(x)
        handle.remove()
        maps = kept[0]
    else:
        maps = network.features(x)
        flat = network.avgpool(maps).flatten(1) if hasattr(network, "avgpool") else maps.mean((2, 3))
        network.classifier(flat)
    assert isinstance(maps, torch.Tensor)
    return maps.mean((2, 3)).numpy()


def plain_sound(path: Path, network: Any) -> Any:
    """Whole sound, librosa's resampling, one-second pieces in batches of eight."""
    import av
    import librosa
    import torch

    with av.open(str(path)) as container:
        pieces = [frame.to_ndarray() for frame in container.decode(audio=0)]
    wave = np.concatenate(pieces, 1).mean(0)
    wave = librosa.resample(wave, orig_sr=48_000, target_sr=32_000, res_type="soxr_hq")
    seconds = torch.from_numpy(wave[: len(wave) // 32_000 * 32_000].reshape(-1, 32_000))
    with torch.no_grad():
        return np.concatenate([network(part)["embedding"].numpy() for part in seconds.split(BATCH)])


# ---------------------------------------------------------------- ours


class Ours:
    """avtool's road from the file on: a decoding child that is already there, and an encoder that is loaded."""

    def __init__(self) -> None:
        from avtool.media.child import DecodeChild

        self.child = DecodeChild()
        self.child.start()

    def __call__(self, path: Path, encoder: Any, fps: Fraction) -> Any:
        import torch

        from avtool.features.extract import extract
        from avtool.media.request import DecodeRequest
        from avtool.timegrid import Grid

        grid, visual = Grid(1 / fps, 1 / fps), encoder.modality == "visual"
        request = DecodeRequest(encoder.pictures if visual else None, None if visual else encoder.rate, grid)
        pair = (encoder, None) if visual else (None, encoder)
        features = extract(self.child.decode(path, request, lend=True), *pair, grid, torch.device("cpu"))
        return features.visual if visual else features.audio

    def cpu(self) -> float:
        """CPU seconds of the child so far."""
        assert self.child._process is not None
        tasks = Path(f"/proc/{self.child._process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def nothing(encoder: Any) -> Any:
    """An encoder whose network costs nothing: what is left is decoding, scaling and shuffling."""
    import torch

    return replace(encoder, run=lambda x: (torch.zeros(len(x), encoder.dim), None))


# ---------------------------------------------------------------- measuring


@dataclass
class Cost:
    """Of one run: CPU seconds of all processes, and wall seconds."""

    cpu: float
    wall: float


def measured(run: Callable[[], Any], ours: Ours) -> tuple[Cost, Any]:
    """Cost and result of one run; time of finished child processes counts too."""
    before, begin = _cpu(ours), time.perf_counter()
    result = run()
    return Cost(_cpu(ours) - before, time.perf_counter() - begin), result


def _cpu(ours: Ours) -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ours.cpu() + children.ru_utime + children.ru_stime


def in_turns(runs: dict[str, Callable[[], Any]], rounds: int, ours: Ours) -> tuple[dict[str, Cost], dict[str, Any]]:
    """Medians of `rounds` runs of each, after one that warms up, and the last results."""
    results = {name: run() for name, run in runs.items()}
    costs: dict[str, list[Cost]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            cost, results[name] = measured(run, ours)
            costs[name].append(cost)
    medians = {
        name: Cost(statistics.median(c.cpu for c in some), statistics.median(c.wall for c in some))
        for name, some in costs.items()
    }
    return medians, results


def apart(given: Any, expected: Any) -> tuple[float, float]:
    """Distance of two sets of features: relative to their length, and to how much their rows differ."""
    distance, length = np.linalg.norm(given - expected), np.linalg.norm(expected)
    return float(distance / length), float(distance / np.linalg.norm(expected - expected.mean(0)))


def null(path: Path) -> None:
    """The floor: the command line that decodes and throws away."""
    command = ["ffmpeg", "-v", "error", "-threads", "1", "-i", str(path), "-f", "null", "-"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def speed(
    folder: Path, only: list[str], sizes: list[str], rates: list[Fraction], rounds: int, seconds: float
) -> Iterator[str]:
    """Lines of the table."""
    import torch

    from avtool.features.encoders import catalog
    from avtool.features.encoders.catalog import Options

    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    networks, ours = make_weights(folder, tuple(only)), Ours()
    yield f"{'CPU seconds (wall)':34s} {'plain':>15s} {'avtool':>15s}   ratio: CPU, wall   apart: of length, of rows"
    seen = [name for name in only if name in catalog.VISUAL]
    for size in sizes if seen else sizes[-1:]:
        clip = make_clip(folder / f"{size}.mp4", *SIZES[size], seconds)
        for name in seen:
            encoder, transform = catalog.VISUAL[name](cpu), their_transform(name)
            for fps in rates:
                runs = {
                    "plain": partial(plain_pictures, clip, networks[name], transform, fps),
                    "avtool": partial(ours, clip, encoder, fps),
                    "around": partial(ours, clip, nothing(encoder), fps),
                }
                yield from lines(f"{size} {name} {fps} fps", runs, clip, rounds, ours)
    for name in [n for n in only if n in SOUNDS]:
        encoder = catalog.AUDIO[name](cpu, Options(protocol="per-second"))
        runs = {
            "plain": partial(plain_sound, clip, networks[name]),
            "avtool": partial(ours, clip, encoder, Fraction(1)),
            "around": partial(ours, clip, nothing(encoder), Fraction(1)),
        }
        yield from lines(f"sound, {name} per second", runs, clip, rounds, ours)
    ours.child.close()


def their_transform(name: str) -> Any:
    """torchvision's own, for PIL pictures."""
    from torchvision.models import get_model_weights

    version = "IMAGENET1K_V2" if name == "resnet50-v2" else "IMAGENET1K_V1"
    return get_model_weights(name.split("-")[0])[version].transforms()


def lines(title: str, runs: dict[str, Any], clip: Path, rounds: int, ours: Ours) -> Iterator[str]:
    """Runs in turns; CPU and wall of both roads, their ratios, how far the features are apart; and the floor."""
    if shutil.which("ffmpeg"):
        runs = {**runs, "null": partial(null, clip)}
    costs, results = in_turns(runs, rounds, ours)
    rows = min(len(results["plain"]), len(results["avtool"]))
    of_length, of_rows = apart(results["avtool"][:rows], results["plain"][:rows])
    plain, own = costs["plain"], costs["avtool"]
    text = "".join(f" {c.cpu:6.2f} ({c.wall:6.2f})" for c in (plain, own))
    ratios = f"{plain.cpu / own.cpu:5.2f}  {plain.wall / own.wall:5.2f}"
    yield f"{title:34s}{text}   {ratios}              {of_length:.0e}  {of_rows:.0e}"
    if "null" in costs:
        around, floor = costs["around"].cpu, costs["null"].cpu
        yield f"    all around the network / ffmpeg null: {around:.2f} / {floor:.2f} = {around / floor:.2f}"


# ---------------------------------------------------------------- memory

MEMORY = """
import sys
from pathlib import Path
import torch
from avtool.features.encoders import catalog
from avtool.features.extract import extract
from avtool.media.child import DecodeChild
from avtool.media.request import DecodeRequest
from avtool.timegrid import Grid
from avtool import weights
from tests.features.upstream import hashless
known = hashless()
weights.manifest = lambda: known
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
clip, visual, audio = sys.argv[1:]
cpu, grid, base = torch.device("cpu"), Grid(), peak()
seeing, hearing = catalog.VISUAL[visual](cpu), catalog.AUDIO[audio](cpu)
loaded = peak()
with DecodeChild() as child:
    request = DecodeRequest(seeing.pictures, hearing.rate, grid)
    features = extract(child.decode(clip, request), seeing, hearing, grid, cpu)
assert features.visual is not None and features.audio is not None
print(f"{visual} + {audio}: torch {base:.0f}, both loaded {loaded:.0f}, after {features.rows} rows {peak():.0f} MiB")
"""
IMPORT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import features
features.make_weights(Path(sys.argv[2]), (sys.argv[3],))
"""


def memory(folder: Path, seconds: float) -> None:
    """Peak resident memory (VmHWM) of fresh processes, the decoder's child not counted."""
    clip = make_clip(folder / "1080p.mp4", *SIZES["1080p"], seconds)
    for visual, audio in PAIRS:
        for name in (visual, audio):
            if not list((folder / "weights").glob(f"*/{name}.safetensors")):
                here = str(Path(__file__).parent)
                subprocess.run([sys.executable, "-W", "ignore", "-c", IMPORT, here, str(folder), name], check=True)
        command = [sys.executable, "-W", "ignore", "-c", MEMORY, str(clip), visual, audio]
        print(subprocess.check_output(command, text=True, cwd=Path(__file__).resolve().parents[1]).strip(), flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--only", nargs="+", default=[*PICTURES, *SOUNDS], metavar="ENCODER")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--fps", nargs="+", default=[Fraction(1), Fraction(8)], type=Fraction)
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("avtool").setLevel(logging.ERROR)  # that these weights are not known is no news
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["AVTOOL_WEIGHTS"] = str(folder / "weights")
        if options.memory:
            memory(folder, options.seconds)
            return
        for line in speed(folder, options.only, options.sizes, options.fps, options.rounds, options.seconds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
