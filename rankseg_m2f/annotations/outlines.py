"""Outlines of objects, polygons or run lengths: checked and brought into one form, once.

What comes out is safe to give to pycocotools, whatever was in the file; what was sound comes out as
it was, to the bit. Shapes: H, W image size; M outlines; P corners of a polygon.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from rankseg_m2f.annotations.fields import as_int, as_number, is_int, shown
from rankseg_m2f.annotations.run_lengths import run_totals

Outline = list | dict
# Outlines looked at in one go.
_BATCH = 4096
_NORMALISED = (
    "its coordinates all lie between 0 and 1: they are shares of the image, where pixels are "
    "wanted; multiply x by the width and y by the height"
)


def checked_outlines(
    outlines: Sequence[Any], sizes: Sequence[tuple[int, int]]
) -> tuple[list[Outline | None], dict[int, list[str]]]:
    """Outlines that can be drawn, and what is wrong with the others.

    Args:
        outlines: M, as in a json: a list of polygons [x1, y1, x2, y2, ...], or a dict of `size`
            and `counts`.
        sizes: M (H, W).

    Returns:
        M: a list of polygons of at least 3 corners, none of them far outside the image, or
        compressed RLE of H x W; None if nothing can be drawn. And reasons by place, also of
        outlines that are kept in part.
    """
    kept: list[Outline | None] = list(outlines)
    reasons: dict[int, list[str]] = {}
    for start in range(0, len(kept), _BATCH):
        places = range(start, min(start + _BATCH, len(kept)))
        lists = [i for i in places if type(kept[i]) is list]
        for i in _doubtful(kept, sizes, lists):
            kept[i], reasons[i] = _mended(kept[i], sizes[i])
    for i, outline in enumerate(kept):
        if not isinstance(outline, (list, dict, type(None))):
            kept[i], reasons[i] = None, [f"its segmentation is {shown(outline)}"]
    _check_runs(kept, sizes, reasons)
    for i in [i for i, found in reasons.items() if not found]:
        del reasons[i]
    return kept, reasons


def to_rle(outline: Outline, size: tuple[int, int]) -> dict:
    """A checked outline as compressed RLE of `size` (H, W)."""
    if isinstance(outline, dict):
        return outline
    return coco_mask.merge(coco_mask.frPyObjects(outline, *size))


def rasterised(outline: Outline, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool of a checked outline."""
    return coco_mask.decode(to_rle(outline, size)).astype(bool)


def area(outline: Outline, size: tuple[int, int]) -> int:
    """Pixels of a checked outline."""
    return int(coco_mask.area(to_rle(outline, size)))


def clipped(corners: np.ndarray, low: tuple[float, float], high: tuple[float, float]) -> np.ndarray:
    """A polygon's part inside a box (Sutherland and Hodgman).

    Args:
        corners: (P, 2) x and y.
        low, high: corners of the box.

    Returns:
        (P', 2), possibly of no corner.
    """
    # Differences of larger numbers would overflow.
    points = np.clip(corners, -1e100, 1e100).tolist()
    for axis, limit, side in ((0, low[0], 1), (0, high[0], -1), (1, low[1], 1), (1, high[1], -1)):
        found = []
        for before, here in zip([*points[-1:], *points[:-1]], points, strict=True):
            was, now = side * (before[axis] - limit) >= 0, side * (here[axis] - limit) >= 0
            if was != now:
                share = (limit - before[axis]) / (here[axis] - before[axis])
                crossing = [b + share * (h - b) for b, h in zip(before, here, strict=True)]
                crossing[axis] = limit
                found.append(crossing)
            if now:
                found.append(here)
        points = found
    return np.array(points, dtype=np.float64).reshape(-1, 2)


def _doubtful(kept: list, sizes: Sequence[tuple[int, int]], lists: list[int]) -> list[int]:
    """Indices of the outlines at `lists` that are not simply sound polygons; all at once, fast."""
    odd = [i for i in lists if not kept[i] or {*map(type, kept[i])} != {list}]
    if odd:
        strange = set(odd)
        lists = [i for i in lists if i not in strange]
    polygons = list(chain.from_iterable(kept[i] for i in lists))
    owner = np.repeat(np.array(lists, dtype=np.int64), [len(kept[i]) for i in lists])
    length = np.array([*map(len, polygons)], dtype=np.int64)
    values = list(chain.from_iterable(polygons))
    if not {*map(type, values)} <= {int, float} or not length.all():
        # One by one, of which most are sound still.
        return odd + [i for i in lists if _mended(kept[i], sizes[i]) != (kept[i], [])]
    if not values:
        return odd
    try:
        numbers = np.array(values, dtype=np.float64)
    except OverflowError:
        return odd + lists
    start = length.cumsum() - length
    low, high = np.minimum.reduceat(numbers, start), np.maximum.reduceat(numbers, start)
    side = np.array([max(sizes[i]) for i in lists], dtype=np.float64)
    side = np.repeat(side, [len(kept[i]) for i in lists])
    # NaN compares as False.
    sound = (length >= 6) & (length % 2 == 0) & (low >= -side) & (high <= 2 * side)
    sound &= (high > 1) | (low < 0)
    return odd + np.unique(owner[~sound]).tolist()


