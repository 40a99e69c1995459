"""What can be seen: K labels, how each looks, and the scene types they live in.

A look is a shape, a texture and two colours. Labels that share a look never share a scene type,
so a crop alone cannot tell them apart, while the whole image can: the first stuff label of a scene
type, its anchor, is in each of its images and its look belongs to it alone.
"""

import colorsys
import itertools
from dataclasses import dataclass

import numpy as np

Colour = tuple[int, int, int]

SHAPES = (
    *("disc", "ring", "triangle", "block", "hexagon", "star"),
    *("cross", "flower", "gear", "blob", "drop", "crescent"),
)
TEXTURES = ("plain", "striped", "dotted", "checked", "netted", "wavy", "marbled", "speckled")
THING_COLOURS: dict[str, Colour] = {
    "red": (214, 48, 49),
    "orange": (240, 128, 30),
    "yellow": (246, 206, 56),
    "lime": (150, 205, 50),
    "green": (34, 139, 66),
    "teal": (10, 150, 145),
    "aqua": (90, 205, 225),
    "blue": (45, 100, 215),
    "navy": (35, 45, 120),
    "violet": (125, 70, 190),
    "magenta": (205, 55, 150),
    "pink": (245, 150, 180),
    "brown": (120, 72, 42),
    "white": (236, 232, 222),
    "black": (48, 48, 56),
}
# Quieter than the things, so that these stand out.
STUFF_COLOURS: tuple[Colour, ...] = (
    *((150, 190, 225), (80, 120, 160), (180, 215, 200), (96, 140, 110), (150, 170, 95)),
    *((205, 195, 120), (225, 205, 165), (200, 150, 105), (150, 105, 80), (185, 110, 100)),
    *((225, 165, 150), (190, 150, 190), (120, 100, 150), (95, 95, 105), (170, 170, 175)),
    *((220, 222, 228), (70, 90, 85), (235, 190, 120)),
)
# The first is for anchors, the backdrop at the top of the image.
SURFACES = ("sky", "ground", "field", "floor", "path", "hill", "slope", "terrace")
PLACES = (
    *("harbour", "meadow", "canyon", "orchard", "desert"),
    *("market", "glacier", "jungle", "quarry", "lagoon"),
    *("prairie", "village", "volcano", "cavern", "garden"),
    *("airfield", "bayou", "beach", "bog", "bridge"),
    *("camp", "castle", "chapel", "cliff", "coast"),
    *("courtyard", "cove", "crater", "creek", "dale"),
    *("delta", "depot", "dock", "dune", "estuary"),
    *("fair", "farm", "fen", "ferry", "fjord"),
    *("ford", "forest", "fort", "fountain", "gallery"),
    *("geyser", "glade", "gorge", "grove", "gulf"),
    *("heath", "hollow", "inlet", "island", "isle"),
    *("jetty", "kiln", "knoll", "lake", "ledge"),
    *("lighthouse", "lock", "loft", "marina", "mesa"),
    *("mill", "mine", "moor", "mountain", "museum"),
    *("oasis", "ocean", "palace", "park", "pass"),
    *("pasture", "pier", "peninsula", "plateau", "plaza"),
    *("pond", "pool", "ravine", "reef", "ridge"),
    *("river", "rooftop", "ruin", "savanna", "shipyard"),
    *("shore", "spring", "square", "stable", "station"),
    *("steppe", "summit", "swamp", "tundra", "vineyard"),
)
MAX_ALIKE = 4  # labels per shared look
SCENE_EXPONENT, LABEL_EXPONENT = 0.6, 0.8  # of the Zipf laws: frequency ~ rank ** -exponent


@dataclass(frozen=True)
class Look:
    """What a label looks like in every image; shape is empty for stuff."""

    shape: str
    texture: str
    colour: Colour
    accent: Colour


@dataclass(frozen=True)
class Label:
    """One of the K labels; `colour` is for drawings of segmentations, unlike that of the look."""

    name: str
    is_thing: bool
    look: Look
    colour: Colour
    scene_types: tuple[int, ...]


