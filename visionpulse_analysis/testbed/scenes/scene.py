"""Scenes with known truth: coloured shapes on a grid of cells.

A scene is a square grid of cells; an occupied cell holds one shape, and no two objects of a scene share both colour
and shape, so "the red circle" names at most one object. Everything is determined by an integer seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

CELL = 16  # pixels per cell side; with patches of 8 pixels a cell is 2 x 2 patches
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (208, 32, 40),
    "orange": (245, 140, 20),
    "yellow": (225, 205, 30),
    "green": (40, 150, 60),
    "cyan": (40, 190, 205),
    "blue": (40, 80, 200),
    "purple": (130, 50, 160),
    "black": (35, 35, 40),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star")
MAX_CELLS = 16
OBJECTS_PER_SIZE = {4: (2, 8), 6: (6, 12), 8: (7, 14), 16: (20, 40)}  # inclusive ranges, by cells per side


@dataclass(frozen=True)
class SceneObject:
    """One shape: what it is, which cell it occupies, and its jitter (pixels and relative size)."""

    colour: str
    shape: str
    row: int
    col: int
    dx: float = 0.0
    dy: float = 0.0
    size: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def place(self) -> tuple[str, str]:
        return f"r{self.row}", f"c{self.col}"


@dataclass(frozen=True)
class Scene:
    """A grid of ``cells`` x ``cells`` cells with objects; ``seed`` fixes the background texture."""

    cells: int
    objects: tuple[SceneObject, ...]
    seed: int

    def __post_init__(self) -> None:
        places = [(o.row, o.col) for o in self.objects]
        if len(set(places)) != len(places):
            raise ValueError(f"two objects share a cell: {places}; place each object in a cell of its own")
        names = [o.name for o in self.objects]
        if len(set(names)) != len(names):
            raise ValueError(f"two objects look the same: {names}; colour and shape together must be unique")
        for o in self.objects:
            if not (0 <= o.row < self.cells and 0 <= o.col < self.cells):
                raise ValueError(
                    f"{o.name} is at row {o.row}, column {o.col}, outside a {self.cells} x {self.cells} grid"
                )

    def index_of(self, colour: str, shape: str) -> int | None:
        """Index of the object of that colour and shape, or None."""
        for index, o in enumerate(self.objects):
            if o.colour == colour and o.shape == shape:
                return index
        return None

    def render(self) -> np.ndarray:
        """Draw the scene: uint8 [row_px, col_px, 3], ``CELL`` pixels per cell, anti-aliased."""
        return render(self)

    def to_dict(self) -> dict:
        return {"cells": self.cells, "seed": self.seed, "objects": [vars(o) for o in self.objects]}

    @classmethod
    def from_dict(cls, data: dict) -> Scene:
        return cls(data["cells"], tuple(SceneObject(**o) for o in data["objects"]), data["seed"])


def generate(seed: int, cells: int = 8, n_objects: int | None = None) -> Scene:
    """Draw a random scene.

    Objects come from a random palette of colours and shapes, large enough to tell them all apart: with few
    colours only the shape tells two objects apart, with few shapes only the colour, in between it takes both.

    Parameters
    ----------
    seed : int
        Fixes everything.
    cells : int
        Cells per side, 2 to 16.
    n_objects : int, optional
        Number of objects, at most ``min(cells**2, 48)``; drawn from a range that grows with ``cells`` by default.

    Raises
    ------
    ValueError
        If ``cells`` or ``n_objects`` is out of range.
    """
    if not 2 <= cells <= MAX_CELLS:
        raise ValueError(f"cells must be 2 to {MAX_CELLS} per side, got {cells}")
    most = min(cells**2, len(COLOURS) * len(SHAPES))
    rng = np.random.default_rng([seed, cells])
    if n_objects is None:
        low, high = OBJECTS_PER_SIZE.get(cells, (cells, min(2 * cells, most)))
        n_objects = int(rng.integers(low, high + 1))
    if not 1 <= n_objects <= most:
        raise ValueError(f"a {cells} x {cells} scene holds 1 to {most} objects, got {n_objects}")
    palettes = [(c, f) for c in range(1, len(COLOURS) + 1) for f in range(1, len(SHAPES) + 1) if c * f >= n_objects]
    n_colours, n_shapes = palettes[int(rng.integers(len(palettes)))]
    colours = rng.permutation(list(COLOURS))[:n_colours]
    shapes = rng.permutation(SHAPES)[:n_shapes]
    kinds = rng.choice(n_colours * n_shapes, size=n_objects, replace=False)
    places = rng.choice(cells * cells, size=n_objects, replace=False)
    jitter = rng.uniform(-1.0, 1.0, size=(n_objects, 3))
    objects = tuple(
        SceneObject(
            colour=str(colours[kind // n_shapes]),
            shape=str(shapes[kind % n_shapes]),
            row=int(place // cells),
            col=int(place % cells),
            dx=round(float(j[0]) * 0.8, 2),
            dy=round(float(j[1]) * 0.8, 2),
            size=round(1.0 + float(j[2]) * 0.08, 3),
        )
        for kind, place, j in zip(kinds, places, jitter, strict=True)
    )
    return Scene(cells, objects, seed)


def render(scene: Scene) -> np.ndarray:
    """Draw ``scene``: uint8 [row_px, col_px, 3]."""
    side = scene.cells * CELL
    rng = np.random.default_rng([scene.seed, scene.cells, 1])
    coarse = rng.normal(0.0, 5.0, size=(scene.cells * 2 + 1, scene.cells * 2 + 1))
    texture = np.kron(coarse, np.ones((8, 8)))[:side, :side] + rng.normal(0.0, 3.0, size=(side, side))
    image = np.clip(232.0 + texture, 0, 255)[:, :, None].repeat(3, axis=2)
    for o in scene.objects:
        rows = slice(o.row * CELL, (o.row + 1) * CELL)
        cols = slice(o.col * CELL, (o.col + 1) * CELL)
        cover = _coverage(o)[:, :, None]
        image[rows, cols] = (1 - cover) * image[rows, cols] + cover * np.asarray(COLOURS[o.colour], float)
    return image.round().astype(np.uint8)


def _coverage(o: SceneObject) -> np.ndarray:
    """Share of each pixel of the cell covered by the shape: float [CELL, CELL] in 0..1, from a signed distance."""
    y, x = np.mgrid[0:CELL, 0:CELL] + 0.5
    x, y = x - CELL / 2 - o.dx, y - CELL / 2 - o.dy
    radius = 6.5 * o.size
    distance = np.hypot(x, y) - radius if o.shape == "circle" else _polygon_distance(x, y, _outline(o.shape) * radius)
    return np.clip(0.5 - distance, 0.0, 1.0)


@cache
def _outline(shape: str) -> np.ndarray:
    """Corners [corner, xy] of a shape of unit radius, y pointing down."""
    if shape == "square":
        return np.array([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)])
    if shape == "triangle":
        return np.array([(0.0, -1.0), (1.0, 0.85), (-1.0, 0.85)])
    if shape == "diamond":
        return np.array([(0.0, -1.1), (0.72, 0.0), (0.0, 1.1), (-0.72, 0.0)])
    if shape == "cross":
        a, b = 0.3, 1.03
        quarter = [(a, -b), (a, -a), (b, -a)]
        return np.array([p for k in range(4) for p in [_turn(q, k) for q in quarter]])
    if shape == "star":
        angles = np.pi * np.arange(10) / 5 - np.pi / 2
        radii = np.where(np.arange(10) % 2 == 0, 1.12, 0.47)
        return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


def _turn(point: tuple[float, float], quarters: int) -> tuple[float, float]:
    x, y = point
    for _ in range(quarters):
        x, y = -y, x
    return x, y


def _polygon_distance(x: np.ndarray, y: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Signed distance in pixels to a polygon's edge, negative inside: same shape as ``x``."""
    ax, ay = corners[:, 0, None, None], corners[:, 1, None, None]
    bx, by = np.roll(ax, -1, axis=0), np.roll(ay, -1, axis=0)
    ex, ey = bx - ax, by - ay
    t = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex**2 + ey**2), 0, 1)
    distance = np.hypot(x - ax - t * ex, y - ay - t * ey).min(axis=0)
    crosses = ((ay > y) != (by > y)) & (x < ex * (y - ay) / np.where(ey == 0, 1, ey) + ax)
    return np.where(crosses.sum(axis=0) % 2 == 1, -distance, distance)
