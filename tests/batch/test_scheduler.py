"""The scheduler with pools that fail on purpose: every job ends in exactly one record."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avtool.batch.plan import Job, longest_first
from avtool.batch.scheduler import Outcome, WorkerDied, WorkerSpec, run

Answer = Callable[[Job], Outcome | WorkerDied]


def job(name: str, duration: float = 1.0) -> Job:
    return Job(Path(name), name, duration, "f", {})


def done(one: Job) -> Outcome:
    return Outcome(one.name, "done", one.attempt)


class FakePool:
    """Answers as told, several jobs in flight, the newest first."""

    def __init__(self, answer: Answer, slots: int) -> None:
        self.slots, self._answer = slots, answer
        self._flying: deque[Job] = deque()
        self.order: list[str] = []
        self.most = 0

    def start(self, spec: WorkerSpec) -> None: ...

    def submit(self, job: Job) -> None:
        self._flying.append(job)
        self.order.append(job.name)
        self.most = max(self.most, len(self._flying))

    def wait(self, timeout: float) -> list[Outcome | WorkerDied]:
        return [self._answer(self._flying.pop())] if self._flying else []

    def close(self) -> None: ...


def test_the_longest_first() -> None:
    pool = FakePool(done, 1)
    run([job("a", 1), job("b", 3), job("c", 3), job("d", 2)], pool, lambda outcome: None)
    assert pool.order == ["b", "c", "d", "a"]
    assert [j.name for j in longest_first([job("z", 0.0), job("y", 5.0)])] == ["y", "z"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(["fine", "fails", "dies", "dies once", "node lost"]), max_size=12), st.integers(1, 4))
def test_every_job_ends_in_exactly_one_record(fates: list[str], slots: int) -> None:
    lost: set[str] = set()

    def answer(one: Job) -> Outcome | WorkerDied:
        fate = fates[int(one.name)]
        if fate == "dies" or (fate == "dies once" and one.attempt == 1):
            return WorkerDied(one, "signal 11")
        if fate == "node lost" and one.name not in lost:
            lost.add(one.name)
            return WorkerDied(one, "gone", node_lost=True)
        return Outcome(one.name, "failed" if fate == "fails" else "done", one.attempt)

    records: list[Outcome] = []
    pool = FakePool(answer, slots)
    run([job(str(i)) for i in range(len(fates))], pool, records.append)
    assert sorted(int(r.name) for r in records) == list(range(len(fates)))
    assert pool.most <= slots
    expected = {"fine": ("done", 1), "fails": ("failed", 1), "dies": ("quarantined", 2)}
    expected |= {"dies once": ("done", 2), "node lost": ("done", 1)}
    for record in records:
        assert (record.state, record.attempt) == expected[fates[int(record.name)]]


def test_what_a_record_raises_ends_the_run() -> None:
    def record(outcome: Outcome) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError):
        run([job("a"), job("b")], FakePool(done, 1), record)