@dataclass(frozen=True)
class SceneType:
    """Labels that occur together, with the odds of each; stuff from the top of the image down."""

    name: str
    weight: float
    things: tuple[int, ...]
    thing_weights: tuple[float, ...]
    stuff: tuple[int, ...]
    stuff_weights: tuple[float, ...]


@dataclass(frozen=True)
class Vocabulary:
    """The label space: label id i is `labels[i]`, things first; weights of types sum to one."""

    labels: tuple[Label, ...]
    scene_types: tuple[SceneType, ...]


def make_vocabulary(num_labels: int, seed: int, ambiguity: float) -> Vocabulary:
    """The label space of these settings, the same whenever it is made.

    Args:
        num_labels: K, 8 to 1000.
        seed: of the scenes.
        ambiguity: share of the labels that look like labels of other scene types, in [0, 1];
            anchors never do, so that every image can be told.
    """
    # Images draw from [seed, 0 or 1, index]; 2 keeps this stream apart from theirs.
    rng = np.random.default_rng([seed, 2])
    num_types = max(2, round(num_labels / 10))
    num_things = round(0.6 * num_labels)
    things, stuff = np.arange(num_things), np.arange(num_things, num_labels)
    homes = _share_out(things, num_types), _share_out(stuff, num_types)
    anchors = [own[0] for own in homes[1]]
    members = _borrow(homes[0], [], rng), _borrow(homes[1], anchors, rng)
    types_of = [
        tuple(t for t in range(num_types) if i in members[0][t] or i in members[1][t])
        for i in range(num_labels)
    ]
    alike = _groups(things, anchors, types_of, round(ambiguity * num_things), rng)
    alike += _groups(stuff, anchors, types_of, round(ambiguity * len(stuff)), rng)
    looks = _looks(alike, num_things, anchors, types_of, rng)
    places = rng.permutation(PLACES)[:num_types]
    names = _names(looks, homes, places)
    labels = tuple(
        Label(names[i], i < num_things, looks[i], _drawing_colour(i, i < num_things), types_of[i])
        for i in range(num_labels)
    )
    weights = _zipf(num_types, SCENE_EXPONENT)
    scene_types = tuple(
        _scene_type(str(places[t]), weights[t], members[0][t], members[1][t], rng)
        for t in range(num_types)
    )
    return Vocabulary(labels, scene_types)


def _share_out(ids: np.ndarray, num_types: int) -> list[list[int]]:
    return [[int(i) for i in ids[t::num_types]] for t in range(num_types)]


def _borrow(homes: list[list[int]], anchors: list[int], rng: np.random.Generator):
    """Each type's labels and one of another type, so that some labels occur in several types."""
    members = []
    for own in homes:
        foreign = [i for other in homes if other is not own for i in other if i not in anchors]
        members.append([*own, int(rng.choice(foreign))] if foreign else list(own))
    return members


def _groups(
    ids: np.ndarray,
    anchors: list[int],
    types_of: list[tuple[int, ...]],
    target: int,
    rng: np.random.Generator,
) -> list[list[int]]:
    """Partition of `ids` into labels that look alike; about `target` of them are not alone."""
    left = [int(i) for i in rng.permutation(ids) if i not in anchors]
    groups = [[i] for i in anchors if i in ids]
    while left:
        group = [left.pop(0)]
        taken = set(types_of[group[0]])
        for other in list(left):
            if len(group) >= min(MAX_ALIKE, target):
                break
            if taken.isdisjoint(types_of[other]):
                group.append(other)
                left.remove(other)
                taken.update(types_of[other])
        if len(group) > 1:
            target -= len(group)
        groups.append(group)
    return groups


def _looks(
    alike: list[list[int]],
    num_things: int,
    anchors: list[int],
    types_of: list[tuple[int, ...]],
    rng: np.random.Generator,
) -> dict[int, Look]:
    """A look of its own for each group, far from those of the labels it occurs with."""
    things = [
        Look(shape, texture, colour, _accents(colour)[0])
        for shape, texture, colour in itertools.product(SHAPES, TEXTURES, THING_COLOURS.values())
    ]
    stuff = [
        Look("", texture, colour, accent)
        for texture, colour in itertools.product(TEXTURES, STUFF_COLOURS)
        for accent in _accents(colour)
    ]
    pools = {True: _Pool(things, rng), False: _Pool(stuff, rng)}
    looks = {}
    # Anchors first: they must differ most among themselves.
    for group in sorted(alike, key=lambda g: g[0] not in anchors):
        types = {t for i in group for t in types_of[i]}
        look = pools[group[0] < num_things].pop(types)
        looks.update(dict.fromkeys(group, look))
    return looks


