"""What every encoder has in common: its record, its options, and how a network takes its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from avtool.errors import UsageError, WeightsError
from avtool.media.request import PictureSpec
from avtool.settings import did_you_mean

Run = Callable[[Tensor], tuple[Tensor, Tensor | None]]  # inputs -> embedding (B, ...), class logits (B, K) or None
Pixels = npt.NDArray[np.uint8]

POOLS = ("gap", "none")
PRECISIONS = ("float32", "bf16")


@dataclass(frozen=True)
class Options:
    """How an encoder is wanted, where it leaves a choice.

    Attributes:
        pool: of pictures: "gap" averages the last map to one vector, "none" keeps it (H, W, D).
        precision: "float32", or "bf16" for weights and activations: faster where the processor knows it, and off by
            up to 2 % of the embedding's length.
        protocol: a published way of using the network, by a name of its own; "" is the first of them.
        tags: whether class scores are wanted; without them VGG-19 needs 0.5 GB less memory.
    """

    pool: str = "gap"
    precision: str = "float32"
    protocol: str = ""
    tags: bool = True


DEFAULT = Options()


@dataclass(frozen=True)
class Encoder:
    """One ready encoder.

    Attributes:
        name: as in `--visual` and `--audio`.
        modality: "visual" or "audio".
        dim: length of an embedding's last axis.
        tags: number of class scores: 1000 (ImageNet), 527 (AudioSet) or 0.
        run: visual: uint8 RGB (B, H, W, 3); audio: float32 mono (B, samples). Gives embeddings (B, D), or
            (B, H, W, D) where they are not pooled, and logits.
        sha256: of its weights.
        pictures: how a picture leaves the decoder (visual).
        prepare: takes one decoded picture to the uint8 RGB (H, W, 3) that `run` wants; None: it is that already.
        scaling: in words, how a picture gets its size; "" : what `pictures` says.
        rate, seconds: sample rate in Hz and length of the window that one row sees (audio).
        before: seconds of the window that lie before the row's centre; None: half of it.
        alone: a window that reaches beyond the sound is filled with silence instead of being shifted inwards.
        licence: of the weights.
        options: what was asked for.
        at_once: inputs in a batch on a CPU, where more would cost memory; 0: as many as is usual.
    """

    name: str
    modality: str
    dim: int
    tags: int
    run: Run
    sha256: str
    pictures: PictureSpec | None = None
    rate: int = 0
    seconds: float = 0.0
    licence: str = ""
    prepare: Callable[[Pixels], Pixels] | None = None
    scaling: str = ""
    before: float | None = None
    alone: bool = False
    options: Options = DEFAULT
    at_once: int = 0


def choose(what: str, wanted: str, known: tuple[str, ...]) -> str:
    """The option that is named; the first of `known` if none is.

    Raises:
        UsageError: there is no such option.
    """
    if wanted and wanted not in known:
        raise UsageError(f"no {what} '{wanted}'", f"there are: {', '.join(known)}", did_you_mean(wanted, list(known)))
    return wanted or known[0]


def dtype_of(precision: str) -> torch.dtype:
    """The type of weights and activations.

    Raises:
        UsageError: there is no such precision.
    """
    return torch.bfloat16 if choose("precision", precision, PRECISIONS) == "bf16" else torch.float32


def pooled(maps: Tensor, pool: str) -> Tensor:
    """Maps (B, D, H, W) to (B, D) or, with pool "none", (B, H, W, D).

    Raises:
        UsageError: there is no such pooling.
    """
    return maps.mean((2, 3)) if choose("pool", pool, POOLS) == "gap" else maps.permute(0, 2, 3, 1).contiguous()


# ---------------------------------------------------------------- weights


def shell(make: Callable[[], nn.Module]) -> nn.Module:
    """A network without memory for its weights; they are assigned, not copied, by `fill`."""
    with torch.device("meta"):
        return make().eval()


def unused(name: str) -> bool:
    """Whether nothing reads this tensor at inference: batch norm's count of training steps."""
    return name.endswith("num_batches_tracked")


def fill(network: nn.Module, state: Mapping[str, Tensor], name: str) -> nn.Module:
    """Gives a network its weights as float32, without a copy where they are that already.

    Raises:
        WeightsError: the tensors are not exactly those of the network; names the first that is wrong.
    """
    checked = matched(network, state, name)
    network.load_state_dict(checked, strict=False, assign=True)  # nothing is missing but step counts
    return network.requires_grad_(False).eval()


def kept(layer: Any) -> Any:
    """A layer with memory of its own: as long as one tensor of a file is in use, all of the file stays in memory."""
    for parameter in layer.parameters():
        parameter.data = parameter.data.clone()
    return layer


def matched(network: nn.Module, state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The float32 tensors of a state dict if they are exactly those of the network.

    Raises:
        WeightsError: naming the first that is missing, foreign or of another shape.
    """
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items() if not unused(key)}
    given = {key: value for key, value in state.items() if not unused(key)}
    for key in sorted(wanted.keys() | given.keys()):
        if key not in given:
            raise foreign(name, f"tensor {key} is missing")
        if key not in wanted:
            raise foreign(name, f"tensor {key} is not part of it")
        if tuple(given[key].shape) != wanted[key]:
            raise foreign(name, f"tensor {key} has shape {tuple(given[key].shape)}, not {wanted[key]}")
    return {key: value.to(torch.float32) for key, value in given.items()}


def foreign(name: str, why: str) -> WeightsError:
    """The error for weights of another network."""
    return WeightsError(f"these weights are not those of the network '{name}'", why, "avtool weights verify")


def tensors(state: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """A state dict whose values are tensors or numpy arrays, as tensors.

    Raises:
        WeightsError: a value is neither.
    """
    given: dict[str, Tensor] = {}
    for key, value in state.items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            value = torch.from_numpy(np.ascontiguousarray(value))
        if not isinstance(value, Tensor):
            raise foreign(name, f"entry {key} is {type(value).__name__}, not a tensor")
        given[key] = value
    return given
