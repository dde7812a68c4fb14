"""What a network costs: parameters, floating-point operations and time; what is counted is said beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from avtool.models.cacenet import CACENet, CACENetConfig
from avtool.models.ccln import CCLN
from avtool.models.loco import LoCo, LoCoConfig
from avtool.models.loco_segments import LoCoSegments
from avtool.models.unav import UnAV, UnAVConfig

COUNTED = (
    "a multiply-add is two operations; matrix products, convolutions, attention products and recurrent layers count, "
    "norms, activations and sums do not; one clip"
)


@dataclass(frozen=True)
class Cost:
    """Cost of one network on one clip.

    Attributes:
        name: network and input.
        parameters: all of them.
        flops: operations of one clip, see `COUNTED`.
        seconds: processor time of one clip on one thread, the best of three; NaN if it was not measured.
    """

    name: str
    parameters: int
    flops: int
    seconds: float


@contextmanager
def _recurrent_flops(network: nn.Module) -> Iterator[list[int]]:
    """Operations of every LSTM that runs inside: torch's counter does not know them."""
    counts: list[int] = []

    def note(layer: nn.LSTM, inputs: tuple[Any, ...], output: Any) -> None:
        steps = inputs[0].shape[0] * inputs[0].shape[1]
        directions = 2 if layer.bidirectional else 1
        counts.append(2 * steps * directions * 4 * layer.hidden_size * (layer.input_size + layer.hidden_size))

    hooks = [m.register_forward_hook(note) for m in network.modules() if isinstance(m, nn.LSTM)]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def flops(network: nn.Module, *inputs: torch.Tensor) -> int:
    """Operations of one call, see `COUNTED`; on the device "meta" nothing is computed."""
    # without gradients torch fuses attention into an operation that its counter does not know
    with torch.enable_grad(), _recurrent_flops(network) as recurrent, FlopCounterMode(display=False) as counter:
        network(*inputs)
    return int(counter.get_total_flops()) + sum(recurrent)


def parameters(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in network.parameters())


def measure(name: str, make: Callable[[], nn.Module], shapes: tuple[tuple[int, ...], ...], timed: bool = False) -> Cost:
    """Cost of a network.

    Args:
        name: for the table.
        make: builds it.
        shapes: of its inputs, visual and audio first; a third one is the mask.
        timed: also run it, on one thread.
    """
    network = make().eval()
    inputs = [torch.rand(shape) if i < 2 else torch.ones(shape, dtype=torch.bool) for i, shape in enumerate(shapes)]
    return Cost(
        name, parameters(network), flops(network, *inputs), _seconds(network, inputs) if timed else float("nan")
    )


def _seconds(network: nn.Module, inputs: list[torch.Tensor]) -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = []
        with torch.inference_mode():
            for _ in range(3):
                begin = time.process_time()
                network(*inputs)
                times.append(time.process_time() - begin)
        return min(times)
    finally:
        torch.set_num_threads(threads)


def _dense(length: int, visual: int, audio: int) -> tuple[tuple[int, ...], ...]:
    return (1, length, visual), (1, length, audio), (1, length)


def _clip(visual: int, audio: int) -> tuple[tuple[int, ...], ...]:
    return (1, 10, 7, 7, visual), (1, 10, audio)


TABLE: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "CACE-Net, VGG-19 + VGGish": (lambda: CACENet(CACENetConfig()), _clip(512, 128)),
    "CACE-Net, ResNet-50 + Cnn14": (lambda: CACENet(CACENetConfig(2048, 2048)), _clip(2048, 2048)),
    "CCLN-style, VGG-19 + VGGish": (lambda: CCLN(), _clip(512, 128)),
    "LoCo on segments, VGG-19 + VGGish": (lambda: LoCoSegments(), _clip(512, 128)),
    "LoCo, ONE-PEACE, 256 rows": (lambda: LoCo(LoCoConfig(1536, 1536, 100)), _dense(256, 1536, 1536)),
    "LoCo, I3D + VGGish, 224 rows": (lambda: LoCo(LoCoConfig(2048, 128, 100, max_length=224)), _dense(224, 2048, 128)),
    "UnAV, ONE-PEACE, 256 rows": (lambda: UnAV(UnAVConfig(1536, 1536, max_length=256)), _dense(256, 1536, 1536)),
    "UnAV, I3D + VGGish, 224 rows": (lambda: UnAV(), _dense(224, 2048, 128)),
}


def cost_table(timed: bool = False) -> Iterator[Cost]:
    """Costs of the published configurations, one after the other."""
    for name, (make, shapes) in TABLE.items():
        yield measure(name, make, shapes, timed)
