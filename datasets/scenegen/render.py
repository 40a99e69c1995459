"""From a world to pixels and a map of its parts, in numpy.

Shapes: n samples per side of the canvas (two per pixel); coordinate arrays (h, w) float32.
`axes` are the places x (n) of the columns and y (n) of the rows in the world.
"""

from collections.abc import Callable

import numpy as np

from scenegen.vocabulary import Look
from scenegen.world import STILL, Band, Thing, View, World

SAMPLES = 2  # per pixel and side
EDGE = 0.012  # thickness of the unlabelled line between stuff regions, in image sides
GRAIN = 2.0  # standard deviation of the noise, in grey levels of 255

Axes = tuple[np.ndarray, np.ndarray]


def render(world: World, size: int, view: View = STILL) -> tuple[np.ndarray, np.ndarray]:
    """Draw what the camera sees of a world.

    Returns:
        Image (size, size, 3) uint8 and parts (size, size) int32: 0 is unlabelled, then the bands
        from 1 on, then the things.
    """
    n = SAMPLES * size
    axis = (np.arange(n, dtype=np.float32) + 0.5) / n
    axes = _seen(axis, view.x, view.zoom), _seen(axis, view.y, view.zoom)
    canvas = np.empty((n, n, 3), np.float32)
    parts = np.empty((n, n), np.int32)
    _draw_bands(world.bands, axes, canvas, parts)
    for number, thing in enumerate(world.things, start=len(world.bands) + 1):
        _draw_shadow(thing, axes, world.light, canvas)
        part = 0 if thing.label is None else number
        _draw_thing(thing, part, axes, world.light, canvas, parts)
    image = canvas.reshape(size, SAMPLES, size, SAMPLES, 3).mean(axis=(1, 3))
    noise = np.random.default_rng(world.grain).normal(0, GRAIN, (size, size, 1))
    image = image * np.float32(world.tint) + noise
    # The second smallest of the four samples is the majority wherever three or more agree.
    samples = parts.reshape(size, SAMPLES, size, SAMPLES).transpose(0, 2, 1, 3)
    majority = np.sort(samples.reshape(size, size, -1), axis=-1)[..., 1]
    return np.clip(image, 0, 255).astype(np.uint8), majority


def _seen(axis: np.ndarray, centre: float, zoom: float) -> np.ndarray:
    """From places in the image to places in the world."""
    # The still camera must not round: its images are the same with and without this.
    moved = centre - 0.5 / zoom
    return (axis / np.float32(zoom) + np.float32(moved)).astype(np.float32)


def _draw_bands(bands: tuple[Band, ...], axes: Axes, canvas: np.ndarray, parts: np.ndarray) -> None:
    x, y = axes[0], axes[1][:, None]
    horizon = bands[1].top
    for number, band in enumerate(bands, start=1):
        edge = band.top + sum(
            amplitude * np.sin(2 * np.pi * cycles * x + phase)
            for amplitude, cycles, phase in band.waves
        )
        below = y - edge.astype(np.float32)  # (n, n)
        first = int(np.searchsorted(axes[1], edge.min()))
        u, v = x[None, :] - 0.5, y[first:]
        if number == 1:
            u, v = 5 * u, 5 * v
            glow = 0.9 + 0.25 * np.clip(y[first:] / horizon, 0, 1)
        else:
            # A plane seen from above: denser towards the horizon.
            depth = np.maximum(v - horizon, -0.1) + 0.45
            u, v = 3.2 * u / depth, -2.6 / depth
            glow = 0.88 + 0.3 * depth * 0.6
        u, v = np.broadcast_arrays(u, v)
        inside = below[first:] >= 0
        colours = _paint(band.look, u, v, band.phase, contrast=0.6) * glow[..., None]
        canvas[first:][inside] = colours[inside]
        parts[below >= 0] = number
        parts[np.abs(below) < EDGE / 2] = 0


