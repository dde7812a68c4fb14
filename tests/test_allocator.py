"""Free memory is kept, so that a network need not ask for it again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from avtool import allocator


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library of most Linux systems")
@pytest.mark.parametrize("way", ["variables", "call"])
def test_free_memory_is_kept(way: str) -> None:
    """What runs already is told by a call, a process that is started by variables."""
    code = """
import ctypes, sys
from avtool.allocator import keep_memory
from pathlib import Path
if sys.argv[1] == "call":
    keep_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
place = libc.malloc(100 << 20)
ctypes.memset(place, 1, 100 << 20)
libc.free(place)
print(Path("/proc/self/statm").read_text().split()[1])
"""

    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}

    def pages(way: str, environment: dict[str, str]) -> int:
        command = [sys.executable, "-c", code, way]
        return int(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)

    kept = pages(way, {**os.environ, **allocator.variables()} if way == "variables" else plain)
    assert kept > pages("", plain) + (90 << 20) // os.sysconf("SC_PAGE_SIZE")
