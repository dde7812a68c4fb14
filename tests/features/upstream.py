"""Weights in the form in which others publish them, made by chance, and the road from such a file to an encoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from avtool import weights
from avtool.features.encoders import catalog
from avtool.features.encoders.base import DEFAULT
from avtool.features.encoders.catalog import Encoder, Options

CPU = torch.device("cpu")


def shake(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights that let signals pass, and batch norms that do something."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if name.endswith(("running_var", "norm.weight")) or (tensor.dim() == 1 and name.endswith("weight")):
            tensor.uniform_(0.7, 1.3, generator=generator)
        elif tensor.dim() == 1 and tensor.is_floating_point():
            tensor.uniform_(-0.1, 0.1, generator=generator)
        elif tensor.dim() in (2, 4):
            bound = (6 / tensor[0].numel()) ** 0.5
            tensor.uniform_(-bound, bound, generator=generator)
    return network.eval()


def empty(make: Any) -> nn.Module:
    """A network built without the time that its own initialisation takes."""
    with torch.device("meta"):
        network: nn.Module = make()
    return network.to_empty(device="cpu")


def published(network: nn.Module, file: Path, wrapper: str = "") -> Path:
    """The network's state dict as torch.save writes it."""
    state: Any = network.state_dict()
    torch.save({wrapper: state} if wrapper else state, file)
    return file


def hashless() -> dict[str, weights.WeightsFile]:
    """The manifest as if no hash were known: random weights can then take the names of the real ones."""
    unknown = {"sha256": "", "also": (), "md5": "", "sha256_prefix": "", "bytes": 0, "pinned": False}
    return {name: e if e.file else replace(e, **unknown) for name, e in weights.manifest().items()}  # type: ignore[arg-type]


def imported(file: Path, name: str, options: Options = DEFAULT) -> Encoder:
    """Through the road that users take: import the file, then ask for the encoder by name."""
    known, table = hashless(), catalog.VISUAL if name in catalog.VISUAL else catalog.AUDIO
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "manifest", lambda: known)
        weights.import_weights(file, name, accept_unpinned=True)
        file.unlink()
        return table[name](CPU, options)


def far(given: Tensor, expected: Tensor) -> float:
    """Relative distance."""
    return float((given - expected).norm() / expected.norm())
