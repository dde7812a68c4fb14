"""What every test gets: a home of its own, no network, and the material beside the project where it exists."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repo() -> Path:
    """Root of the source tree."""
    return REPO


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference material that is not part of the project: `../shared`, or the folder in AVTOOL_SHARED."""
    folder = Path(os.environ.get("AVTOOL_SHARED") or REPO.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"reference material is not here: no folder {folder} (set AVTOOL_SHARED)")
    return folder


@pytest.fixture(scope="session")
def _tool_caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caches that are dear to fill (matplotlib's fonts, numba's code): one folder for the whole run."""
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, _tool_caches: Path) -> Path:
    """An empty home and cache folder for each test and the processes it starts; no AVTOOL_* setting leaks in."""
    folder = tmp_path_factory.mktemp("home")
    for name in [n for n in os.environ if n.startswith("AVTOOL_") and n != "AVTOOL_SHARED"]:
        monkeypatch.delenv(name)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(folder))
    for name, sub in (("XDG_CACHE_HOME", ".cache"), ("XDG_CONFIG_HOME", ".config"), ("XDG_DATA_HOME", ".local/share")):
        monkeypatch.setenv(name, str(folder / sub))
    monkeypatch.setenv("MPLCONFIGDIR", str(_tool_caches / "matplotlib"))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(_tool_caches / "numba"))
    return folder


@pytest.fixture(scope="module")
def _decoders() -> Iterator[Any]:
    from tests.decoders import Pool

    pool = Pool()
    yield pool
    pool.close()


@pytest.fixture
def lent_decoders(_decoders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are decoded by processes that the tests of a module share; how one starts and ends is tested elsewhere."""
    from avtool.batch import plan
    from avtool.media import ahead

    for module in (ahead, plan):
        monkeypatch.setattr(module, "DecodeChild", _decoders.lend)


def _is_outside(address: object) -> bool:
    """True for an internet address that is not this machine; names other than localhost count as outside."""
    if not isinstance(address, tuple):  # a path: AF_UNIX
        return False
    host = address[0]
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if host in ("", "localhost", None):
        return False
    try:
        return not ip_address(str(host).split("%")[0]).is_loopback
    except ValueError:
        return True


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test that reaches for a host other than this machine, even if the code swallows the refusal."""
    reached: list[str] = []

    def guard(owner: Any, name: str, position: int) -> None:
        original = getattr(owner, name)

        def guarded(*args: Any, **kwargs: Any) -> Any:
            address = args[position] if len(args) > position else None
            if owner is socket and address is not None:
                address = (address,)
            if _is_outside(address):
                reached.append(f"{name}{address}")
                raise OSError(f"no network in tests: {name}{address}")
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, guarded)

    for name, position in (("connect", 1), ("connect_ex", 1), ("sendto", -1)):
        guard(socket.socket, name, position)
    guard(socket, "getaddrinfo", 0)
    yield
    assert not reached, f"the test reached for the network: {', '.join(reached)}"
