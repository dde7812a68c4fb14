"""Each stream of LoCo's pyramid attends to the other one, and only where it is told to."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from avtool.models.loco import LoCo, LoCoConfig


@pytest.mark.parametrize("attention", ["adaptive", "fixed", "global", "none"])
def test_each_stream_attends_to_the_other(attention: Any) -> None:
    torch.manual_seed(0)
    model = LoCo(LoCoConfig.tiny(6, 5, 3, width=8, heads=2, levels=2, attention=attention)).eval()
    visual, audio = (torch.randn(1, 8, 12, requires_grad=True) for _ in range(2))  # (B, D, T)
    mask = torch.ones(1, 1, 12, dtype=torch.bool)
    for level, (v, a, _) in enumerate(model._pyramid(visual, audio, mask)):
        crosses = [torch.autograd.grad(out.square().sum(), other, retain_graph=True, allow_unused=True)[0]
                   for out, other in ((v, audio), (a, visual))]  # fmt: skip
        for direction, gradient in zip(("sound to picture", "picture to sound"), crosses, strict=True):
            reached = gradient is not None and bool(gradient.abs().max() > 1e-8)
            assert reached == (attention != "none"), f"level {level}, {direction}"
