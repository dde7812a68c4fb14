"""Draws the demo's scenes: filled polygons with exact antialiasing, gradients, noise, shadows, a moving camera, grain.

Coordinates are (x, y) in pixels, y downwards; a canvas is larger than the picture by MARGIN on each side, so that the
camera can move. Colours are RGB in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]  # (n, 2)
Colour = Sequence[float] | npt.NDArray[Any]
Line = tuple[tuple[float, float], tuple[float, float]]

WIDTH, HEIGHT, MARGIN = 480, 270, 24
CANVAS = (HEIGHT + 2 * MARGIN, WIDTH + 2 * MARGIN)
SCANLINES = 4  # per pixel row; coverage along a scanline is exact
WHITE, BLACK = (0.97, 0.97, 0.97), (0.04, 0.04, 0.045)


# ---------------------------------------------------------------- shapes, in local coordinates


def rectangle(x0: float, y0: float, x1: float, y1: float, radius: float = 0.0) -> Points:
    """Outline of a rectangle, its corners rounded by `radius`."""
    if radius <= 0:
        return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)
    corners = ((x1, y0, -90), (x1, y1, 0), (x0, y1, 90), (x0, y0, 180))
    return np.concatenate(
        [
            oval(
                x + (radius if x == x0 else -radius), y + (radius if y == y0 else -radius), radius, radius, a, a + 90, 7
            )
            for x, y, a in corners
        ]
    )


def oval(
    x: float, y: float, width: float, height: float | None = None, first: float = 0, last: float = 360, count: int = 48
) -> Points:
    """Outline of an ellipse with the half axes `width` and `height`, or its part between two angles (degrees)."""
    angle = np.radians(np.linspace(first, last, count, endpoint=last - first < 360))
    return np.stack([x + width * np.cos(angle), y + (height or width) * np.sin(angle)], 1)


def stroke(x0: float, y0: float, x1: float, y1: float, width: float, last: float | None = None) -> Points:
    """Outline of a straight line, `width` wide at its beginning and `last` at its end."""
    a, b = np.array([x0, y0]), np.array([x1, y1])
    along = (b - a) / max(1e-9, float(np.hypot(*(b - a))))
    normal = np.array([-along[1], along[0]]) / 2
    end = width if last is None else last
    return np.array([a + normal * width, b + normal * end, b - normal * end, a - normal * width])


def pose(x: float, y: float, scale: float, turn: float = 0.0, yaw: float = 0.0, mirror: float = 1.0) -> Points:
    """Homography (3, 3) from local coordinates to pixels; `yaw`: perspective along x, 1 / local unit."""
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    place = np.array([[cos, -sin, x], [sin, cos, y], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, 1, 0], [yaw, 0, 1]])
    result: Points = place @ np.diag([mirror, 1.0, 1.0]) @ tilt
    return result


# ---------------------------------------------------------------- paint


def hsv(hue: float, saturation: float, value: float) -> Floats:
    """A colour from hue, saturation and value, each in [0, 1]."""
    k = (np.array([5, 3, 1]) + hue * 6) % 6
    colour: Floats = np.asarray(value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1), np.float32)
    return colour


def noise(
    rng: np.random.Generator, shape: tuple[int, int], cell: float, octaves: int = 4, aspect: float = 1.0
) -> Floats:
    """Smooth noise of mean 0 and deviation 1: value noise whose largest cells are `cell` high, `cell * aspect` wide."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        high, wide = max(1.0, cell / 2**octave), max(1.0, cell * aspect / 2**octave)
        grid = rng.normal(size=(int(shape[0] / high) + 3, int(shape[1] / wide) + 3)).astype(np.float32)
        total += 0.55**octave * _sample(grid, np.arange(shape[0]) / high, np.arange(shape[1]) / wide, smooth=True)
    return np.asarray((total - total.mean()) / (total.std() + 1e-6), np.float32)


