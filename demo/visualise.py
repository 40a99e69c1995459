"""Drawings of results: segments over the image, the label ranking beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from detectron2.data import Metadata, MetadataCatalog
from PIL import Image, ImageDraw, ImageFont

INK, PAPER, RULE = (35, 39, 47), (255, 255, 255), (222, 226, 232)
PRESENT, ABSENT = (46, 134, 94), (176, 184, 196)
# Left, top, right, bottom; the pixels of all four edges are part of it.
Box = tuple[int, int, int, int]


@dataclass
class Region:
    """One coloured area.

    Attributes:
        mask: (H, W) bool.
        label: contiguous label id.
        colour: RGB.
    """

    mask: np.ndarray
    label: int
    colour: tuple[int, int, int]


class Labels:
    """Names and colours of a dataset's labels."""

    def __init__(self, metadata: Metadata | Mapping):
        names = metadata.get("label_names") or metadata.get("stuff_classes")
        self.names = names or metadata.get("thing_classes", [])
        own = metadata.get("stuff_colors") or metadata.get("thing_colors") or []
        # A thing-only table of another length does not belong to these names.
        self.colours = own if len(own) >= len(self.names) else []

    @classmethod
    def from_datasets(cls, datasets: Sequence[str]) -> "Labels":
        """Labels of the first dataset; numbers and made-up colours without a dataset."""
        return cls(MetadataCatalog.get(datasets[0]) if datasets else {})

    def name(self, label: int) -> str:
        """The label's name, or its number."""
        return self.names[label] if label < len(self.names) else f"label {label}"

    def colour(self, label: int) -> tuple[int, int, int]:
        """The dataset's colour, or one made up."""
        if label < len(self.colours):
            return tuple(self.colours[label])
        return made_up_colour(label)


def made_up_colour(number: int) -> tuple[int, int, int]:
    """Colours that stay apart: hues a golden angle apart."""
    import colorsys

    rgb = colorsys.hsv_to_rgb(number * 0.61803 % 1, 0.5 + 0.12 * (number % 4), 0.92)
    return tuple(int(255 * x) for x in rgb)


def panoptic_regions(ids: np.ndarray, segments: Sequence[dict], labels: Labels) -> list[Region]:
    """Regions of a panoptic map; objects of one label get shades of its colour."""
    regions, seen = [], {}
    for segment in segments:
        label = int(segment["category_id"])
        seen[label] = seen.get(label, -1) + 1
        shade = 1 - 0.17 * (seen[label] % 4)
        colour = tuple(int(c * shade) for c in labels.colour(label))
        regions.append(Region(ids == segment["id"], label, colour))
    return regions


def semantic_regions(label_map: np.ndarray, ignore_label: int, labels: Labels) -> list[Region]:
    """Regions of a label map."""
    return [
        Region(label_map == k, k, labels.colour(k))
        for k in np.unique(label_map).tolist()
        if k != ignore_label
    ]


def regions_of(result: dict, labels: Labels, min_score: float = 0.5) -> list[Region]:
    """Regions of what the model returned: panoptic, else instances, else semantic, else none.

    A classifier of labels returns a ranking alone.

    Args:
        min_score: instances below it are not shown.
    """
    if "panoptic_seg" in result:
        ids, segments = result["panoptic_seg"]
        return panoptic_regions(ids.cpu().numpy(), segments, labels)
    if "instances" in result:
        found = result["instances"].to("cpu")
        found = found[found.scores >= min_score]
        return [
            Region(mask.numpy(), int(label), made_up_colour(i))
            for i, (mask, label) in enumerate(
                zip(found.pred_masks, found.pred_classes, strict=True)
            )
        ]
    if "sem_seg" not in result:
        return []
    label_map = result["sem_seg"].argmax(0).cpu().numpy()
    return semantic_regions(label_map, ignore_label=-1, labels=labels)


