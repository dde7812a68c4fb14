"""Who does what: looking ahead, retries alone on a fresh worker, replacements, workers that cannot start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from avtool.batch.crew import STILLBORN, Crew, Death, Message
from avtool.batch.jobs import Hello, Job, Outcome, WorkerDied, WorkerSpec
from avtool.errors import DeviceError, UsageError
from avtool.settings import Settings


def job(name: str, attempt: int = 1) -> Job:
    return Job(Path(name), name, 1.0, "f", {}, attempt=attempt)


class Puppet:
    """A worker that does what the test says."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.did: list[str] = []
        self.killed = False

    def run(self, job: Job) -> None:
        self.did.append(f"run {job.name}")

    def ahead(self, job: Job) -> None:
        self.did.append(f"ahead {job.name}")

    def drop(self, job: Job) -> None:
        self.did.append(f"drop {job.name}")

    def kill(self) -> None:
        self.killed = True


class Stage(Crew):
    """A crew of puppets; they say hello at once unless told otherwise."""

    def __init__(self, workers: int, hello: Message = Hello({})) -> None:  # noqa: B008  it is frozen
        super().__init__(workers)
        self.puppets: list[Puppet] = []
        self.said: list[tuple[Puppet, Message]] = []
        self._hello = hello

    def _launch(self, spec: WorkerSpec, index: int) -> Puppet:
        self.puppets.append(Puppet(index))
        self.said.append((self.puppets[-1], self._hello))
        return self.puppets[-1]

    def _poll(self, handles: Sequence[object], timeout: float) -> list[tuple[Puppet, Message]]:  # type: ignore[override]
        said, self.said = [(p, m) for p, m in self.said if p in handles], []
        return said

    def done(self, puppet: Puppet, name: str) -> None:
        self.said.append((puppet, Outcome(name, "done")))


def stage(workers: int, *names: str, floor: float = 100.0) -> Stage:
    crew = Stage(workers)
    crew.start(WorkerSpec(Settings(), timeout_floor=floor, timeout_factor=0.0))
    for name in names:
        crew.submit(job(name))
    crew.wait(0)
    return crew


def test_the_next_file_is_begun_while_this_one_runs() -> None:
    crew = stage(1, "a", "b")
    (one,) = crew.puppets
    assert one.did == ["run a", "ahead b"] and crew.room() == 0
    crew.done(one, "a")
    assert [r.job.name for r in crew.wait(0)] == ["a"]
    assert one.did == ["run a", "ahead b", "run b"] and crew.room() == 1


def test_workers_start_when_there_is_work_for_them() -> None:
    crew = stage(3, "a")
    assert len(crew.puppets) == 1 and crew.room() == 5
    for name in "bcdef":
        crew.submit(job(name))
    crew.wait(0)
    assert len(crew.puppets) == 3 and crew.room() == 0


def test_where_their_number_is_known_they_start_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stage, "_is_counted", lambda self, spec: True)
    crew = Stage(3)
    crew.start(WorkerSpec(Settings()), files=2)  # no more than there are files
    assert len(crew.puppets) == 2
    for name in "abcde":
        crew.submit(job(name))
    crew.wait(0)
    assert [p.did[0] for p in crew.puppets[:2]] == ["run a", "run b"] and len(crew.puppets) == 3


def test_an_idle_worker_takes_what_another_only_looks_at() -> None:
    crew = stage(2, "a", "b", "c")
    one, two = crew.puppets
    crew.done(two, "c")
    crew.wait(0)
    assert one.did == ["run a", "ahead b", "drop b"] and two.did == ["run c", "run b"]


def test_what_is_not_begun_is_given_back() -> None:
    crew = stage(1, "a", "b")
    assert [j.name for j in crew.recall()] == ["b"]
    assert crew.puppets[0].did[-1] == "drop b" and crew.room() == 1


def test_a_dead_worker_is_replaced_and_only_its_own_job_is_to_blame() -> None:
    crew = stage(1, "a", "b")
    crew.said.append((crew.puppets[0], Death("signal 9")))
    (result,) = crew.wait(0)
    assert isinstance(result, WorkerDied) and (result.job.name, result.why) == ("a", "signal 9")
    assert len(crew.puppets) == 2
    crew.wait(0)
    assert crew.puppets[1].did == ["run b"]


def test_a_retry_is_alone_on_a_fresh_worker() -> None:
    crew = stage(1, "a")
    crew.done(crew.puppets[0], "a")
    crew.wait(0)
    crew.submit(job("bad", attempt=2))
    crew.submit(job("c"))
    crew.wait(0)  # the worker is not fresh: it gets what needs no fresh one
    assert crew.puppets[0].did[-1] == "run c"
    crew.done(crew.puppets[0], "c")
    crew.wait(0)
    crew.wait(0)
    assert crew.puppets[0].killed and crew.puppets[1].did == ["run bad"]
    crew.submit(job("d"))
    crew.wait(0)
    assert crew.puppets[1].did == ["run bad"]  # no look-ahead beside it


def test_a_late_worker_is_stopped() -> None:
    crew = stage(1, floor=0.0)
    crew.submit(job("a"))
    result = next(r for _ in range(100) for r in crew.wait(0))
    assert (isinstance(result, WorkerDied) and result.timed_out) or crew.puppets[0].killed


def test_workers_that_cannot_start_say_why() -> None:
    with pytest.raises(UsageError, match="no such model"):
        Stage(1, UsageError("no such model")).start(WorkerSpec(Settings()))
    crew = Stage(1, Death("killed"))
    with pytest.raises(DeviceError, match="before they are ready"):
        crew.start(WorkerSpec(Settings()))
    assert len(crew.puppets) == STILLBORN