def _sample(grid: Floats, rows: npt.NDArray[Any], columns: npt.NDArray[Any], smooth: bool = False) -> Floats:
    """Grid (h, w, ...) between its points, at every row and column."""
    i = np.clip(rows.astype(int), 0, grid.shape[0] - 2)
    j = np.clip(columns.astype(int), 0, grid.shape[1] - 2)
    down, right = (rows - i).astype(np.float32), (columns - j).astype(np.float32)
    if smooth:
        down, right = down * down * (3 - 2 * down), right * right * (3 - 2 * right)
    more = (1,) * (grid.ndim - 2)
    right, down = right.reshape(1, -1, *more), down.reshape(-1, 1, *more)
    upper = grid[i][:, j] * (1 - right) + grid[i][:, j + 1] * right
    lower = grid[i + 1][:, j] * (1 - right) + grid[i + 1][:, j + 1] * right
    return np.asarray(upper * (1 - down) + lower * down, np.float32)


def blur(image: Floats, radius: int) -> Floats:
    """Two box blurs of a picture (h, w)."""
    for axis in (0, 1, 0, 1):
        pad = [(0, 0), (0, 0)]
        pad[axis] = (radius + 1, radius)
        sums = np.cumsum(np.pad(image, pad), axis, dtype=np.float64)
        count = image.shape[axis]
        high = np.take(sums, np.arange(2 * radius + 1, count + 2 * radius + 1), axis)
        image = ((high - np.take(sums, np.arange(count), axis)) / (2 * radius + 1)).astype(np.float32)
    return image


def coverage(points: Points, box: tuple[int, int, int, int]) -> Floats:
    """Share of each pixel of box (x0, x1, y0, y1) inside a polygon (even-odd rule): (y1 - y0, x1 - x0)."""
    x0, x1, y0, y1 = box
    y = y0 + (np.arange((y1 - y0) * SCANLINES)[:, None] + 0.5) / SCANLINES  # (rows, 1)
    a, b = points, np.roll(points, -1, 0)
    hit = (a[:, 1] <= y) != (b[:, 1] <= y)  # (rows, edges)
    slope = (b[:, 0] - a[:, 0]) / np.where(b[:, 1] == a[:, 1], 1, b[:, 1] - a[:, 1])
    crossing = np.sort(np.where(hit, a[:, 0] + (y - a[:, 1]) * slope, 1e6), 1)
    pixel, total = np.arange(x0, x1), np.zeros((len(y), x1 - x0), np.float32)
    for k in range(0, int(hit.sum(1).max(initial=0)), 2):
        total += np.clip(crossing[:, k + 1, None] - pixel, 0, 1) - np.clip(crossing[:, k, None] - pixel, 0, 1)
    return np.asarray(total.reshape(y1 - y0, SCANLINES, x1 - x0).mean(1), np.float32)