class _Pool:
    """Looks still free, with the distance of each to the looks given out."""

    def __init__(self, looks: list[Look], rng: np.random.Generator):
        self.looks = [looks[i] for i in rng.permutation(len(looks))]
        self.colours = np.array([(*x.colour, *x.accent) for x in self.looks]) / 255
        self.shapes = np.array([x.shape for x in self.looks])
        self.textures = np.array([x.texture for x in self.looks])
        self.nearest = np.full(len(looks), 9.0)
        self.nearest_in_type: dict[int, np.ndarray] = {}

    def pop(self, types: set[int]) -> Look:
        near = [self.nearest_in_type[t] for t in types if t in self.nearest_in_type]
        # Labels that never meet may look half as different.
        best = int(np.min([2 * self.nearest, *near], axis=0).argmax())
        distance = (
            np.linalg.norm((self.colours - self.colours[best])[:, :3], axis=1)
            + 0.3 * np.linalg.norm((self.colours - self.colours[best])[:, 3:], axis=1)
            + 0.3 * (self.shapes != self.shapes[best])
            + 0.25 * (self.textures != self.textures[best])
        )
        distance[best] = -1  # never twice
        self.nearest = np.minimum(self.nearest, distance)
        for t in types:
            self.nearest_in_type[t] = np.minimum(self.nearest_in_type.get(t, 9.0), distance)
        return self.looks[best]


def _accents(colour: Colour) -> list[Colour]:
    """Second colours that go with a first; the first of them contrasts most."""
    dark, light = (28, 28, 40), (255, 252, 240)
    strong, weak = (dark, light) if sum(colour) > 390 else (light, dark)
    mixes = ((strong, 0.5), (weak, 0.45), ((235, 120, 60), 0.45), ((60, 110, 210), 0.45))
    return [
        tuple(round(c + share * (o - c)) for c, o in zip(colour, other, strict=True))
        for other, share in mixes
    ]


def _names(looks: dict[int, Look], homes, places) -> dict[int, str]:
    """Place, texture and shape or surface; the colour too where that would not be unique."""
    colour_words = {colour: word for word, colour in THING_COLOURS.items()}
    names: dict[int, str] = {}
    for place, things, stuff in zip(places, *homes, strict=True):
        for i in things:
            look = looks[i]
            name = f"{place} {look.texture} {look.shape}"
            if name in names.values():
                name = f"{place} {colour_words[look.colour]} {look.texture} {look.shape}"
            names[i] = name
        for i, surface in zip(stuff, SURFACES, strict=False):
            names[i] = f"{place} {looks[i].texture} {surface}"
    return names


def _drawing_colour(i: int, is_thing: bool) -> Colour:
    """Hues a golden angle apart, strong for things and pale for stuff: no two alike."""
    saturation, value = (0.72, 0.86) if is_thing else (0.3, 0.93)
    saturation, value = saturation - 0.18 * (i * 0.7549 % 1), value - 0.18 * (i * 0.5698 % 1)
    red, green, blue = colorsys.hsv_to_rgb(i * 0.618034 % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _zipf(n: int, exponent: float) -> tuple[float, ...]:
    weights = np.arange(1, n + 1) ** -exponent
    return tuple(float(w) for w in weights / weights.sum())


def _scene_type(
    name: str, weight: float, things: list[int], stuff: list[int], rng: np.random.Generator
) -> SceneType:
    """Things and stuff but the anchor get their frequency ranks by chance."""
    others = [int(i) for i in rng.permutation(stuff[1:])]
    return SceneType(
        name=name,
        weight=weight,
        things=tuple(int(i) for i in rng.permutation(things)),
        thing_weights=_zipf(len(things), LABEL_EXPONENT),
        stuff=(stuff[0], *others),
        stuff_weights=(1.0, *_zipf(len(others), LABEL_EXPONENT)),
    )
