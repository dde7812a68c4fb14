"""Class names: the fixed lists, and how a user's words find a class."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest

from avtool.errors import UsageError
from avtool.vocabulary import AUDIOSET, AVE, IMAGENET, Vocabulary

EVENTS = Vocabulary(
    names=("dog bark", "church bell", "Male speech, man speaking", "human speech", "train-horn"),
    tiers=("default", "experimental", "default", "default", "experimental"),
    thresholds=(0.3, 0.4, 0.5, 0.35, 0.2),
)


@pytest.mark.parametrize(("names", "count"), [(AUDIOSET, 527), (IMAGENET, 1000), (AVE, 28)])
def test_lists_are_complete_and_unique(names: tuple[str, ...], count: int) -> None:
    assert len(names) == count
    assert all(name == name.strip() and name.isprintable() for name in names)
    Vocabulary(names)


def test_known_positions() -> None:
    assert (AUDIOSET[0], AUDIOSET[74], AUDIOSET[526]) == ("Speech", "Dog", "Field recording")
    assert (IMAGENET[0], IMAGENET[134], IMAGENET[517], IMAGENET[999]) == (
        "tench",
        "crane (bird)",
        "crane (machine)",
        "toilet tissue",
    )
    assert (AVE[0], AVE[9], AVE[27]) == ("Church bell", "Ukulele", "Mandolin")


@pytest.mark.parametrize(("names", "file"), [(AUDIOSET, "audioset"), (IMAGENET, "imagenet")])
def test_order_is_that_of_the_teachers(shared: Path, names: tuple[str, ...], file: str) -> None:
    with open(shared / "corpus" / "teachers" / f"{file}_classes.csv", newline="") as table:
        rows = list(csv.DictReader(table))
    assert [int(row["index"]) for row in rows] == list(range(len(names)))
    assert [name.split(" (")[0] for name in names] == [row["name"].split(" (")[0] for row in rows]


def test_imagenet_order_is_torchvisions() -> None:
    meta = pytest.importorskip("torchvision.models._meta", reason="torchvision is not installed")
    ours = [name.split(" (")[0] for name in IMAGENET]
    theirs = meta._IMAGENET_CATEGORIES
    same = [a.casefold() == b.split(" (")[0].casefold() for a, b in zip(ours, theirs, strict=True)]
    assert sum(same) >= 990, "a shifted list would agree nowhere; spellings of a few names differ"


def test_ave_order_is_that_of_the_annotations(shared: Path) -> None:
    lines = (shared / "ave" / "Annotations.txt").read_text().splitlines()
    assert tuple(dict.fromkeys(line.split("&")[0] for line in lines)) == AVE


@pytest.mark.parametrize("word", ["dog bark", "Dog Bark", " DOG_BARK ", "dog-bark", "dog  bark"])
def test_case_and_spaces_do_not_matter(word: str) -> None:
    assert EVENTS.index(word) == 0


@pytest.mark.parametrize(
    ("word", "suggested"),
    [("dog barking", "dog bark"), ("bell", "church bell"), ("speach", "human speech"), ("trainhorn", "train-horn")],
)
def test_did_you_mean(word: str, suggested: str) -> None:
    with pytest.raises(UsageError) as caught:
        EVENTS.index(word)
    assert caught.value.what.startswith(f"no class '{word}'; did you mean ")
    assert f"'{suggested}'" in caught.value.what


def test_no_suggestion_for_something_else_and_no_control_signs_in_the_message() -> None:
    with pytest.raises(UsageError) as caught:
        EVENTS.index("\x1b[2Jqqqq")
    assert caught.value.what == "no class '\\x1b[2Jqqqq'"


def test_select_tiers() -> None:
    assert EVENTS.select("default") == EVENTS.select(["default"]) == (0, 2, 3)
    assert EVENTS.select("all") == (0, 1, 2, 3, 4)
    assert Vocabulary(("a", "b")).select("default") == (0, 1)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["church bell", "dog bark", "dog bark"], (0, 1)),
        (("Male speech, man speaking",), (2,)),
        ("church bell", (1,)),
        ("human speech,Male speech, man speaking , dog bark", (0, 2, 3)),
    ],
)
def test_select_names(classes: str | list[str], expected: tuple[int, ...]) -> None:
    assert EVENTS.select(classes) == expected


@pytest.mark.parametrize("classes", [[], "", " , ", "dog bark,nothing like it", ["dog bark", "all of them"]])
def test_select_refuses(classes: str | list[str]) -> None:
    with pytest.raises(UsageError):
        EVENTS.select(classes)


@pytest.mark.parametrize(
    "change",
    [
        {"names": ("a", "A")},
        {"names": ("a b", "a_b")},
        {"names": ("a", " ")},
        {"tiers": ("default",)},
        {"tiers": ("default", "gold")},
        {"thresholds": (0.5,)},
        {"thresholds": (0.5, 1.5)},
        {"thresholds": (0.5, float("nan"))},
    ],
)
def test_faulty_vocabularies_are_refused(change: dict[str, tuple[str, ...]]) -> None:
    good = Vocabulary(("a", "b"), ("default", "default"), (0.1, 0.2))
    with pytest.raises(ValueError, match=r"\w"):
        dataclasses.replace(good, **change)