def _draw_shadow(thing: Thing, axes: Axes, light: float, canvas: np.ndarray) -> None:
    x = thing.x - 0.25 * thing.radius * np.cos(light)
    y = thing.y + 0.9 * thing.radius
    rows, columns = _window(axes, x, y, 1.4 * thing.radius)
    dx = (axes[0][columns][None, :] - x) / (1.15 * thing.radius)
    dy = (axes[1][rows][:, None] - y) / (0.38 * thing.radius)
    darkness = 0.45 * np.clip(1 - dx**2 - dy**2, 0, 1)
    canvas[rows, columns] *= (1 - darkness)[..., None]


def _draw_thing(
    thing: Thing,
    part: int,
    axes: Axes,
    light: float,
    canvas: np.ndarray,
    parts: np.ndarray,
) -> None:
    rows, columns = _window(axes, thing.x, thing.y, 1.3 * thing.radius)
    dx = (axes[0][columns][None, :] - thing.x) / thing.radius
    dy = (axes[1][rows][:, None] - thing.y) / thing.radius
    # Into the thing's own frame: the texture turns and moves with it.
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    u = (cos * dx + sin * dy) / thing.aspect
    v = (cos * dy - sin * dx) * thing.aspect
    rho = np.hypot(u, v)
    reach = OUTLINES[thing.look.shape](np.arctan2(u, -v), thing.phase)
    q = rho / reach  # 0 at the centre, 1 on the outline
    inside = q < 1
    if thing.look.shape in HOLES:
        hole = HOLES[thing.look.shape](u, v)
        inside &= hole > 1
        q = np.maximum(q, np.clip(1.9 - hole, 0, 1))
    colours = _paint(thing.look, 2.2 * u, 2.2 * v, thing.phase, contrast=1.0)
    colours *= _shading(dx, dy, q, light)[..., None]
    colours += 60 * _gloss(dx, dy, light)[..., None]
    canvas[rows, columns][inside] = colours[inside]
    parts[rows, columns][inside] = part


def _window(axes: Axes, x: float, y: float, reach: float) -> tuple[slice, slice]:
    rows = slice(*np.searchsorted(axes[1], (y - reach, y + reach)))
    columns = slice(*np.searchsorted(axes[0], (x - reach, x + reach)))
    return rows, columns


def _shading(dx: np.ndarray, dy: np.ndarray, q: np.ndarray, light: float) -> np.ndarray:
    """Brightness of a cushion lit from `light`, with a dark rim."""
    slope = np.clip(q, 0, 1) ** 3
    towards = (dx * np.cos(light) + dy * np.sin(light)) / np.maximum(np.hypot(dx, dy), 1e-3)
    lit = 1.0 + 0.28 * slope * towards
    return lit * (1 - 0.45 * np.clip((q - 0.88) / 0.12, 0, 1))


def _gloss(dx: np.ndarray, dy: np.ndarray, light: float) -> np.ndarray:
    far = (dx - 0.4 * np.cos(light)) ** 2 + (dy - 0.4 * np.sin(light)) ** 2
    return np.exp(-far / 0.06)


def _paint(look: Look, u: np.ndarray, v: np.ndarray, phase: float, contrast: float) -> np.ndarray:
    """Colours (h, w, 3) of the look's texture at texture coordinates u, v (h, w)."""
    share = contrast * PATTERNS[look.texture](u, v, phase)[..., None]
    base, accent = np.float32(look.colour), np.float32(look.accent)
    return (base + (accent - base) * share).astype(np.float32)


def _step(x: np.ndarray, softness: float = 0.12) -> np.ndarray:
    """0 below zero, 1 above, with a soft edge."""
    return np.clip(x / softness + 0.5, 0, 1)


def _tent(x: np.ndarray) -> np.ndarray:
    """Distance to the nearest integer: 0 to 0.5, period 1."""
    return np.abs(x - np.round(x))


