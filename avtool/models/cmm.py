"""The cross-modal matching network of AVE (ECCV 2018): two towers per segment, compared by distance (avel.md 8.2)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avtool.errors import UsageError, WeightsError
from avtool.files import printable
from avtool.tensorfiles import unpack

SLOPE = 0.3  # Keras's LeakyReLU
FLOOR = 1e-7  # of a squared distance, whose root has no slope at 0
MARGIN = 2.0
LAYERS = {"dense_1": "visual.0", "dense_2": "visual.2", "dense_3": "audio.0", "dense_4": "audio.2"}  # Keras -> here


class MatchingNetwork(nn.Module):
    """Embeds single segments, without their context: equal content gives equal embeddings wherever it stands.

    Args:
        visual_dim: 512, the globally pooled map.
        audio_dim: 128.
        hidden, width: of both towers.
        unit: embeddings of length 1, as the CCLN-style towers have them (avel.md 9.2); the ECCV network has them free.
    """

    def __init__(
        self, visual_dim: int = 512, audio_dim: int = 128, hidden: int = 128, width: int = 64, unit: bool = False
    ) -> None:
        super().__init__()
        self.unit = unit
        self.visual, self.audio = (
            nn.Sequential(nn.Linear(inputs, hidden), nn.LeakyReLU(SLOPE), nn.Linear(hidden, width))
            for inputs in (visual_dim, audio_dim)
        )

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """visual (..., T, [H, W,] Cv), audio (..., T, Ca) -> embeddings (..., T, width) of both.

        Raises:
            UsageError: the tensors do not fit the network.
        """
        visual = visual.flatten(audio.ndim - 1, -2).mean(audio.ndim - 1) if visual.ndim > audio.ndim else visual
        for name, x, tower in (("visual", visual, self.visual), ("audio", audio, self.audio)):
            first = tower[0]
            assert isinstance(first, nn.Linear)
            if x.shape[-1] != first.in_features:
                raise UsageError(
                    f"{name} features have {x.shape[-1]} columns", f"the network reads {first.in_features}"
                )
        v, a = self.visual(visual), self.audio(audio)
        return (F.normalize(v, dim=-1), F.normalize(a, dim=-1)) if self.unit else (v, a)


def matching_loss(visual: Tensor, audio: Tensor, events: Tensor) -> Tensor:
    """Contrastive loss of synchronous segments: together where they are an event, `MARGIN` apart where not.

    Args:
        visual, audio: (..., d) embeddings.
        events: (...) 1 where the segment is an event.
    """
    squared = ((visual - audio) ** 2).sum(-1).clamp(min=FLOOR)
    return (events * squared + (1 - events) * F.relu(MARGIN - squared.sqrt()) ** 2).mean()


def load_matching(file: str | Path) -> MatchingNetwork:
    """The trained baseline as AVE's authors publish it, `cmm_model_weights.h5` of Keras.

    Raises:
        WeightsError: the file cannot be read, or holds other layers.
    """
    path = Path(file)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{printable(path)} cannot be read", error.strerror or "") from error
    arrays = unpack(path, data)
    try:
        if not isinstance(arrays, Mapping):
            raise KeyError("no arrays by name")
        state = {}
        for theirs, ours in LAYERS.items():
            state[f"{ours}.weight"] = arrays[f"{theirs}/{theirs}/kernel:0"].T.contiguous()
            state[f"{ours}.bias"] = arrays[f"{theirs}/{theirs}/bias:0"]
        hidden, visual_dim = state["visual.0.weight"].shape
        network = MatchingNetwork(visual_dim, state["audio.0.weight"].shape[1], hidden, len(state["visual.2.bias"]))
        network.load_state_dict({name: tensor.to(torch.float32) for name, tensor in state.items()})
    except (KeyError, ValueError, RuntimeError, AttributeError) as error:
        raise WeightsError(f"{printable(path)} is no matching network", str(error).splitlines()[0]) from error
    return network.eval()
