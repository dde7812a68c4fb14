"""Folders of small clips, runs in processes of their own, and one Ray cluster for all tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import synth
from tests.cli.conftest import fake_model

__all__ = ["fake_model"]  # a fixture

PROGRAM = """
import sys
from avtool.batch import jobs, local
worker, _, unforked = sys.argv.pop(1).partition(", ")
jobs.WORKER = "tests.batch.workers:" + worker
if unforked:
    local._may_have_gpu = lambda: True
from avtool.__main__ import main
main()
"""
SECONDS = 120  # after which something hangs


@pytest.fixture(scope="session")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An ordinary MP4, as small as it can be."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return synth.good(path).read_bytes()


@pytest.fixture
def videos(tmp_path: Path, small_clip: bytes) -> Callable[..., Path]:
    """Makes a folder with a copy of the clip under every name."""

    def make(*names: str) -> Path:
        for name in names:
            path = tmp_path / "videos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(small_clip)
            os.utime(path, ns=(10**18, 10**18))
        return tmp_path / "videos"

    return make


Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path, repo: Path) -> Iterator[Start]:
    """Starts `avtool batch` with a worker of `tests.batch.workers`, in a session of its own; what is left is ended.

    The worker's name may end in ", unforked": then it is a process of its own, as where there may be GPUs.
    """
    begun: list[subprocess.Popen[bytes]] = []

    def call(worker: str, *arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, worker, "batch", *map(os.fspath, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(repo)},
            start_new_session=True,
            preexec_fn=_answer_signals,
            **{"stderr": subprocess.PIPE, **options},
        )
        begun.append(process)
        return process

    yield call
    for process in begun:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
        for pid in of_session(process.pid):
            os.kill(pid, signal.SIGKILL)


def _answer_signals() -> None:
    """Under nohup or as a shell's background job the tests themselves ignore signals, and children inherit that."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)


def of_session(session: int, words: str = "") -> list[int]:
    """Processes of a session whose command line holds `words`, zombies left out."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z" and words in (entry / "cmdline").read_text():
                found.append(int(entry.name))
        except (OSError, IndexError):
            continue
    return found


def workers_of(session: int) -> list[int]:
    """The workers among the processes of a session: forked by the nursery, or each on its own."""
    nurseries = of_session(session, "avtool.batch.nursery")
    return [p for p in nurseries if _parent(p) in nurseries] + of_session(session, "avtool.batch.worker")


def nurseries_of(session: int) -> list[int]:
    """What the workers are forked from."""
    nurseries = of_session(session, "avtool.batch.nursery")
    return [p for p in nurseries if _parent(p) == session]


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def wait_until(condition: Callable[[], Any]) -> None:
    """Waits for something that must come."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def results(out: Path) -> dict[str, bytes]:
    """Everything below OUT but what a run says about itself."""
    files = (p for p in out.rglob("*") if p.is_file() and ".avtool" not in p.parts and p.name != "events.parquet")
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(files)}


def temporaries(folder: Path) -> list[str]:
    """What must not be left."""
    claims = folder.glob(".avtool/claims/*"), folder.glob(".avtool/alive-*"), folder.rglob("*.avtmp")
    return [p.name for group in claims for p in group]


def lines(log: Path, what: str) -> list[str]:
    """Names of the files that `workers.Stub` has begun or done."""
    found = log.read_text().splitlines() if log.exists() else []
    return [line.split()[1] for line in found if line.startswith(f"{what} ")]


def begun_by(log: Path) -> set[int]:
    """Processes of the workers that have begun a file."""
    found = log.read_text().splitlines() if log.exists() else []
    return {int(line.split()[2]) for line in found if line.startswith("begin ") and line[-1:].isdigit()}


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """Ray on this machine with two processors, once for the whole session."""
    ray = pytest.importorskip("ray", reason="Ray is an extra: pip install 'avtool[ray]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(
            num_cpus=2,
            object_store_memory=80 << 20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
        )
    yield ray
    ray.shutdown()
