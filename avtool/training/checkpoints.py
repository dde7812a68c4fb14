"""The state of a training as one safetensors file: tensors by name, everything else as JSON in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from avtool.errors import WeightsError
from avtool.files import printable, write_atomic

OPTIMISER, OTHER = "optimiser", "other"


def write_checkpoint(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimiser: torch.optim.Optimizer | None,
    about: Mapping[str, Any],
    other: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes a state, atomically: a process that is killed leaves the one before.

    Args:
        path: where.
        modules: what is trained, by names without "/".
        optimiser: whose moments belong to the state; None: none do.
        about: how far the training is; plain data, floats come back exactly.
        other: further tensors.

    Raises:
        OutputError: it cannot be written.
    """
    tensors = {f"{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    moments = optimiser.state_dict()["state"] if optimiser is not None else {}
    for index, values in moments.items():
        tensors |= {f"{OPTIMISER}/{index}/{k}": torch.as_tensor(v) for k, v in values.items() if v is not None}
    tensors |= {f"{OTHER}/{name}": value for name, value in (other or {}).items()}
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_atomic(path, save(plain, {"about": json.dumps(about)}))


def read_about(path: Path) -> dict[str, Any]:
    """How far a stored training is.

    Raises:
        WeightsError: it is no such file.
    """
    try:
        with safe_open(path, "pt") as file:
            about: dict[str, Any] = json.loads(file.metadata()["about"])
            return about
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def read_checkpoint(
    path: Path, modules: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer | None = None
) -> dict[str, Tensor]:
    """Gives modules and optimiser the state that `write_checkpoint` wrote.

    Args:
        path: of the file.
        modules: as they were written; the file may hold more.
        optimiser: None: leave its moments.

    Returns:
        The further tensors.

    Raises:
        WeightsError: it is no such file, or of other modules.
    """
    try:
        tensors = load_file(path)
        for name, module in modules.items():
            module.load_state_dict(_part(tensors, name))
        if optimiser is not None:
            _restore(optimiser, _part(tensors, OPTIMISER))
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from error
    return _part(tensors, OTHER)


def read_part(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors of one module of a state.

    Raises:
        WeightsError: it is no such file.
    """
    try:
        return _part(load_file(path), name)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error


def _part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}


def _restore(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split("/")
        moments.setdefault(int(index), {})[name] = value
    table = optimiser.state_dict()
    table["state"] = moments
    optimiser.load_state_dict(table)


def _damaged(path: Path, error: Exception) -> WeightsError:
    why = str(error).splitlines()[0] if str(error) else type(error).__name__
    return WeightsError(f"{printable(path)} is no state of this training", why, "remove it to begin anew")