def _marbled(u: np.ndarray, v: np.ndarray, phase: float) -> np.ndarray:
    warp = np.sin(2.1 * v + phase) + 0.6 * np.sin(3.3 * u - 2 * phase)
    return 0.5 + 0.5 * np.sin(2.4 * u + 1.9 * v + 2.2 * warp)


def _speckled(u: np.ndarray, v: np.ndarray, phase: float) -> np.ndarray:
    """One small dot of any size somewhere in each cell."""
    u, v = 1.9 * u + phase, 1.9 * v + phase
    column, row = np.floor(u), np.floor(v)
    chance = np.abs(np.sin(12.9898 * column + 78.233 * row)) * 97.31 % 1
    du, dv = u - column - 0.3 - 0.4 * chance, v - row - 0.3 - 0.4 * (7 * chance % 1)
    return _step(0.16 + 0.16 * (3 * chance % 1) - np.hypot(du, dv))


# Texture: coordinates and a shift -> share of the accent colour, 0 to 1. About one cycle per unit.
PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "plain": lambda u, v, phase: np.zeros_like(u),
    "striped": lambda u, v, phase: _step(_tent(u + phase) - 0.27),
    "dotted": lambda u, v, phase: _step(0.3 - np.hypot(_tent(1.1 * u), _tent(1.1 * v + phase))),
    "checked": lambda u, v, phase: _step(
        np.sin(np.pi * 1.2 * u) * np.sin(np.pi * (1.2 * v + phase)), 0.3
    ),
    "netted": lambda u, v, phase: _step(0.13 - np.minimum(_tent(u + v + phase), _tent(u - v))),
    "wavy": lambda u, v, phase: _step(_tent(v + phase + 0.25 * np.sin(4 * u)) - 0.25),
    "marbled": _marbled,
    "speckled": _speckled,
}


def _polygon(theta: np.ndarray, radii: tuple[float, ...]) -> np.ndarray:
    """Outline through points of these radii at even angles, the first straight up."""
    turn = 2 * np.pi / len(radii)
    steps = theta / turn
    corner = np.floor(steps)
    part = (steps - corner) * turn
    corner = corner.astype(int) % len(radii)
    table = np.float32(radii)
    a, b = table[corner], np.roll(table, -1)[corner]
    return a * b * np.sin(turn) / (a * np.sin(part) + b * np.sin(turn - part))


# Outline: angle from straight up and the thing's phase -> distance from the centre, about 1.
OUTLINES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "disc": lambda theta, phase: np.ones_like(theta),
    "ring": lambda theta, phase: np.ones_like(theta),
    "crescent": lambda theta, phase: np.full_like(theta, 1.08),
    "triangle": lambda theta, phase: _polygon(theta, (1.2, 1.2, 1.2)),
    "block": lambda theta, phase: _polygon(theta + np.pi / 4, (1.2,) * 4),
    "hexagon": lambda theta, phase: _polygon(theta, (1.06,) * 6),
    "star": lambda theta, phase: _polygon(theta, (1.2, 0.55) * 5),
    "cross": lambda theta, phase: _polygon(theta + np.pi / 8, (1.12, 1.12, 0.5) * 4),
    "flower": lambda theta, phase: 0.84 + 0.24 * np.cos(5 * theta),
    "gear": lambda theta, phase: 0.93 + 0.11 * np.tanh(4 * np.cos(9 * theta)),
    "blob": lambda theta, phase: (
        0.93 + 0.13 * np.sin(2 * theta + phase) + 0.1 * np.sin(3 * theta + 2.7 * phase)
    ),
    "drop": lambda theta, phase: 0.8 + 0.42 * np.exp(-3.2 * np.abs(theta)),
}
# Shapes with a hole: coordinates -> more than 1 outside the hole.
HOLES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "ring": lambda u, v: np.hypot(u, v) / 0.48,
    "crescent": lambda u, v: np.hypot(u - 0.55, v + 0.15) / 0.72,
}
