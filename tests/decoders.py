"""Decode children that go from test to test: starting one costs more than most files that a test gives it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from avtool.media.child import DecodeChild
from avtool.media.request import Item


class Pool:
    """Children that nobody uses now."""

    def __init__(self) -> None:
        self.idle: list[DecodeChild] = []

    def lend(self) -> Lent:
        """Stands where `DecodeChild` is called."""
        return Lent(self)

    def close(self) -> None:
        """Ends them."""
        while self.idle:
            self.idle.pop().close()


class Lent:
    """A DecodeChild that goes back into its pool when it is closed, unless that ends a request in the middle."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._child: DecodeChild | None = None
        self._open = 0  # requests that are not over

    def start(self) -> None:
        self._own().start()

    def probe(self, *given: Any, **named: Any) -> Any:
        return self._own().probe(*given, **named)

    def decode(self, *given: Any, **named: Any) -> Iterator[Item]:
        self._open += 1
        try:
            yield from self._own().decode(*given, **named)
        finally:
            self._open -= 1

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None and self._open:
            child.close()
        elif child is not None:
            self._pool.idle.append(child)

    def _own(self) -> DecodeChild:
        if self._child is None:
            self._child = self._pool.idle.pop() if self._pool.idle else DecodeChild()
        return self._child
