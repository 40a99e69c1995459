"""The contact sheet: images beside their segmentation, with the labels written below."""

from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from scenegen.vocabulary import Colour, Vocabulary
from scenegen.world import World
from scenegen.writer import make_example

# Pixels: a picture, between two, around a card, a line of text, the head of the sheet.
SIDE, GAP, MARGIN, LINE, HEAD = 240, 8, 28, 19, 64
LEGEND_ROWS = 7  # things on the left, up to 7; stuff on the right
PAPER, INK, QUIET, VOID = (250, 249, 246), (40, 42, 48), (125, 128, 135), (255, 255, 255)
NOTE = (
    "White: unlabelled.   *: looks exactly like a label of another scene type, "
    "so only the rest of the image tells."
)


def write_contact_sheet(
    path: Path,
    vocabulary: Vocabulary,
    *,
    seed: int,
    split: str,
    count: int,
    size: int,
    columns: int = 3,
) -> None:
    """Write a PNG with the first `count` scenes of a split, `columns` cards a row."""
    columns = min(columns, count)
    card = 2 * SIDE + GAP, SIDE + LINE + 6 + LEGEND_ROWS * LINE
    rows = -(-count // columns)
    pitch = card[0] + MARGIN, card[1] + MARGIN
    extent = MARGIN + columns * pitch[0], HEAD + MARGIN + rows * pitch[1]
    sheet = Image.new("RGB", extent, PAPER)
    draw = ImageDraw.Draw(sheet)
    title = f"The first {count} {split} scenes, {len(vocabulary.labels)} labels"
    draw.text((MARGIN, MARGIN - 4), title, fill=INK, font=ImageFont.load_default(22))
    draw.text((MARGIN, MARGIN + 28), NOTE, fill=QUIET, font=ImageFont.load_default(12))
    for index in range(count):
        world, image, parts = make_example(vocabulary, seed, split, index, size)
        row, column = divmod(index, columns)
        corner = MARGIN + column * pitch[0], HEAD + MARGIN + row * pitch[1]
        _draw_card(sheet, corner, vocabulary, world, image, parts)
    sheet.save(path)


def _draw_card(
    sheet: Image.Image,
    corner: tuple[int, int],
    vocabulary: Vocabulary,
    world: World,
    image: np.ndarray,
    parts: np.ndarray,
) -> None:
    x, y = corner
    sheet.paste(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.LANCZOS), corner)
    present = [0, *np.unique(parts[parts > 0])]
    elements = [None, *world.bands, *world.things]
    found = sorted({elements[p].label for p in present[1:]})
    sheet.paste(_segmentation(vocabulary, elements, parts), (x + SIDE + GAP, y))
    draw = ImageDraw.Draw(sheet)
    y += SIDE + 6
    things = sum(vocabulary.labels[elements[p].label].is_thing for p in present[1:])
    place = vocabulary.scene_types[world.scene_type].name
    title = f"{place}: {len(found)} labels, {things} {'thing' if things == 1 else 'things'}"
    draw.text((x, y), title, fill=INK, font=ImageFont.load_default(14))
    font = ImageFont.load_default(11)
    looks = Counter(label.look for label in vocabulary.labels)
    rows = {True: 0, False: 0}
    for label in found:
        entry = vocabulary.labels[label]
        left = x if entry.is_thing else x + SIDE + GAP
        top = y + LINE + rows[entry.is_thing] * LINE + 3
        rows[entry.is_thing] += 1
        text = f"{entry.name} *" if looks[entry.look] > 1 else entry.name
        draw.rounded_rectangle((left, top + 2, left + 11, top + 13), 3, fill=entry.colour)
        draw.text((left + 17, top), text, fill=INK, font=font)


def _segmentation(vocabulary: Vocabulary, elements: list, parts: np.ndarray) -> Image.Image:
    """The parts in their labels' colours with light outlines, unlabelled pixels white."""
    colours: list[Colour] = [
        VOID
        if element is None or element.label is None
        else vocabulary.labels[element.label].colour
        for element in elements
    ]
    large = Image.fromarray(parts).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    ids = np.asarray(large)
    pixels = np.array(colours, np.uint8)[ids]
    edge = np.zeros(ids.shape, bool)
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    edge[1:] |= ids[1:] != ids[:-1]
    pixels[edge] = VOID
    return Image.fromarray(pixels)
