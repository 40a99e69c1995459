"""What stands where in one scene: state only, no pixels.

Lengths and positions are in units of the image's side: x to the right, y down, both in [0, 1].
"""

from dataclasses import dataclass

import numpy as np

from scenegen.vocabulary import Look, SceneType, Vocabulary

NO_THINGS = 0.04  # share of images without any thing
UNLABELLED = 0.12  # share of images with an object that is none of the labels
COUNTS = {2: 0.16, 3: 0.22, 4: 0.22, 5: 0.18, 6: 0.13, 7: 0.09}  # things per image: odds
STRANGER = Look("blob", "plain", (122, 122, 118), (150, 150, 146))


@dataclass(frozen=True)
class Band:
    """A region of stuff from its upper edge down to the next band's.

    `waves` are (amplitude, cycles across the image, phase) of the edge; `phase` shifts the
    texture.
    """

    label: int
    look: Look
    top: float
    waves: tuple[tuple[float, float, float], ...]
    phase: float


@dataclass(frozen=True)
class Thing:
    """An object; label None is an object that no label describes."""

    label: int | None
    look: Look
    x: float
    y: float
    radius: float
    aspect: float
    angle: float
    phase: float


@dataclass(frozen=True)
class World:
    """One scene. Bands from the top down, things from far to near.

    `light` is the direction the light comes from (angle), `tint` its (r, g, b) strength;
    `grain` seeds the noise of the camera.
    """

    scene_type: int
    bands: tuple[Band, ...]
    things: tuple[Thing, ...]
    light: float
    tint: tuple[float, float, float]
    grain: int


@dataclass(frozen=True)
class View:
    """What the camera sees: the point at the centre of the image, and how much larger it looks."""

    x: float = 0.5
    y: float = 0.5
    zoom: float = 1.0


STILL = View()


def sample_world(vocabulary: Vocabulary, rng: np.random.Generator) -> World:
    """Draw a scene; the same generator state gives the same scene."""
    weights = [scene_type.weight for scene_type in vocabulary.scene_types]
    number = int(rng.choice(len(weights), p=weights))
    scene_type = vocabulary.scene_types[number]
    horizon = rng.uniform(0.24, 0.42)
    bands = _bands(vocabulary, scene_type, horizon, rng)
    things = _things(vocabulary, scene_type, horizon, rng)
    gain, warmth = rng.uniform(0.93, 1.07), rng.uniform(-0.04, 0.04)
    return World(
        scene_type=number,
        bands=bands,
        things=things,
        light=float(rng.uniform(-2.6, -0.5)),
        tint=(gain * (1 + warmth), gain, gain * (1 - warmth)),
        grain=int(rng.integers(2**31)),
    )


def _bands(
    vocabulary: Vocabulary, scene_type: SceneType, horizon: float, rng: np.random.Generator
) -> tuple[Band, ...]:
    """The anchor above the horizon, one to three others below it."""
    anchor, *others = range(len(scene_type.stuff))
    count = int(rng.integers(1, min(3, len(others)) + 1))
    weights = scene_type.stuff_weights[1:]
    drawn = sorted(rng.choice(others, count, replace=False, p=weights))
    # Even heights with some play, so that no band gets lost.
    steps = np.cumsum(rng.uniform(0.8, 1.2, count))
    tops = horizon + (1 - horizon) * np.array([0, *steps[:-1] / steps[-1]])
    bands = []
    for position, top in zip([anchor, *drawn], [-1.0, *tops], strict=True):
        label = scene_type.stuff[position]
        waves = tuple(
            (rng.uniform(0.3, 1) * amplitude, rng.uniform(*cycles), rng.uniform(0, 2 * np.pi))
            for amplitude, cycles in ((0.035, (0.4, 1.2)), (0.014, (1.5, 3.5)))
        )
        look = vocabulary.labels[label].look
        bands.append(Band(label, look, float(top), waves, float(rng.uniform(0, 10))))
    return tuple(bands)


def _things(
    vocabulary: Vocabulary, scene_type: SceneType, horizon: float, rng: np.random.Generator
) -> tuple[Thing, ...]:
    """Things on the ground, smaller near the horizon, that hide one another only in part."""
    labels: list[int | None] = []
    if rng.random() >= NO_THINGS:
        for _ in range(rng.choice(list(COUNTS), p=list(COUNTS.values()))):
            if labels and rng.random() < 0.2:  # a herd
                labels.append(labels[-1])
            else:
                labels.append(int(rng.choice(scene_type.things, p=scene_type.thing_weights)))
    if rng.random() < UNLABELLED:
        labels.append(None)
    things: list[Thing] = []
    for label in labels:
        look = STRANGER if label is None else vocabulary.labels[label].look
        for _ in range(40):
            thing = _place(label, look, horizon, rng)
            if all(_apart(thing, other) for other in things):
                things.append(thing)
                break
    return tuple(sorted(things, key=lambda thing: thing.y + thing.radius))


def _place(label: int | None, look: Look, horizon: float, rng: np.random.Generator) -> Thing:
    near = rng.random() ** 1.3  # 0 at the horizon, 1 in front
    radius = (0.09 + 0.1 * near) * rng.uniform(0.9, 1.15)
    foot = horizon + 0.06 + (0.96 - horizon - 0.06) * near
    return Thing(
        label=label,
        look=look,
        x=float(rng.uniform(0.7 * radius, 1 - 0.7 * radius)),
        y=float(max(foot - radius, 0.8 * radius)),
        radius=float(radius),
        aspect=float(rng.uniform(0.85, 1.2)),
        angle=float(rng.uniform(-0.5, 0.5)),
        phase=float(rng.uniform(0, 10)),
    )


def _apart(a: Thing, b: Thing) -> bool:
    return np.hypot(a.x - b.x, a.y - b.y) > 0.78 * (a.radius + b.radius)
