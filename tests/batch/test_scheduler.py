"""The scheduler with pools that fail on purpose: every job ends in exactly one record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avtool.batch.jobs import UNREACHABLE, Ended, Hello, Job, Outcome, Result, WorkerDied, WorkerSpec
from avtool.batch.scheduler import WINDOW, Scheduler

Answer = Callable[[Job], Result]


def job(name: str, duration: float = 1.0) -> Job:
    return Job(Path(name), name, duration, "f", {})


def done(one: Job) -> Result:
    return Ended(one, Outcome(one.name, "done", attempt=one.attempt))


class ListFeed:
    """A plan that is there at once."""

    def __init__(self, items: Sequence[Job | Outcome]) -> None:
        self._items = list(items)

    def take(self, most: int) -> list[Job | Outcome]:
        taken, self._items = self._items[:most], self._items[most:]
        return taken

    def settle(self, seconds: float) -> None: ...

    @property
    def ended(self) -> bool:
        return not self._items


class FakePool:
    """Answers as told, several jobs in hand, the newest first; `held` of them are not begun."""

    def __init__(self, answer: Answer, slots: int, held: int = 0) -> None:
        self._slots, self._answer, self._held = slots, answer, held
        self._flying: list[Job] = []
        self.order: list[str] = []

    def start(self, spec: WorkerSpec, files: int = 1) -> Hello:
        return Hello({})

    def room(self) -> int:
        return self._slots - len(self._flying)

    def submit(self, job: Job) -> None:
        self._flying.append(job)
        self.order.append(job.name)
        assert len(self._flying) <= self._slots

    def recall(self) -> list[Job]:
        count = min(self._held, len(self._flying))
        back, self._flying = self._flying[:count], self._flying[count:]
        return back

    def wait(self, timeout: float) -> list[Result]:
        return [self._answer(self._flying.pop())] if self._flying else []

    def close(self) -> None: ...


class FakeClaims:
    """Some jobs are in other hands when they are asked for; `later` says what becomes of them."""

    def __init__(self, later: dict[str, str]) -> None:
        self._later, self._asked = later, Counter[str]()
        self.held: set[str] = set()

    def take(self, job: Job) -> str:
        self._asked[job.name] += 1
        state = self._later.get(job.name, "mine")
        state = "taken" if job.name in self._later and self._asked[job.name] == 1 else state
        if state == "mine":
            self.held.add(job.name)
        return state

    def release(self, job: Job) -> None:
        self.held.remove(job.name)

    def beat(self) -> None: ...


def run(jobs: Sequence[Job | Outcome], pool: FakePool, **options: Any) -> list[Outcome]:
    records: list[Outcome] = []
    options = {"record": records.append, "back_off": 0.0, **options}
    Scheduler(ListFeed(jobs), pool, **options).run()
    return records


def test_the_longest_first() -> None:
    pool = FakePool(done, 1)
    run([job("a", 1), job("b", 3), job("c", 3), job("d", 2)], pool)
    assert pool.order == ["b", "c", "d", "a"]


def test_the_longest_first_also_beyond_the_window() -> None:
    pool = FakePool(done, 1)
    run([*(job(f"{i:05}", 1) for i in range(WINDOW + 10)), job("long", 9)], pool)
    assert pool.order.index("long") < 15


FATES = ["fine", "fails", "dies", "dies once", "node lost", "late", "unreachable", "unreachable once", "planned"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(FATES), max_size=12), st.integers(1, 4))
def test_every_job_ends_in_exactly_one_record(fates: list[str], slots: int) -> None:
    lost: set[str] = set()

    def answer(one: Job) -> Result:
        fate = fates[int(one.name)]
        if fate == "dies" or (fate == "dies once" and one.attempt == 1):
            return WorkerDied(one, "signal 11")
        if fate == "late":
            return WorkerDied(one, "late", timed_out=True)
        if fate == "node lost" and one.name not in lost:
            lost.add(one.name)
            return WorkerDied(one, "gone", node_lost=True)
        if fate == "unreachable" or (fate == "unreachable once" and one.tries == 1):
            return Ended(one, Outcome(one.name, "failed", UNREACHABLE, one.attempt, what=str(one.tries)))
        return Ended(one, Outcome(one.name, "failed" if fate == "fails" else "done", attempt=one.attempt))

    claims = FakeClaims({})
    items = [Outcome(str(i), "skipped") if fates[i] == "planned" else job(str(i)) for i in range(len(fates))]
    records = run(items, FakePool(answer, slots), claims=claims)
    assert sorted(int(r.name) for r in records) == list(range(len(fates)))
    assert not claims.held
    expected = {"fine": ("done", 1), "fails": ("failed", 1), "dies": ("quarantined", 2), "late": ("quarantined", 2)}
    expected |= {"dies once": ("done", 2), "node lost": ("done", 1), "planned": ("skipped", 1)}
    expected |= {"unreachable": ("failed", 1), "unreachable once": ("done", 1)}
    for record in records:
        fate = fates[int(record.name)]
        assert (record.state, record.attempt) == expected[fate]
        assert record.what == "4" or fate != "unreachable"
        assert {"dies": "crash", "late": "timeout"}.get(fate, record.kind) == record.kind


def test_what_a_record_raises_ends_the_run() -> None:
    def record(outcome: Outcome) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError):
        run([job("a"), job("b")], FakePool(done, 1), record=record)


def test_after_a_stop_only_what_is_begun_is_finished() -> None:
    asked = [False]

    def answer(one: Job) -> Result:
        asked[0] = True
        return done(one)

    pool, claims = FakePool(answer, 4, held=2), FakeClaims({})
    records = run([job(str(i)) for i in range(10)], pool, stop=lambda: asked[0], claims=claims)
    assert len(pool.order) == 4 and len(records) == 2
    assert not claims.held


def test_what_another_run_has_in_hand_is_looked_at_again() -> None:
    claims = FakeClaims({"a": "finished", "b": "taken", "c": "mine"})
    records = run([job(name) for name in "abcd"], FakePool(done, 2), claims=claims)
    assert {r.name: r.state for r in records} == {"a": "skipped", "b": "elsewhere", "c": "done", "d": "done"}
    assert not claims.held


def test_a_retry_comes_before_what_is_new() -> None:
    order: list[tuple[str, int]] = []

    def answer(one: Job) -> Result:
        order.append((one.name, one.attempt))
        return WorkerDied(one, "x") if one.name == "b" and one.attempt == 1 else done(one)

    run([job("a", 9), job("b", 8), job("c", 7), job("d", 6)], FakePool(answer, 1))
    assert order == [("a", 1), ("b", 1), ("b", 2), ("c", 1), ("d", 1)]


def test_deadlines() -> None:
    from avtool.settings import Settings

    spec = WorkerSpec(Settings(), timeout_floor=100, timeout_factor=2)
    assert spec.deadline(job("a", 10)) == 100 and spec.deadline(job("a", 60)) == 120
    assert spec.deadline(replace(job("a", 0), url="s3://a", bytes=10**9)) == 2000