def _mended(outline: list, size: tuple[int, int]) -> tuple[Outline | None, list[str]]:
    """What can be drawn of polygons, and reasons for the rest."""
    kinds = {*map(type, outline)}
    if outline and kinds <= {int, float, str}:
        return None, [
            "its polygon is a plain list of numbers; COCO has a list of polygons: [[x1, y1, ...]]"
        ]
    if kinds == {list} and all(len(p) == 2 and {*map(type, p)} <= {int, float} for p in outline):
        return None, [
            "its polygon is a list of [x, y] points; COCO has all numbers of a polygon in one "
            "list: [[x1, y1, x2, y2, ...]]"
        ]
    polygons, reasons = [], []
    for polygon in outline:
        if reason := _fault(polygon):
            reasons.append(reason)
            continue
        corners = np.array(polygon, dtype=np.float64).reshape(-1, 2)
        side = max(size)
        if corners.min() < -side or corners.max() > 2 * side:
            farthest = corners.flat[np.abs(corners).argmax()]
            corners = clipped(corners, (-side, -side), (2 * side, 2 * side))
            polygon = corners.reshape(-1).tolist()
            what = "corners" if len(corners) > 2 else "all its corners"
            reasons.append(
                f"it has {what} far outside of the image, such as {farthest:.4g} where the image "
                f"is {size[1]} wide and {size[0]} high; only the part near the image is taken"
            )
        if len(corners) > 2:
            polygons.append(polygon)
    values = [x for polygon in polygons for x in polygon]
    if values and min(values) >= 0 and max(values) <= 1 and max(size) > 2:
        return None, [*reasons, _NORMALISED]
    return polygons or None, reasons


def _fault(polygon: Any) -> str | None:
    """What is wrong with one polygon, in words."""
    if not isinstance(polygon, list):
        return f"its polygon is {shown(polygon)}, not a list of numbers"
    if any(isinstance(x, list) for x in polygon):
        return "its polygons are nested too deeply; COCO has [[x1, y1, x2, y2, ...]]"
    for x in polygon:
        if as_number(x) is None:
            return f"it has a coordinate that is not a finite number: {shown(x)}"
    if len(polygon) < 6 or len(polygon) % 2:
        return (
            f"it has a polygon of {len(polygon)} coordinates: 6 or more, and an even number, make "
            "one"
        )
    return None


def _check_runs(
    kept: list[Outline | None], sizes: Sequence[tuple[int, int]], reasons: dict[int, list[str]]
) -> None:
    """Replace RLE by its compressed form, or by None with a reason."""
    texts: dict[int, bytes] = {}
    for i, outline in enumerate(kept):
        if isinstance(outline, dict):
            counts = outline.get("counts")
            try:
                _check_size(outline.get("size"), sizes[i])
                if isinstance(counts, list):
                    counts = _compressed(counts, sizes[i])
                texts[i] = _code(counts)
            except _NotRunsError as error:
                kept[i], reasons[i] = None, [str(error)]
    totals, sound = run_totals(list(texts.values()))
    for i, text, total, fine in zip(texts, texts.values(), totals.tolist(), sound, strict=True):
        height, width = sizes[i]
        if fine and total == height * width:
            kept[i] = {"size": [height, width], "counts": text.decode("ascii")}
        elif fine:
            kept[i], reasons[i] = None, [_wrong_total(total, sizes[i])]
        else:
            kept[i], reasons[i] = None, ["its counts are not COCO's compressed run lengths"]


class _NotRunsError(Exception):
    """Says what is wrong with an RLE."""


def _check_size(said: Any, size: tuple[int, int]) -> None:
    if said is None:
        raise _NotRunsError("its run lengths lack 'size'")
    pair = [as_int(x) for x in said] if isinstance(said, list) else []
    if pair == [*size]:
        return
    if pair == [*reversed(size)]:
        raise _NotRunsError(
            f"the size of its mask is {said}, swapped: it must be [height, width], {[*size]}"
        )
    raise _NotRunsError(f"its mask is of {shown(said)}, its image or video of {[*size]}")


def _compressed(counts: list, size: tuple[int, int]) -> bytes:
    runs = [as_int(x) if not is_int(x) else x for x in counts]
    if any(x is None or not 0 <= x < 1 << 32 for x in runs):
        bad = next(
            c for c, x in zip(counts, runs, strict=True) if x is None or not 0 <= x < 1 << 32
        )
        raise _NotRunsError(f"its run lengths hold {shown(bad)}, which is not a number of pixels")
    if sum(runs) != size[0] * size[1]:
        raise _NotRunsError(_wrong_total(sum(runs), size))
    return coco_mask.frPyObjects({"size": [*size], "counts": runs}, *size)["counts"]


def _code(counts: Any) -> bytes:
    if isinstance(counts, bytes):
        return counts
    if not isinstance(counts, str):
        raise _NotRunsError(f"its run lengths are {shown(counts)}")
    if counts.startswith(("b'", 'b"')):
        raise _NotRunsError(
            "its counts are bytes written by str(), as in \"b'...'\": write counts.decode()"
        )
    if not counts.isascii():
        raise _NotRunsError("its counts are not COCO's compressed run lengths")
    return counts.encode("ascii")


def _wrong_total(total: int, size: tuple[int, int]) -> str:
    height, width = size
    return f"its runs sum to {total} pixels, where {height} x {width} have {height * width}"
