"""Real ResNet-50 weights, in torchvision's file format and through our loader, know what is on photographs."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from avtool.features.encoders.catalog import Encoder
from tests.features.upstream import imported

PHOTOGRAPHS = 80
SOURCE = "EliSchwartz/imagenet-sample-images"  # one photograph per class


def expanded(codebooks: Path) -> dict[str, torch.Tensor]:
    """The vector-quantised weights as torchvision's state dict, as the README beside them says."""
    packed = torch.load(codebooks, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        shapes = torchvision.models.resnet50(weights=None).state_dict()
    state = {}
    for name, like in shapes.items():
        codes = name.removesuffix(".weight") + ".codes_matrix"
        if name in packed:
            state[name] = packed[name].float()
        elif codes in packed:
            book = packed[name.removesuffix(".weight") + ".codebook"]
            state[name] = book.float()[packed[codes].long()].reshape(like.shape)
        else:
            value = {"running_var": 1.0, "running_mean": 0.0, "num_batches_tracked": 0}[name.rpartition(".")[2]]
            state[name] = torch.full(like.shape, value, dtype=like.dtype)
    return state


@pytest.fixture(scope="module")
def photographs(shared: Path) -> list[tuple[Path, int]]:
    """Photographs and the index of their class, which the table notes as "ImageNet class 398"."""
    with open(shared / "corpus" / "images.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == SOURCE]
    chosen = rows[:: max(1, len(rows) // PHOTOGRAPHS)][:PHOTOGRAPHS]
    return [(shared / "corpus" / row["file"], int(row["note"].split()[-1])) for row in chosen]


def scores(encoder: Encoder, files: list[Path]) -> Iterator[np.ndarray]:
    assert encoder.prepare is not None
    for file in files:
        pixels = np.array(Image.open(file).convert("RGB"))
        with torch.inference_mode():
            _, logits = encoder.run(torch.from_numpy(np.ascontiguousarray(encoder.prepare(pixels)))[None])
        assert logits is not None
        yield logits[0].numpy()


def test_photographs_are_recognised(shared: Path, photographs: list[tuple[Path, int]], tmp_path: Path) -> None:
    torch.save(expanded(shared / "weights" / "resnet50_pqf_codebook.pth"), tmp_path / "resnet50.pth")
    encoder = imported(tmp_path / "resnet50.pth", "resnet50-v1")
    given = scores(encoder, [file for file, _ in photographs])
    ranks = [int((row > row[index]).sum()) for (_, index), row in zip(photographs, given, strict=True)]
    first, five = np.mean([rank == 0 for rank in ranks]), np.mean([rank < 5 for rank in ranks])
    assert len(ranks) == PHOTOGRAPHS
    assert first > 0.65 and five > 0.85, (first, five)  # at full size 0.83 and 0.96; these have 160 pixels