class Canvas:
    """A picture that polygons are painted on; `pose` maps local coordinates to pixels."""

    def __init__(self, pixels: Floats | None = None) -> None:
        self.pixels = np.zeros((*CANVAS, 3), np.float32) if pixels is None else pixels.copy()  # (h, w, 3)
        self.pose: Points = np.eye(3)

    def at(self, points: npt.ArrayLike) -> Points:
        """Local points (n, 2) in pixels."""
        local = np.asarray(points, float)
        mapped = np.concatenate([local, np.ones((len(local), 1))], 1) @ self.pose.T
        result: Points = mapped[:, :2] / mapped[:, 2:]
        return result

    def paint(
        self,
        points: npt.ArrayLike,
        colour: Colour,
        to: Colour | None = None,
        axis: Line = ((0, 0), (0, 1)),
        alpha: float = 1.0,
        texture: Floats | None = None,
    ) -> None:
        """Fill a polygon; the colour changes to `to` along `axis`, `texture` (h, w) brightens and darkens it."""
        outline = self.at(points)
        x0, x1, y0, y1 = box = self._box(outline, 1)
        if x1 <= x0 or y1 <= y0:
            return
        paint = np.asarray(colour, np.float32)
        if to is not None:
            begin, end = self.at(axis)
            along, (y, x) = end - begin, np.mgrid[y0:y1, x0:x1] + 0.5
            share = ((x - begin[0]) * along[0] + (y - begin[1]) * along[1]) / max(1e-9, float(along @ along))
            paint = paint + (np.asarray(to, np.float32) - paint) * np.clip(share, 0, 1).astype(np.float32)[..., None]
        if texture is not None:
            paint = paint * (1 + texture[y0:y1, x0:x1, None])
        region = self.pixels[y0:y1, x0:x1]
        region += coverage(outline, box)[..., None] * np.float32(alpha) * (paint - region)

    def shade(self, points: npt.ArrayLike, strength: float, softness: int, offset: tuple[float, float]) -> None:
        """The soft shadow of a polygon; `softness` and `offset` in pixels."""
        outline = self.at(points) + np.array(offset)
        x0, x1, y0, y1 = box = self._box(outline, 3 * softness)
        if x1 > x0 and y1 > y0:
            self.pixels[y0:y1, x0:x1] *= 1 - strength * blur(coverage(outline, box), softness)[..., None]

    def glow(self, point: tuple[float, float], radius: float, colour: Colour) -> None:
        """Light around a local point; `radius` in pixels."""
        x, y = self.at([point])[0]
        x0, x1, y0, y1 = self._box(np.array([(x, y)]), int(3 * radius))
        if x1 <= x0 or y1 <= y0:
            return
        row, column = np.mgrid[y0:y1, x0:x1]
        light = np.exp(-((column - x) ** 2 + (row - y) ** 2) / radius**2)[..., None]
        self.pixels[y0:y1, x0:x1] += (light * np.asarray(colour)).astype(np.float32)

    def _box(self, outline: Points, pad: int) -> tuple[int, int, int, int]:
        (x0, y0), (x1, y1) = np.floor(outline.min(0)).astype(int) - pad, np.ceil(outline.max(0)).astype(int) + pad
        height, width = CANVAS
        return max(0, int(x0)), min(width, int(x1)), max(0, int(y0)), min(height, int(y1))


class Camera:
    """Looks at a canvas: drifts, zooms a little, darkens the corners, adds grain."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._zoom = rng.uniform(1.0, 1.05, 2)  # at the beginning, at the end
        self._sway, self._phase = rng.uniform(2, 6, 2), rng.uniform(0, 2 * np.pi, 2)  # pixels, radians
        self._speed, self._gain = rng.uniform(0.05, 0.15, 2), rng.uniform(0.92, 1.05)  # Hz
        self._grain, self._rng = rng.uniform(0.008, 0.016), rng
        y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
        self._vignette = (1 - rng.uniform(0.06, 0.16) * (x**2 + y**2))[..., None].astype(np.float32)

    def picture(self, canvas: Canvas, seconds: float, progress: float) -> npt.NDArray[np.uint8]:
        """The canvas as seen `seconds` after the cut, at `progress` in [0, 1] of the shot: (HEIGHT, WIDTH, 3)."""
        zoom = self._zoom[0] + (self._zoom[1] - self._zoom[0]) * progress
        right, down = self._sway * np.sin(2 * np.pi * self._speed * seconds + self._phase)
        rows = (np.arange(HEIGHT) - HEIGHT / 2) / zoom + CANVAS[0] / 2 + down
        columns = (np.arange(WIDTH) - WIDTH / 2) / zoom + CANVAS[1] / 2 + right
        view = _sample(canvas.pixels, rows, columns) * self._vignette * self._gain
        view += self._rng.normal(0, self._grain, (HEIGHT, WIDTH, 1))
        return np.asarray(np.clip(view, 0, 1) * 255 + 0.5, np.uint8)


# ---------------------------------------------------------------- scenes


class Scene(Protocol):
    """Something to look at."""

    def draw(self, seconds: float, progress: float) -> Canvas:
        """The scene `seconds` after the cut, at `progress` in [0, 1] of the shot."""
        ...


def wall(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Canvas:
    """A plastered wall, lit from one side."""
    canvas = Canvas()
    y, x = np.mgrid[-0.5 : 0.5 : CANVAS[0] * 1j, -0.5 : 0.5 : CANVAS[1] * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + 0.22 * (x * np.cos(angle) + y * np.sin(angle))
    rough = 0.025 * noise(rng, CANVAS, 40, 5) + 0.015 * noise(rng, CANVAS, 3, 2)
    colour = hsv(rng.uniform(), rng.uniform(*saturation), rng.uniform(*value))
    canvas.pixels[:] = (light * (1 + rough))[..., None] * colour
    return canvas


def _wrapped(pattern: Floats, row: Floats, column: Floats) -> Floats:
    return np.asarray(pattern[row.astype(int) % pattern.shape[0], column.astype(int) % pattern.shape[1]])


class Room:
    """A bare wall and a window with closed curtains: nothing in sight makes a sound."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._canvas, (height, width) = wall(rng, (0.05, 0.2), (0.6, 0.85)), CANVAS
        left, top, wide, tall = 0.25 * width, 0.15 * height, 0.5 * width, 0.6 * height
        self._canvas.paint(rectangle(left - 6, top - 6, left + wide + 6, top + tall + 6), hsv(0.08, 0.3, 0.4))
        cloth, folds = hsv(rng.uniform(0, 1), rng.uniform(0.2, 0.5), rng.uniform(0.5, 0.8)), 14
        for k in range(folds):
            x0, x1 = left + wide * k / folds, left + wide * (k + 1) / folds
            self._canvas.paint(rectangle(x0, top, x1, top + tall), cloth * 1.15, cloth * 0.8, ((x0, 0), (x1, 0)))

    def draw(self, seconds: float, progress: float) -> Canvas:
        """See Scene."""
        return self._canvas


