"""How a scene moves: where the things and the camera are at any time of a video.

Time runs from 0 (first frame) to 1 (last frame); speeds are per video, so that more frames mean
smaller steps. Lengths are in image sides, as in `world`.
"""

from dataclasses import dataclass, replace

import numpy as np

from scenegen.vocabulary import Vocabulary
from scenegen.world import Thing, View, World, sample_world

STANDING, FAST = 0.2, 0.4  # shares of the things; the rest is slow
SLOW_SPEED, FAST_SPEED = (0.06, 0.35), (0.5, 1.1)
GROWTH = 0.3  # largest change of the logarithm of a thing's size
SLOPE = 4.0  # a thing that gets nearer moves its foot down by so much per radius it gains
DRIFT, ZOOM = (0.2, 0.05), 0.3  # of the camera: largest way (x, y), change of log zoom


@dataclass(frozen=True)
class Sway:
    """A small slow swing around the straight way."""

    amplitude: float
    cycles: float
    phase: float

    def at(self, time: float) -> float:
        return self.amplitude * float(np.sin(2 * np.pi * self.cycles * time + self.phase))


@dataclass(frozen=True)
class Course:
    """The way of one thing, which stands where the still scene has it at `when`.

    Looks never change, and the texture turns and scales with the thing. `sways` are of x, y and
    the angle.
    """

    thing: Thing
    when: float
    speed: float
    growth: float
    spin: float
    sways: tuple[Sway, Sway, Sway]

    def at(self, time: float) -> Thing:
        since = time - self.when
        across, up, turn = (sway.at(time) for sway in self.sways)
        radius = _radius(self.thing, self.growth * since)
        return replace(
            self.thing,
            x=self.thing.x + self.speed * since + across,
            y=self.thing.y + (SLOPE - 1) * (radius - self.thing.radius) + up,
            radius=radius,
            angle=self.thing.angle + self.spin * since + turn,
        )


@dataclass(frozen=True)
class Camera:
    """The way of the camera, in the middle of which it sees the still scene; sways of x and y."""

    drift: tuple[float, float]
    zoom: float
    sways: tuple[Sway, Sway]

    def at(self, time: float) -> View:
        x, y = (
            0.5 + drift * (time - 0.5) + sway.at(time)
            for drift, sway in zip(self.drift, self.sways, strict=True)
        )
        return View(x, y, float(np.exp(self.zoom * (time - 0.5))))


@dataclass(frozen=True)
class Motion:
    """A moving scene: things keep their places in `world.things`, from far to near."""

    world: World
    courses: tuple[Course, ...]
    camera: Camera

    def at(self, time: float) -> tuple[World, View]:
        """The scene and what the camera sees at a time in [0, 1]."""
        things = tuple(course.at(time) for course in self.courses)
        # Noise of its own for each frame, as cameras have it.
        grain = self.world.grain + round(1e6 * time)
        return replace(self.world, things=things, grain=grain), self.camera.at(time)


def sample_motion(vocabulary: Vocabulary, rng: np.random.Generator) -> Motion:
    """Draw a moving scene; the same generator state gives the same."""
    world = sample_world(vocabulary, rng)
    horizon = world.bands[1].top
    courses = tuple(_course(thing, horizon, rng) for thing in world.things)
    camera = Camera(
        drift=(float(rng.uniform(-1, 1)) * DRIFT[0], float(rng.uniform(-1, 1)) * DRIFT[1]),
        zoom=float(rng.uniform(-ZOOM, ZOOM)),
        sways=(_sway(0.008, rng), _sway(0.005, rng)),
    )
    return Motion(world, courses, camera)


def _course(thing: Thing, horizon: float, rng: np.random.Generator) -> Course:
    """Every thing is in the image at some time; fast ones enter or leave, or do both."""
    kind, when = rng.random(), float(rng.random())
    if kind < STANDING:
        speed = growth = spin = 0.0
    else:
        low, high = FAST_SPEED if kind > 1 - FAST else SLOW_SPEED
        speed = float(rng.uniform(low, high) * rng.choice([-1, 1]))
        growth = float(rng.uniform(-GROWTH, GROWTH))
        spin = float(rng.uniform(-0.7, 0.7))
    least = min(_radius(thing, growth * (end - when)) for end in (0, 1))
    foot = thing.y + thing.radius
    if foot + SLOPE * (least - thing.radius) < horizon + 0.02:
        growth = 0.0  # else it would walk into the sky
    sways = _sway(0.012, rng), _sway(0.008, rng), _sway(0.1, rng)
    return Course(thing, when, speed, growth, spin, sways)


def _radius(thing: Thing, log_scale: float) -> float:
    return float(thing.radius * np.exp(log_scale))


def _sway(amplitude: float, rng: np.random.Generator) -> Sway:
    amplitude, cycles, phase = rng.uniform((0.3 * amplitude, 0.5, 0), (amplitude, 1.3, 2 * np.pi))
    return Sway(float(amplitude), float(cycles), float(phase))
