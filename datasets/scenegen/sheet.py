"""Contact sheets: images beside their segmentation, with the labels written below."""

from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from scenegen.video_writer import make_video
from scenegen.vocabulary import Colour, Vocabulary
from scenegen.world import World
from scenegen.writer import make_example

# Pixels: an image, between two, around a card, a line of text, the head of the sheet.
SIDE, GAP, MARGIN, LINE, HEAD = 240, 8, 28, 19, 64
LEGEND_ROWS = 7  # things on the left, up to 7; stuff on the right
FRAMES, FRAME_SIDE = 4, 156  # of a video: frames shown, pixels of each
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
    card = 2 * SIDE + GAP, SIDE + LINE + 6 + LEGEND_ROWS * LINE
    title = f"The first {count} {split} scenes, {len(vocabulary.labels)} labels"
    sheet, corners = _new_sheet(title, NOTE, count, card, min(columns, count))
    for index, corner in enumerate(corners):
        world, image, parts = make_example(vocabulary, seed, split, index, size)
        _draw_card(sheet, corner, vocabulary, world, image, parts)
    sheet.save(path)


def write_video_sheet(
    path: Path,
    vocabulary: Vocabulary,
    *,
    seed: int,
    split: str,
    count: int,
    frames: int,
    size: int,
    columns: int = 2,
) -> None:
    """Write a PNG with four frames of the first `count` videos of a split, and their masks."""
    shown = np.unique(np.linspace(0, frames - 1, FRAMES).round().astype(int))
    height = 2 * FRAME_SIDE + GAP + 6 + (1 + LEGEND_ROWS) * LINE
    card = FRAMES * (FRAME_SIDE + GAP) - GAP, height
    title = f"The first {count} {split} videos, {len(vocabulary.labels)} labels"
    note = f"Frames {', '.join(map(str, shown))} of {frames}. Each thing keeps its number.   {NOTE}"
    sheet, corners = _new_sheet(title, note, count, card, min(columns, count))
    for index, corner in enumerate(corners):
        worlds, images, parts = make_video(vocabulary, seed, split, index, frames, size)
        _draw_video_card(sheet, corner, vocabulary, worlds[0], images[shown], parts[shown])
    sheet.save(path)


def _new_sheet(
    title: str, note: str, count: int, card: tuple[int, int], columns: int
) -> tuple[Image.Image, list[tuple[int, int]]]:
    """Paper with its head, and the corners of `count` cards of (width, height)."""
    rows = -(-count // columns)
    pitch = card[0] + MARGIN, card[1] + MARGIN
    extent = MARGIN + columns * pitch[0], HEAD + MARGIN + rows * pitch[1]
    sheet = Image.new("RGB", extent, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN - 4), title, fill=INK, font=ImageFont.load_default(22))
    draw.text((MARGIN, MARGIN + 28), note, fill=QUIET, font=ImageFont.load_default(12))
    places = [divmod(index, columns) for index in range(count)]
    return sheet, [
        (MARGIN + column * pitch[0], HEAD + MARGIN + row * pitch[1]) for row, column in places
    ]


def _draw_card(
    sheet: Image.Image,
    corner: tuple[int, int],
    vocabulary: Vocabulary,
    world: World,
    image: np.ndarray,
    parts: np.ndarray,
) -> None:
    x, y = corner
    elements = [None, *world.bands, *world.things]
    sheet.paste(_picture(image, SIDE), corner)
    sheet.paste(_segmentation(vocabulary, elements, parts, SIDE), (x + SIDE + GAP, y))
    _draw_text(sheet, (x, y + SIDE + 6), vocabulary, world, parts, SIDE + GAP)


def _draw_video_card(
    sheet: Image.Image,
    corner: tuple[int, int],
    vocabulary: Vocabulary,
    world: World,
    images: np.ndarray,
    parts: np.ndarray,
) -> None:
    """Frames (T, h, w, 3) in a row, their parts (T, h, w) below."""
    x, y = corner
    pitch = FRAME_SIDE + GAP
    elements = [None, *world.bands, *world.things]
    for frame, (image, ids) in enumerate(zip(images, parts, strict=True)):
        sheet.paste(_picture(image, FRAME_SIDE), (x + frame * pitch, y))
        segmentation = _segmentation(vocabulary, elements, ids, FRAME_SIDE)
        _number_things(segmentation, ids, 1 + len(world.bands))
        sheet.paste(segmentation, (x + frame * pitch, y + pitch))
    _draw_text(sheet, (x, y + 2 * pitch + 6 - GAP), vocabulary, world, parts, 2 * pitch)


def _number_things(segmentation: Image.Image, parts: np.ndarray, first: int) -> None:
    """Write 1, 2, ... upon the things, whose parts start at `first`."""
    draw, font = ImageDraw.Draw(segmentation), ImageFont.load_default(12)
    scale = segmentation.width / parts.shape[1]
    for part in np.unique(parts[parts >= first]):
        row, column = _middle(parts == part)
        place = (column + 0.5) * scale, (row + 0.5) * scale
        number = str(part - first + 1)
        draw.text(place, number, VOID, font, anchor="mm", stroke_width=2, stroke_fill=INK)


def _middle(mask: np.ndarray) -> tuple[int, int]:
    """The pixel of a mask that is nearest to its centre of mass."""
    places = np.argwhere(mask)
    row, column = places[((places - places.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    return int(row), int(column)


def _draw_text(
    sheet: Image.Image,
    corner: tuple[int, int],
    vocabulary: Vocabulary,
    world: World,
    parts: np.ndarray,
    second_column: int,
) -> None:
    """A line on what is there, then the labels: things on the left, stuff on the right."""
    x, y = corner
    present = np.unique(parts[parts > 0])
    elements = [None, *world.bands, *world.things]
    found = sorted({elements[p].label for p in present})
    draw = ImageDraw.Draw(sheet)
    things = sum(vocabulary.labels[elements[p].label].is_thing for p in present)
    place = vocabulary.scene_types[world.scene_type].name
    title = f"{place}: {len(found)} labels, {things} {'thing' if things == 1 else 'things'}"
    draw.text((x, y), title, fill=INK, font=ImageFont.load_default(14))
    font = ImageFont.load_default(11)
    looks = Counter(label.look for label in vocabulary.labels)
    rows = {True: 0, False: 0}
    for label in found:
        entry = vocabulary.labels[label]
        left = x if entry.is_thing else x + second_column
        top = y + LINE + rows[entry.is_thing] * LINE + 3
        rows[entry.is_thing] += 1
        text = f"{entry.name} *" if looks[entry.look] > 1 else entry.name
        draw.rounded_rectangle((left, top + 2, left + 11, top + 13), 3, fill=entry.colour)
        draw.text((left + 17, top), text, fill=INK, font=font)


def _picture(image: np.ndarray, side: int) -> Image.Image:
    return Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)


def _segmentation(
    vocabulary: Vocabulary, elements: list, parts: np.ndarray, side: int
) -> Image.Image:
    """The parts in their labels' colours with light outlines, unlabelled pixels white."""
    colours: list[Colour] = [
        VOID
        if element is None or element.label is None
        else vocabulary.labels[element.label].colour
        for element in elements
    ]
    large = Image.fromarray(parts).resize((side, side), Image.Resampling.NEAREST)
    ids = np.asarray(large)
    pixels = np.array(colours, np.uint8)[ids]
    edge = np.zeros(ids.shape, bool)
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    edge[1:] |= ids[1:] != ids[:-1]
    pixels[edge] = VOID
    return Image.fromarray(pixels)