class Clock:
    """A wall clock whose second hand steps `beats` times a second."""

    def __init__(self, rng: np.random.Generator, beats: float) -> None:
        self._beats, self._start = beats, rng.uniform(0, 12 * 3600)  # seconds
        self._canvas = wall(rng, (0.1, 0.45), (0.5, 0.8))
        x, y = CANVAS[1] / 2 + rng.uniform(-25, 25), CANVAS[0] / 2 + rng.uniform(-6, 6)
        self._canvas.pose = pose(x, y, rng.uniform(0.98, 1.16), rng.uniform(-0.04, 0.04), rng.uniform(-4e-4, 4e-4))
        self._red = hsv(rng.uniform(0, 0.05), 0.9, 0.75)
        rim = hsv(rng.choice([0.0, 0.07, 0.09, 0.6]), rng.uniform(0.2, 0.7), rng.uniform(0.2, 0.5))
        self._paint_face(rim, hsv(0.12, rng.uniform(0.03, 0.15), rng.uniform(0.88, 0.97)))

    def _paint_face(self, rim: Floats, face: Floats) -> None:
        canvas, lit = self._canvas, ((-70.0, -70.0), (70.0, 70.0))
        canvas.shade(oval(0, 0, 104), 0.55, 7, (7, 10))
        canvas.paint(oval(0, 0, 104), rim * 1.6, rim * 0.5, lit)
        canvas.paint(oval(0, 0, 97), rim * 0.5, rim * 1.5, lit)
        canvas.paint(oval(0, 0, 92), rim * 0.25)
        canvas.paint(oval(0, 0, 90), face * 0.86, face, ((-50, -60), (30, 40)))
        for minute in range(60):
            x, y = np.sin(minute * np.pi / 30), -np.cos(minute * np.pi / 30)
            inner, width = (75, 3.4) if minute % 5 == 0 else (80, 1.2)
            canvas.paint(stroke(x * inner, y * inner, x * 85, y * 85, width), BLACK)
        for hour in range(1, 13):
            x, y = 62 * np.sin(hour * np.pi / 6), -62 * np.cos(hour * np.pi / 6)
            _numeral(canvas, str(hour), x, y, 16)

    def draw(self, seconds: float, progress: float) -> Canvas:
        """See Scene."""
        canvas = Canvas(self._canvas.pixels)
        canvas.pose = self._canvas.pose
        now = self._start + seconds
        self._hand(canvas, now / 43200, 44, 10, 6.5, BLACK)
        self._hand(canvas, now / 3600, 66, 12, 4.5, BLACK)
        self._hand(canvas, np.floor(now * self._beats) / self._beats / 60, 74, 18, 1.6, self._red)
        canvas.paint(oval(0, 0, 5.5), BLACK)
        canvas.paint(oval(0, 0, 3), self._red)
        canvas.paint(oval(-28, -38, 46, 22), WHITE, alpha=0.06)  # the glass
        return canvas

    @staticmethod
    def _hand(canvas: Canvas, turns: float, length: float, tail: float, width: float, colour: Colour) -> None:
        x, y = np.sin(2 * np.pi * turns), -np.cos(2 * np.pi * turns)
        hand = stroke(-x * tail, -y * tail, x * length, y * length, width, width * 0.6)
        canvas.shade(hand, 0.3, 1, (2, 3))
        canvas.paint(hand, colour)