def draw_regions(
    image: np.ndarray, regions: Sequence[Region], labels: Labels, opacity: float = 0.65
) -> Image.Image:
    """The image with coloured, outlined and named regions.

    Args:
        image: (H, W, 3) uint8, RGB.
    """
    canvas = image.astype(np.float32)
    for region in regions:
        canvas[region.mask] *= 1 - opacity
        canvas[region.mask] += opacity * np.asarray(region.colour, dtype=np.float32)
    for region in regions:
        canvas[_outline(region.mask)] = 255
    picture = Image.fromarray(canvas.round().astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    text = font(max(9, min(picture.size) // 32))
    largest_first = sorted(regions, key=lambda r: -int(r.mask.sum()))
    named = [region for region in largest_first if region.mask.mean() > 0.004]
    names = [_shortened(draw, labels.name(r.label), text, picture.width - 8) for r in named]
    boxes = place_tags(
        [_centre(region.mask) for region in named],
        [_tag_size(draw, name, text) for name in names],
        picture.size,
    )
    for name, box in zip(names, boxes, strict=True):
        if box is not None:
            draw.rectangle(box, fill=INK)
            middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            draw.text(middle, name, PAPER, text, anchor="mm")
    return picture


def place_tags(
    centres: Sequence[tuple[int, int]],
    sizes: Sequence[tuple[int, int]],
    limits: tuple[int, int],
) -> list[Box | None]:
    """Where name tags stand so that none covers another or leaves the image.

    Each is as near to its centre as earlier ones let it, at most two of its heights above or below.

    Args:
        centres: (x, y) where each would best be; those in front have the first choice.
        sizes: (width, height) of each.
        limits: (width, height) of the image.

    Returns:
        A box for each; None: there is no room.
    """
    placed: list[Box | None] = []
    for (x, y), (width, height) in zip(centres, sizes, strict=True):
        left = min(max(x - width // 2, 0), limits[0] - width)
        best = min(max(y - height // 2, 0), limits[1] - height)
        others = [box for box in placed if box is not None]
        # A row between neighbours tells them apart.
        tops = [best, *(o[1] - height - 1 for o in others), *(o[3] + 2 for o in others)]
        boxes = (
            (left, top, left + width - 1, top + height - 1)
            for top in sorted(tops, key=lambda top: abs(top - best))
            if abs(top - best) <= 2 * height + 2
        )
        free = (box for box in boxes if _is_free(box, others, limits))
        placed.append(next(free, None))
    return placed


def _is_free(box: Box, others: Sequence[Box], limits: tuple[int, int]) -> bool:
    """Whether a box is in the image and touches no other."""
    inside = min(box) >= 0 and box[2] < limits[0] and box[3] < limits[1]
    return inside and not any(
        all(box[i] <= other[i + 2] + 1 and other[i] <= box[i + 2] + 1 for i in (0, 1))
        for other in others
    )


def _tag_size(
    draw: ImageDraw.ImageDraw, name: str, text: ImageFont.FreeTypeFont
) -> tuple[int, int]:
    """(width, height) of a name with its margins; of one height for all names."""
    left, _, right, _ = draw.textbbox((0, 0), name, text)
    ascent, descent = text.getmetrics()
    return int(right - left) + 7, ascent + descent + 2


def draw_ranking(
    scores: np.ndarray,
    ranking: np.ndarray,
    labels: Labels,
    size: tuple[int, int],
    present: set[int] | None = None,
    top: int = 20,
) -> Image.Image:
    """Bars of the best labels' presence probabilities, as in Fig. 1 of the paper.

    Args:
        scores: (K,) in [0, 1].
        ranking: label ids, most probable first.
        size: (width, height) of the chart.
        present: labels of the ground truth, drawn in green; None if unknown.
    """
    width, height = size
    chart = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(chart)
    shown = [int(k) for k in ranking[:top]]
    head = 26
    title = f"top {len(shown)} labels" + (" (green: in the ground truth)" if present else "")
    draw.text((10, 6), title, INK, font(13))
    step = (height - head - 6) / max(len(shown), 1)
    text = font(int(min(13, max(7, step * 0.72))))
    column = min(
        max((draw.textlength(labels.name(k), text) for k in shown), default=0), 0.5 * width
    )
    room = width - column - 30 - draw.textlength("0.00 ", text)
    for row, label in enumerate(shown):
        top_edge = head + row * step
        middle = top_edge + step / 2
        name = _shortened(draw, labels.name(label), text, column)
        draw.text((10 + column, middle), name, INK, text, anchor="rm")
        colour = (
            labels.colour(label) if present is None else PRESENT if label in present else ABSENT
        )
        end = 18 + column + max(1.0, room * float(scores[label]))
        draw.rectangle((18 + column, top_edge + 1, end, top_edge + step - 1), fill=colour)
        draw.text((end + 4, middle), f"{scores[label]:.2f}", INK, text, anchor="lm")
    return chart


def side_by_side(pictures: Sequence[Image.Image], gap: int = 8) -> Image.Image:
    """Images of one height in a row."""
    width = sum(p.width for p in pictures) + gap * (len(pictures) - 1)
    row = Image.new("RGB", (width, max(p.height for p in pictures)), PAPER)
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + gap
    return row


def scaled_to_fit(image: np.ndarray, low: int, high: int) -> float:
    """Factor that brings the longer side into [low, high]."""
    side = max(image.shape[:2])
    return min(max(side, low), high) / side


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """The sans-serif font that matplotlib ships."""
    import matplotlib

    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size
    )


def _outline(mask: np.ndarray) -> np.ndarray:
    """Pixels of the mask next to a pixel that is not."""
    padded = np.pad(mask, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _centre(mask: np.ndarray) -> tuple[int, int]:
    """A pixel (x, y) well inside the mask: the middle of its longest run of the middle rows."""
    rows = np.flatnonzero(mask.any(1))
    best = (0, 0, 0)
    for y in np.unique(np.quantile(rows, (0.3, 0.4, 0.5, 0.6, 0.7)).astype(int)):
        edges = np.flatnonzero(np.diff(np.pad(mask[y].astype(np.int8), 1)))
        for start, end in edges.reshape(-1, 2):
            best = max(best, (end - start, int(start + end) // 2, int(y)))
    return best[1], best[2]


def _shortened(
    draw: ImageDraw.ImageDraw, name: str, text: ImageFont.FreeTypeFont, room: float
) -> str:
    while len(name) > 4 and draw.textlength(name, text) > room:
        name = name[:-2].rstrip() + "…"
    return name
