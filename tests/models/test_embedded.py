"""The trained networks that ship: whole, of one vocabulary, described, and running on a raw video without a network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from avtool.models import zoo
from avtool.pipeline import localize
from avtool.session import Session
from avtool.settings import Settings

NETWORKS = {"cacenet-mini": "cace", "ccln-mini": "ccln", "loco-mini": "loco"}
LARGEST = 6_000_000  # bytes


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_ships(name: str, repo: Path) -> None:
    localizer = zoo.load(name, torch.device("cpu"))
    info, default = localizer.info, zoo.available()[0]
    assert (info.kind, info.visual, info.audio) == (NETWORKS[name], ("mini",), ("mini",))
    assert info.vocabulary.names == default.vocabulary.names and 0 < info.vocabulary.tiers.count("default") < 117
    assert all(0 < t < 1 for t in info.vocabulary.thresholds)
    assert (repo / "weights" / f"{name}.safetensors").stat().st_size < LARGEST
    card = (repo / "weights" / f"{name}.md").read_text(encoding="utf-8")
    assert f"# Model card: `{name}`" in card and "**Figures.**" in card and "**Licence.**" in card


def test_the_card_of_ccln_says_whose_it_is(repo: Path) -> None:
    card = " ".join((repo / "weights" / "ccln-mini.md").read_text(encoding="utf-8").split())
    assert "our reading of the abstract" in card and "not a result of CCLN" in card


@pytest.mark.parametrize("name", NETWORKS)
def test_the_demo_clip(name: str, repo: Path) -> None:
    """An accordion is seen alone and birds are heard alone; a siren is both."""
    settings = Settings(model=name, classes=("all",), min_score=0.02)
    with Session(settings) as session:
        found = localize(repo / "examples" / "demo.mp4", session=session)
    assert found.run.model == name and not found.warnings
    assert found.candidates and all(0 <= e.start < e.end <= found.media.duration for e in found.candidates)
    best = {e.label: e.score for e in sorted(found.candidates, key=lambda e: e.score)}
    if name != "loco-mini":  # it puts a car first
        assert best["siren"] > max(best.get(label, 0) for label in ("accordion", "bird"))