DIGITS: dict[str, list[list[tuple[float, float]]]] = {  # strokes in a box of height 1 around (0, 0)
    "0": [[(0.30 * np.cos(a), 0.5 * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 20)]],
    "1": [[(-0.18, -0.3), (0.05, -0.5), (0.05, 0.5)]],
    "2": [
        [(-0.28, -0.28), (-0.2, -0.45), (0, -0.5), (0.22, -0.43), (0.28, -0.22), (0.15, 0.02), (-0.3, 0.5), (0.32, 0.5)]
    ],
    "3": [
        [
            (-0.27, -0.4),
            (0, -0.5),
            (0.24, -0.38),
            (0.22, -0.12),
            (0, -0.02),
            (0.26, 0.12),
            (0.27, 0.36),
            (0, 0.5),
            (-0.28, 0.4),
        ]
    ],
    "4": [[(0.14, 0.5), (0.14, -0.5), (-0.32, 0.2), (0.34, 0.2)]],
    "5": [
        [(0.27, -0.5), (-0.2, -0.5), (-0.24, -0.05), (0.05, -0.12), (0.28, 0.1), (0.22, 0.4), (0, 0.5), (-0.28, 0.4)]
    ],
    "6": [
        [
            (0.22, -0.46),
            (-0.08, -0.4),
            (-0.28, 0.1),
            (-0.24, 0.38),
            (0, 0.5),
            (0.24, 0.38),
            (0.27, 0.16),
            (0.05, -0.04),
            (-0.26, 0.15),
        ]
    ],
    "7": [[(-0.3, -0.5), (0.3, -0.5), (-0.05, 0.5)]],
    "8": [
        [(0.26 * np.sin(a) * (1 + 0.15 * (np.cos(a) < 0)), y - 0.25 * np.cos(a)) for a in np.linspace(0, 2 * np.pi, 16)]
        for y in (-0.25, 0.25)
    ],
    "9": [
        [
            (-0.22, 0.46),
            (0.08, 0.4),
            (0.28, -0.1),
            (0.24, -0.38),
            (0, -0.5),
            (-0.24, -0.38),
            (-0.27, -0.16),
            (-0.05, 0.04),
            (0.26, -0.15),
        ]
    ],
}


def _numeral(canvas: Canvas, text: str, x: float, y: float, size: float) -> None:
    """A number around (x, y), `size` high, in rounded strokes."""
    x -= 0.39 * size * (len(text) - 1)
    for digit in text:
        for points in DIGITS[digit]:
            place = [(x + a * size, y + b * size) for a, b in points]
            for a, b in pairwise(place):
                canvas.paint(stroke(*a, *b, size * 0.15), BLACK)
                canvas.paint(oval(*a, size * 0.075, count=8), BLACK)
        x += 0.78 * size


