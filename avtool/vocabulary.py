"""Ordered class names, which of them a model vouches for, and how a user's words find them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from avtool.calibration import Calibration
from avtool.errors import UsageError
from avtool.files import printable

DEFAULT = "default"  # classes shown unless others are asked for
EXPERIMENTAL = "experimental"  # classes shown with `--classes all`
ALL = "all"
TIERS = (DEFAULT, EXPERIMENTAL)
SUGGESTIONS = 3


def _read(name: str) -> tuple[str, ...]:
    """One name per line, in index order."""
    return tuple((Path(__file__).parent / "data" / f"{name}.txt").read_text(encoding="utf-8").splitlines())


AUDIOSET = _read("audioset")  # 527 display names in the index order of class_labels_indices.csv
IMAGENET = _read("imagenet")  # 1000 names in torchvision's order; the two cranes, maillots and cardigans told apart
AVE = _read("ave")  # 28 names in the order in which they first appear in the data set's Annotations.txt


@dataclass(frozen=True)
class Vocabulary:
    """The classes of one localizer, in the order of its outputs.

    Attributes:
        names: unique, also when case and the kind of space are ignored.
        tiers: one of TIERS per class; empty: every class is in the default tier.
        thresholds: the score in [0, 1] from which a candidate of a class is an event; empty: the model has none.
        calibration: makes probabilities of the localizer's scores; thresholds are probabilities then. None: scores are
            shown as they are computed.

    Raises:
        ValueError: lengths differ, a name comes twice or is empty, a tier is unknown, a threshold is not in [0, 1].
    """

    names: tuple[str, ...]
    tiers: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        for what, values in (("tiers", self.tiers), ("thresholds", self.thresholds)):
            if values and len(values) != len(self.names):
                raise ValueError(f"{len(values)} {what} for {len(self.names)} names")
        if self.calibration and len(self.calibration.maps) != len(self.names):
            raise ValueError(f"{len(self.calibration.maps)} calibrations for {len(self.names)} names")
        if len(self._index) != len(self.names) or "" in self._index:
            raise ValueError("class names must be unique and not empty")
        if unknown := set(self.tiers) - set(TIERS):
            raise ValueError(f"unknown tiers {sorted(unknown)}")
        if not all(math.isfinite(t) and 0 <= t <= 1 for t in self.thresholds):
            raise ValueError("thresholds must lie in [0, 1]")

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {_plain(name): i for i, name in enumerate(self.names)}

    def index(self, name: str) -> int:
        """Index of a class; case and the difference between space, underscore and hyphen do not matter.

        Raises:
            UsageError: there is no such class; close names are suggested.
        """
        found = self._index.get(_plain(name))
        if found is None:
            close = " or ".join(f"'{s}'" for s in self.suggest(name))
            question = f"; did you mean {close}?" if close else ""
            what = f"no class '{printable(name)}'{question}"
            raise UsageError(what, f"the model knows {len(self.names)} classes", "avtool models lists them")
        return found

    def suggest(self, name: str) -> list[str]:
        """Up to SUGGESTIONS class names that look like `name`, the closest first."""
        plain = _plain(name)
        close = difflib.get_close_matches(plain, self._index, SUGGESTIONS, cutoff=0.7)
        part = [known for known in self._index if plain and plain in known]
        words = difflib.get_close_matches(plain, {word for known in self._index for word in known.split()}, cutoff=0.7)
        part += [known for known in self._index if not set(words).isdisjoint(known.split())]
        rough = difflib.get_close_matches(plain, self._index, SUGGESTIONS)
        return [self.names[self._index[known]] for known in dict.fromkeys(close + part + rough)][:SUGGESTIONS]

    def select(self, classes: str | Sequence[str]) -> tuple[int, ...]:
        """Indices of the classes asked for, ascending and each once.

        Args:
            classes: "default" (the default tier), "all", names separated by commas (a name may hold commas itself), or
                a sequence of names.

        Raises:
            UsageError: a name is unknown or nothing is asked for.
        """
        if isinstance(classes, str) or len(classes) == 1:
            text = classes if isinstance(classes, str) else classes[0]
            if text == ALL:
                return tuple(range(len(self.names)))
            if text == DEFAULT:
                tiers = self.tiers or (DEFAULT,) * len(self.names)
                return tuple(i for i, tier in enumerate(tiers) if tier == DEFAULT)
            classes = self._split(text)
        if not classes:
            raise UsageError("no class is asked for", hint="give names, 'default' or 'all'")
        return tuple(sorted({self.index(name) for name in classes}))

    def _split(self, text: str) -> list[str]:
        """Names in a comma-separated text; of several readings the longest known name wins."""
        parts = text.split(",")
        names: list[str] = []
        while parts:
            ends = (n for n in range(len(parts), 0, -1) if _plain(",".join(parts[:n])) in self._index)
            end = next(ends, 1)
            names.append(",".join(parts[:end]).strip())
            parts = parts[end:]
        return [name for name in names if name]


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").casefold().split())
