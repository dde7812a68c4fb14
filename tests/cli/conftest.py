"""The command line with a stand-in for the model, in this process or in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import synth
from tests.cli import fakes


@pytest.fixture
def fake_model(monkeypatch: pytest.MonkeyPatch, lent_decoders: None) -> Iterator[None]:
    """The stand-ins of `fakes`, in this process."""
    import torch

    from avtool.batch import jobs
    from avtool.features.encoders import catalog
    from avtool.models import zoo

    for owner, name in ((zoo, "load"), (catalog, "VISUAL"), (catalog, "AUDIO"), (jobs, "WORKER")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # so that it is put back
    fakes.install()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a network this small loses more than it gains by a second
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()

    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture
def avtool(fake_model: None, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process, with the stand-in for the model."""
    from avtool.cli.app import run

    def call(*arguments: str | Path) -> Ran:
        capfd.readouterr()
        code = run([os.fspath(a) for a in arguments])
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return call


FAKED = "from tests.cli.fakes import install; install(); from avtool.__main__ import main; main()"


@pytest.fixture
def program(repo: Path, tmp_path: Path) -> Run:
    """Runs a command in a process of its own; `faked`: with the stand-in for the model; `code`: that Python instead."""

    def call(*arguments: str | Path, faked: bool = False, code: str = "", **options: Any) -> Ran:
        start = ["-c", code or FAKED] if faked or code else ["-m", "avtool"]
        done = subprocess.run(
            [sys.executable, *start, *map(os.fspath, arguments)],
            **{"cwd": tmp_path, "capture_output": True, "timeout": 120, **options},
            env={**os.environ, "PYTHONPATH": str(repo), **options.pop("env", {})},
        )
        text = [(stream or b"").decode("utf-8", "surrogateescape") for stream in (done.stdout, done.stderr)]
        return Ran(done.returncode, *text)

    return call


@pytest.fixture(scope="session")
def good_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An ordinary MP4, encoded once."""
    return synth.good(tmp_path_factory.mktemp("clip") / "clip.mp4").read_bytes()


@pytest.fixture
def clip(tmp_path: Path, good_bytes: bytes) -> Path:
    """A file with a flash at 2 s and a tone at 3 s."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(good_bytes)
    return path