class Accordion:
    """A piano accordion that nobody plays."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._canvas = wall(rng, (0.02, 0.2), (0.7, 0.95))
        x, y = CANVAS[1] / 2 + rng.uniform(-12, 12), CANVAS[0] / 2
        self._canvas.pose = pose(x, y, rng.uniform(1.02, 1.16), rng.uniform(-0.1, 0.1), mirror=rng.choice([-1, 1]))
        self._body = hsv(rng.choice([0.0, 0.98, 0.62]), rng.uniform(0.7, 0.95), rng.uniform(0.45, 0.7))
        self._pearl = 0.1 * noise(rng, CANVAS, 14, 4)
        half = rng.uniform(52, 74)  # of the width of the bellows
        self._canvas.shade(rectangle(-half - 75, -104, half + 62, 104, 8), 0.5, 9, (8, 12))
        self._bellows(half, int(rng.integers(13, 18)), hsv(rng.uniform(), 0.15, rng.uniform(0.08, 0.2)))
        self._treble(-half)
        self._bass(half)
        for edge in (-half - 6, half + 4):
            self._canvas.paint(
                rectangle(edge, -104, edge + 4, 104), (0.9, 0.88, 0.8), (0.5, 0.48, 0.4), ((edge, 0), (edge + 4, 0))
            )

    def _bellows(self, half: float, folds: int, cloth: Floats) -> None:
        step = 2 * half / folds
        for a in np.linspace(-half, half, folds, endpoint=False):
            b, c = a + step / 2, a + step
            self._canvas.paint([(a, -92), (b, -99), (b, 99), (a, 92)], cloth * 0.4, cloth * 1.5, ((a, 0), (b, 0)))
            self._canvas.paint([(b, -99), (c, -92), (c, 92), (b, 99)], cloth * 2.6, cloth * 0.5, ((b, 0), (c, 0)))
            self._canvas.paint(stroke(b, -99, b, 99, 1.6), (0.75, 0.73, 0.68))
            for y in (-99, 99):
                self._canvas.paint(rectangle(b - 0.3 * step, y - 3, b + 0.3 * step, y + 3), (0.82, 0.8, 0.76))

    def _treble(self, x: float) -> None:
        """Body, grille and piano keys; `x` is where the bellows begin."""
        canvas, body, light = self._canvas, self._body, ((x - 80, 0.0), (x - 46, 0.0))
        canvas.paint(
            rectangle(x - 44, -104, x + 2, 104, 6),
            body * 1.25,
            body * 0.7,
            ((x - 44, -100), (x, 100)),
            texture=self._pearl,
        )
        canvas.paint(rectangle(x - 36, -90, x - 8, 90, 5), body * 0.35)
        for y in np.arange(-84, 86, 9.0):
            canvas.paint(
                rectangle(x - 34, y, x - 10, y + 3.5, 1), (0.86, 0.8, 0.6), (0.6, 0.5, 0.3), ((x - 34, y), (x - 10, y))
            )
        canvas.paint(rectangle(x - 80, -106, x - 42, 106, 4), body * 0.8, body * 0.5, light)
        keys = np.linspace(-100, 100, 20)
        for y, below in pairwise(keys):
            canvas.paint(rectangle(x - 80, y + 0.5, x - 46, below - 0.5, 1.2), WHITE, (0.8, 0.79, 0.76), light)
        for k, y in enumerate(keys[1:-1]):
            if k % 7 in (0, 1, 3, 4, 5):
                canvas.paint(
                    rectangle(x - 64, y - 3, x - 46, y + 3, 1), (0.25, 0.25, 0.25), BLACK, ((x - 64, 0), (x - 58, 0))
                )

    def _bass(self, x: float) -> None:
        """Body and buttons; `x` is where the bellows end."""
        canvas, body = self._canvas, self._body
        canvas.paint(
            rectangle(x - 2, -104, x + 58, 104, 9),
            body * 1.2,
            body * 0.55,
            ((x, -100), (x + 58, 100)),
            texture=self._pearl,
        )
        canvas.paint(rectangle(x + 12, -88, x + 46, 88, 5), body * 0.45)
        for row in range(15):
            for column in range(4):
                a, b = x + 17 + 8 * column, -80 + 11.3 * row + 1.5 * column
                canvas.paint(oval(a, b, 2.9, count=14), (1, 1, 1), (0.55, 0.55, 0.55), ((a - 2, b - 2), (a + 2, b + 2)))

    def draw(self, seconds: float, progress: float) -> Canvas:
        """See Scene."""
        return self._canvas


class Van:
    """A police van or ambulance that drives into a street and stops there, its blue lights flashing."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._horizon = CANVAS[0] * rng.uniform(0.50, 0.58)
        self._street = self._paint_street(rng)
        self._side = rng.choice([-1, 1])  # 1: its front is on the right
        self._scale, self._yaw, self._x = rng.uniform(1.5, 1.68), rng.uniform(2.2e-4, 6e-4), rng.uniform(-6, 6)
        self._checks, self._stripe = rng.integers(3), rng.choice(3, p=[0.5, 0.25, 0.25])
        self._second = ((0.08, 0.20, 0.62), (0.08, 0.20, 0.62), (0.05, 0.45, 0.2))[self._stripe]
        self._flashes, self._phase = rng.uniform(1.6, 2.4), rng.uniform()  # Hz, turns

    def _paint_street(self, rng: np.random.Generator) -> Canvas:
        canvas, (height, width), horizon = Canvas(), CANVAS, self._horizon
        sky, x = rng.uniform(0.75, 0.92), -20.0
        canvas.paint(rectangle(0, 0, width, horizon), (sky * 0.8, sky * 0.9, sky), (sky,) * 3, ((0, 0), (0, horizon)))
        while x < width:
            wide = rng.uniform(50, 110)
            self._house(rng, canvas, x, wide, rng.uniform(5, 0.55 * horizon))
            x += wide + rng.choice([0, 0, 12])
        for _ in range(5):
            _tree(rng, canvas, rng.uniform(0, width), horizon)
        grey = rng.uniform(0.32, 0.45)
        canvas.paint(
            rectangle(0, horizon, width, height), (grey * 1.15,) * 3, (grey * 0.85,) * 3, ((0, horizon), (0, height))
        )
        canvas.paint(rectangle(0, horizon - 2, width, horizon + 14), (grey * 1.5,) * 3)
        canvas.paint(rectangle(0, horizon + 13, width, horizon + 17), (grey * 0.7,) * 3)
        ground = int(horizon)
        canvas.pixels[ground:] *= 1 + 0.05 * noise(rng, CANVAS, 2, 2)[ground:, :, None]
        return canvas

    def _house(self, rng: np.random.Generator, canvas: Canvas, x: float, wide: float, top: float) -> None:
        bottom, brick = self._horizon, hsv(rng.uniform(0, 0.12), rng.uniform(0.15, 0.5), rng.uniform(0.35, 0.7))
        canvas.paint(rectangle(x, top, x + wide, bottom + 8), brick, brick * 0.8, ((x, top), (x, bottom)))
        for b in np.arange(top + 10, bottom - 14, 24):
            for a in np.arange(x + 8, x + wide - 14, 22):
                canvas.paint(
                    rectangle(a, b, a + 10, b + 14), (0.2, 0.24, 0.3), (0.45, 0.5, 0.55), ((a, b), (a, b + 14))
                )

    def draw(self, seconds: float, progress: float) -> Canvas:
        """See Scene."""
        canvas = Canvas(self._street.pixels)
        arrival = 330 * (1 - np.clip(seconds / 1.0, 0, 1)) ** 2
        x = CANVAS[1] / 2 + self._x + self._side * (14 * (progress - 0.5) - arrival)
        shake = 0.002 * np.sin(9 * seconds)
        canvas.pose = pose(x, self._horizon + 62, self._scale, shake, -self._yaw, self._side)
        canvas.paint(oval(0, 4, 128, 9), BLACK, alpha=0.6)
        self._body(canvas)
        self._windows(canvas)
        for x in (-72, 80):
            self._wheel(canvas, x, seconds * 2 + arrival / 20)
        self._lights(canvas, (seconds * self._flashes + self._phase) % 1 < 0.5)
        return canvas

    def _body(self, canvas: Canvas) -> None:
        """Ground at y = 0, roof at -102, rear at x = -116."""
        side = [
            (-116, -14),
            (-116, -86),
            (-112, -97),
            (-100, -102),
            (30, -102),
            (52, -97),
            (84, -58),
            (112, -48),
            (119, -36),
            (119, -14),
        ]
        canvas.paint(side, (0.93, 0.94, 0.95), (0.58, 0.58, 0.59), ((0, -102), (0, -10)))
        canvas.paint([(-116, -92), (-112, -97), (-100, -102), (30, -102), (52, -97), (56, -92)], (1, 1, 1), alpha=0.5)
        if self._checks < 2:
            for row in range(2 - self._checks):
                for k in range(11):
                    x, y = -116 + 21.2 * k, -50 + 15 * row
                    canvas.paint(
                        rectangle(x, y, min(x + 21.2, 117), y + 15),
                        (0.93, 0.85, 0.1) if (k + row) % 2 else self._second,
                    )
        else:
            canvas.paint(rectangle(-116, -46, 117, -36), (0.85, 0.35, 0.05))
            for y in (-52, -36):
                canvas.paint(rectangle(-116, y, 117, y + 5), self._second)
        canvas.paint(rectangle(-118, -18, 121, -9, 3), (0.16, 0.16, 0.18))  # bumper
        canvas.paint(
            [(104, -46), (117, -42), (118, -32), (108, -33)], (1, 1, 0.92), (0.8, 0.85, 0.9), ((104, -46), (118, -32))
        )
        canvas.paint(rectangle(-116, -60, -112, -36), (0.75, 0.08, 0.06))

    @staticmethod
    def _windows(canvas: Canvas) -> None:
        dark, sky = (0.10, 0.13, 0.17), (0.38, 0.46, 0.55)
        canvas.paint([(36, -92), (50, -91), (76, -60), (36, -60)], dark, sky, ((36, -60), (60, -92)))
        canvas.paint([(54, -93), (58, -92), (90, -58), (82, -58)], dark, (0.5, 0.6, 0.7), ((84, -58), (56, -92)))
        for x0, x1 in ((-108, -66), (-60, -18), (-12, 28)):
            canvas.paint(rectangle(x0, -92, x1, -60, 3), dark, sky, ((x0, -60), (x1, -92)))
        for x in (-63, -15, 32):
            canvas.paint(stroke(x, -97, x, -14, 1), (0.35, 0.36, 0.38))
        for x in (38, -8):
            canvas.paint(rectangle(x, -56, x + 9, -53), (0.2, 0.2, 0.22))  # handles
        canvas.paint([(74, -62), (82, -63), (82, -53), (76, -53)], BLACK)  # mirror

    @staticmethod
    def _wheel(canvas: Canvas, x: float, turned: float) -> None:
        canvas.paint(oval(x, -12, 23, 22, 180, 360), BLACK)
        canvas.paint(oval(x, -6, 18), (0.07, 0.07, 0.08))
        canvas.paint(oval(x, -6, 11.5), (0.72, 0.73, 0.75), (0.4, 0.4, 0.42), ((x, -18), (x, 6)))
        for angle in turned + np.arange(6) * np.pi / 3:
            canvas.paint(oval(x + 7 * np.cos(angle), -6 + 7 * np.sin(angle), 2, count=10), (0.15, 0.15, 0.16))
        canvas.paint(oval(x, -6, 3, count=12), (0.2, 0.2, 0.2))

    @staticmethod
    def _lights(canvas: Canvas, even: bool) -> None:
        canvas.paint(rectangle(2, -109, 46, -101, 3), (0.14, 0.2, 0.5))
        canvas.paint(rectangle(-96, -108, -76, -101, 3), (0.14, 0.2, 0.5))
        for k, (x0, x1) in enumerate(((3, 23), (25, 45), (-95, -77))):
            lit = even == (k % 2 == 0)
            canvas.paint(rectangle(x0, -108, x1, -102, 2), (0.55, 0.75, 1.0) if lit else (0.1, 0.18, 0.55))
            if lit:
                canvas.glow(((x0 + x1) / 2, -105), 26, (0.26, 0.41, 0.75))


def _tree(rng: np.random.Generator, canvas: Canvas, x: float, ground: float) -> None:
    """A tree whose trunk stands at (x, ground)."""
    size = rng.uniform(22, 48)
    green = hsv(rng.uniform(0.2, 0.33), rng.uniform(0.4, 0.6), rng.uniform(0.22, 0.4))
    canvas.paint(rectangle(x - 3, ground - size, x + 3, ground + 4), (0.2, 0.15, 0.1))
    for _ in range(26):
        angle, away = rng.uniform(0, 2 * np.pi), size * np.sqrt(rng.uniform())
        leaf = oval(
            x + away * np.cos(angle),
            ground - 1.3 * size + 0.9 * away * np.sin(angle),
            rng.uniform(4, 11),
            rng.uniform(4, 9),
            count=14,
        )
        canvas.paint(leaf, green * rng.uniform(0.7, 1.4), alpha=0.85)
