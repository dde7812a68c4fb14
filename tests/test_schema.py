"""The published schema of the timeline, and the part of it that ActivityNet's evaluators read."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avtool.timeline import SCHEMA, Curves, Event, Evidence, Notice, Timeline, to_json
from tests.cli.fakes import make_timeline
from tests.formats.timelines import TIMELINES, thousand

jsonschema = pytest.importorskip("jsonschema")


@pytest.fixture(scope="module")
def validator(repo: Path) -> Any:
    schema = json.loads((repo / "avtool" / "data" / "timeline.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["title"] == SCHEMA == schema["properties"]["version"]["const"]
    return jsonschema.Draft202012Validator(schema)


def explained() -> Timeline:
    curves = Curves(("a", "b"), 0.5, np.zeros((4, 2), np.uint8))
    evidence = Evidence(curves, curves, (Event(0.0, 1.0, "a", 0.5),), ())
    return make_timeline(evidence=evidence, curves=curves, warnings=(Notice("code", "text"),), best_score=0.9)


def silent() -> Timeline:
    timeline = make_timeline(events=(), candidates=())
    media = replace(timeline.media, video=None, audio=None, has_audio=False, has_video=False, declared_duration=None)
    return replace(timeline, media=media)


@pytest.mark.parametrize("timeline", [*TIMELINES.values(), thousand(50), explained(), silent()])
def test_what_is_written_obeys_the_schema(validator: Any, timeline: Timeline) -> None:
    validator.validate(json.loads(to_json(timeline)))


def names_of(schema: dict[str, Any]) -> set[str]:
    return set(schema["properties"])


def test_the_schema_names_everything_that_is_written(validator: Any) -> None:
    data, schema = json.loads(to_json(explained())), validator.schema
    assert set(data) == names_of(schema)
    for part in ("media", "run", "evidence", "external_data"):
        assert set(data[part]) == names_of(schema["properties"][part])
    assert set(data["curves"]) == names_of(schema["$defs"]["curves"])
    assert set(data["candidates"][0]) == names_of(schema["$defs"]["event"])
    for stream in ("video", "audio"):
        assert set(data["media"][stream]) == names_of(schema["properties"]["media"]["properties"][stream]["anyOf"][1])


@pytest.mark.parametrize(
    "change",
    [
        {"version": "avtool timeline 2"},
        {"candidates": [{"label": "a", "segment": [1.0], "score": 0.5}]},
        {"candidates": [{"label": "a", "segment": [1.0, 2.0, 3.0], "score": 0.5}]},
        {"candidates": [{"label": "a", "segment": [1.0, 2.0], "score": 1.5}]},
        {"results": {}},
        {"best_score": "high"},
        {"media": {}},
    ],
)
def test_the_schema_refuses_what_is_wrong(validator: Any, change: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({**json.loads(to_json(make_timeline())), **change})


# ---------------------------------------------------------------- ActivityNet


def interpolated_precision(precision: list[float], recall: list[float]) -> float:
    """Area under the precision envelope, as PASCAL VOC 2010 and ActivityNet define it."""
    points = [(0.0, 0.0), *zip(recall, precision, strict=True), (1.0, 0.0)]
    best, area = 0.0, 0.0
    for (left, _), (right, height) in reversed(list(pairwise(points))):
        best = max(best, height)
        area += (right - left) * best
    return area


def evaluate(submission: dict[str, Any], truth: dict[str, Any], tiou: float) -> dict[str, float]:
    """AP by class in the way of ActivityNet's detection task: greedy by score, each true segment matched once.

    It asks for the three fields that their tool asks for and reads nothing else.
    """
    assert {"results", "version", "external_data"} <= set(submission)
    found = [(name, d) for name, detections in submission["results"].items() for d in detections]
    true = [(name, a) for name, video in truth["database"].items() for a in video["annotations"]]
    scores = {}
    for label in {a["label"] for _, a in true}:
        open_ = [(name, a["segment"]) for name, a in true if a["label"] == label]
        total, hits, precision, recall = len(open_), 0, [], []
        ranked = sorted((x for x in found if x[1]["label"] == label), key=lambda x: -x[1]["score"])
        for rank, (name, d) in enumerate(ranked, 1):
            start, end = d["segment"]

            def overlap(other: tuple[str, list[float]], of: str = name, a: float = start, b: float = end) -> float:
                if other[0] != of:
                    return 0.0
                shared = max(0.0, min(b, other[1][1]) - max(a, other[1][0]))
                return shared / (b - a + other[1][1] - other[1][0] - shared)

            best = max(open_, key=overlap, default=None)
            if best is not None and overlap(best) >= tiou:
                open_.remove(best)
                hits += 1
            precision.append(hits / rank)
            recall.append(hits / total)
        scores[label] = interpolated_precision(precision, recall)
    return scores


def test_an_evaluator_reads_the_json_as_it_is() -> None:
    events = (
        Event(1.0, 3.0, "dog bark", 0.9),
        Event(5.0, 6.0, "dog bark", 0.8),
        Event(8.0, 9.5, "dog bark", 0.7),
        Event(1.0, 2.0, "horn", 0.5),
    )
    truth = {
        "database": {
            "street": {
                "annotations": [
                    {"label": "dog bark", "segment": [1.0, 3.0]},
                    {"label": "dog bark", "segment": [8.0, 10.0]},
                    {"label": "horn", "segment": [1.5, 2.5]},
                ]
            }
        }
    }
    submission = json.loads(to_json(make_timeline(events=events)))
    assert evaluate(submission, truth, 0.5) == pytest.approx({"dog bark": (1 + 2 / 3) / 2, "horn": 0.0})
    assert evaluate(submission, truth, 0.3) == pytest.approx({"dog bark": (1 + 2 / 3) / 2, "horn": 1.0})


def test_our_own_evaluator_agrees_with_that_one() -> None:
    from avtool.evaluation.map import Segments, mean_ap

    source = np.random.default_rng(3)
    starts = np.sort(source.uniform(0, 90, 12))
    true = [{"label": f"c{i % 3}", "segment": [float(s), float(s + 3)]} for i, s in enumerate(starts)]
    events = tuple(
        Event(float(s + source.normal(0, 1)) + 5, float(s + 3 + source.normal(0, 1)) + 5, f"c{i % 3}", float(p))
        for i, (s, p) in enumerate(zip(np.repeat(starts, 2) - 5, source.permutation(24) / 24, strict=True))
    )
    submission = json.loads(to_json(make_timeline(events=events)))
    theirs = evaluate(submission, {"database": {"street": {"annotations": true}}}, 0.4)
    detections = submission["results"]["street"]

    def segments(records: list[dict[str, Any]], scores: list[float]) -> Segments:
        return Segments(
            np.array(["street"] * len(records)),
            np.array([r["segment"][0] for r in records]),
            np.array([r["segment"][1] for r in records]),
            np.array([r["label"] for r in records]),
            np.array(scores),
        )

    ours = mean_ap(segments(true, [1.0] * len(true)), segments(detections, [d["score"] for d in detections]), [0.4])
    assert 0.05 < ours.ap.mean() < 0.95
    assert sorted(ours.ap[0]) == pytest.approx(sorted(theirs.values()), abs=1e-9)
