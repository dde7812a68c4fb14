"""Forty files, five of them bad, on processes and on Ray: the same results as single runs, the bad ones named."""

from __future__ import annotations

import csv
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from avtool.batch import jobs
from avtool.batch.night import Closed, Night, run
from avtool.settings import Settings
from tests import synth
from tests.batch.conftest import results

ENGINES = ["local", "ray"]
FATES = {
    "raise.mp4": ("failed", "bug", "1"),
    "kill.mp4": ("quarantined", "crash", "2"),
    "hang.mp4": ("quarantined", "timeout", "2"),
    "cut.mp4": ("failed", "partial", "1"),
}


class Ears:
    """Hears what a run says."""

    def __init__(self) -> None:
        self.outcomes: list[jobs.Outcome] = []

    def started(self, hello: Any, workers: int, files: int) -> None: ...

    def ended(self, outcome: jobs.Outcome, tally: Any, outlook: Any) -> None:
        self.outcomes.append(outcome)

    def tick(self, tally: Any, outlook: Any) -> None: ...


def batch(folder: Path, out: Path, engine: str, **options: Any) -> tuple[Closed, list[jobs.Outcome]]:
    ears = Ears()
    night = Night([str(folder)], out, ("srt",), engine=engine, **{"workers": 2, "threads": 1, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        closed = run(night, Settings(), ears)
    return closed, ears.outcomes


@pytest.fixture(scope="session")
def forty(tmp_path_factory: pytest.TempPathFactory, small_clip: bytes) -> Path:
    """Forty files in three folders."""
    folder = tmp_path_factory.mktemp("forty")
    for i in range(35):
        path = folder / ("", "a", "b/c")[i % 3] / f"{i:02}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(small_clip)
    for name in ("raise.mp4", "kill.mp4", "hang.mp4"):
        (folder / name).write_bytes(small_clip)
    synth.cut(synth.good(folder / "cut.mp4"), 0.6)
    synth.write(folder / "silent.mp4", synth.Video())
    return folder


@pytest.mark.usefixtures("fake_model")
@pytest.mark.parametrize("engine", ENGINES)
def test_forty_files(
    engine: str, forty: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "ray":
        request.getfixturevalue("ray_cluster")
    out = tmp_path / "out"
    # one file hangs, and no other may be taken for it on a busy machine
    monkeypatch.setattr(jobs.WorkerSpec, "deadline", lambda spec, job: 2.0 if job.name == "hang.mp4" else 120.0)
    closed, outcomes = batch(forty, out, engine)
    assert closed.exit_code == 7
    bad = {o.name: (o.state, o.kind, str(o.attempt)) for o in outcomes if o.state != "done"}
    assert bad == FATES
    assert sorted(o.name for o in outcomes) == sorted(p.relative_to(forty).as_posix() for p in forty.rglob("*.mp4"))
    rows = list(csv.DictReader((out / ".avtool" / "failures.csv").read_text().splitlines()))
    assert {r["file"]: (r["state"], r["kind"], r["attempts"]) for r in rows} == FATES
    assert all(r["what"] for r in rows)
    found = results(out)
    found.pop("events.csv")
    assert found == single_runs(forty, forty.parent / "single" / "out")  # as far from the videos


@cache
def single_runs(folder: Path, out: Path) -> dict[str, bytes]:
    """What `avtool localize` writes for each good file."""
    from avtool.cli.app import run as avtool

    for place in ("", "a", "b/c"):
        good = [str(p) for p in sorted((folder / place).glob("*.mp4")) if p.name not in FATES]
        assert avtool(["localize", *good, "-o", str(out / place), "-q"]) == 0
    return results(out)
