"""Importing the class of Cnn14 has none of the effects that importing its package has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# No socket, no process, no file opened for writing outside of Python's caches: Python tells of each attempt.
BLOCKED = """
import os, sys
import torch  # before the guard: what these two do is not what this is about
import avtool.media
tried = []
def guard(event, arguments):
    kinds = "socket. subprocess. os.system os.exec os.posix_spawn os.fork os.spawn os.mkdir os.remove os.rename".split()
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if event.startswith(tuple(kinds)) or writes:
        tried.append((event, str(arguments[0])[:100]))
        raise PermissionError(event)
sys.dont_write_bytecode = True
sys.addaudithook(guard)
"""
OURS = """
from avtool.features.encoders import panns
assert panns.models().Cnn14.__module__ == "panns_inference.models"
from avtool.features.encoders import cnn14
cnn14._shell()
heavy = {"librosa", "matplotlib", "numba", "torchlibrosa", "panns_inference", "scipy"} & set(sys.modules)
assert not heavy, heavy
assert not tried, tried
print("quiet")
"""
THEIRS = """
try:
    import panns_inference
except BaseException:
    pass
print("tried" if tried else "quiet")
"""


def run(code: str, home: Path, repo: Path) -> str:
    environment = {**os.environ, "HOME": str(home), "MPLCONFIGDIR": "", "NUMBA_CACHE_DIR": "", "PYTHONPATH": str(repo)}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + code], capture_output=True, text=True, env=environment, cwd=home
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_nothing_is_opened_started_or_written(tmp_path: Path, repo: Path) -> None:
    assert run(OURS, tmp_path, repo) == "quiet"
    assert list(tmp_path.iterdir()) == []


def test_the_guard_notices_the_package_itself(tmp_path: Path, repo: Path) -> None:
    """The test above is only as good as this."""
    assert run(THEIRS, tmp_path, repo).endswith("tried")


def test_modules_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from avtool.features.encoders import panns

    mine = type(sys)("torchlibrosa")
    monkeypatch.setitem(sys.modules, "torchlibrosa", mine)
    panns.models.cache_clear()
    assert panns.models().Cnn14
    assert sys.modules["torchlibrosa"] is mine
    assert "panns_inference" not in sys.modules or sys.modules["panns_inference"].__file__ is not None
