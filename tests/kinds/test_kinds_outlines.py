"""Outlines of objects: run lengths and polygons, in images and in videos."""

import numpy as np
from kinds_cases import EITHER, REFUSED, REPORTED, WORKS, Cases
from kinds_made import (
    HEIGHT,
    SIZE,
    WIDTH,
    ObjectImages,
    ObjectVideos,
    box_mask,
    box_polygon,
    compressed,
    uncompressed,
)

cases = Cases()
BOTH = ObjectImages, ObjectVideos


def rle(change, readable=False):
    """Spoils the run lengths of object 2; `readable`: a reader may understand them."""

    def spoil(made):
        made.each_outline(compressed)
        made.set_outline(2, change(made.mask(2)))
        if readable:
            made.left_out = 2
        else:
            made.drop(2)
        return [made.named(2)]

    return spoil


def polygon(outline):
    """Gives object 2 this outline."""

    def spoil(made):
        made.set_outline(2, outline)
        made.drop(2)
        return [made.named(2)]

    return spoil


def clipped(box):
    """Gives object 2 the corners of a box that ends far outside; a right reader clips it."""

    def spoil(made):
        made.set_outline(2, [box_polygon(box)])
        x0, y0, x1, y1 = box
        inside = max(x0, 0), max(y0, 0), min(x1, WIDTH), min(y1, HEIGHT)
        made.change(2, box_mask(tuple(map(int, inside))))
        return [made.named(2)]

    return spoil


def counts(value):
    return rle(lambda mask: {"size": [*SIZE], "counts": value})


_TOTAL = HEIGHT * WIDTH

# ---- run lengths ---------------------------------------------------------------------------


@cases.add(WORKS, *BOTH)
def rle_compressed(made):
    made.each_outline(compressed)


@cases.add(WORKS, *BOTH)
def rle_uncompressed(made):
    made.each_outline(uncompressed)


@cases.add(WORKS, *BOTH)
def rle_from_the_first_pixel(made):
    mask = box_mask((0, 0, 9, 9))
    made.set_outline(2, uncompressed(mask))
    made.change(2, mask)


@cases.add(REPORTED, ObjectImages, words=("pixel",))
def rle_of_no_pixel(made):
    made.set_outline(2, compressed(np.zeros(SIZE, dtype=bool)))
    made.drop(2)
    return [made.named(2)]


cases.add_table(
    REPORTED,
    {
        "rle_bytes_as_text": rle(lambda m: {"size": [*SIZE], "counts": f"{_bytes(m)!r}"}),
        "rle_garbage": counts("Hello, World! \u00e9\u4e2d"),
        "rle_one_letter": counts("o"),
        "rle_empty_text": counts(""),
        "rle_cut": rle(lambda m: {"size": [*SIZE], "counts": compressed(m)["counts"][:-3]}),
        "rle_repeated": rle(lambda m: {"size": [*SIZE], "counts": compressed(m)["counts"] * 5}),
        "rle_too_short": counts([10, 100, 50]),
        "rle_too_long": counts([10, 100, _TOTAL]),
        "rle_far_too_long": counts([10, 2**31, 2**40]),
        "rle_negative_run": counts([10, -5, _TOTAL - 5]),
        "rle_runs_null": counts([10, None, _TOTAL - 10]),
        "rle_runs_nested": counts([[10, 20, _TOTAL - 30]]),
        "rle_runs_with_fractions": counts([10.5, 20, _TOTAL - 30.5]),
        "rle_counts_null": counts(None),
        "rle_counts_number": counts(7),
        "rle_counts_object": counts({"0": 10}),
        "rle_without_counts": rle(lambda m: {"size": [*SIZE]}),
        "rle_swapped_size": rle(lambda m: {**compressed(m), "size": [WIDTH, HEIGHT]}),
        "rle_of_another_size": rle(lambda m: compressed(np.ones((10, 12), dtype=bool))),
        "rle_size_null": rle(lambda m: {**compressed(m), "size": None}),
        "rle_size_of_three": rle(lambda m: {**compressed(m), "size": [HEIGHT, WIDTH, 1]}),
        "rle_size_huge": rle(lambda m: {**compressed(m), "size": [10**6, 10**6]}),
        "rle_size_negative": rle(lambda m: {**compressed(m), "size": [-HEIGHT, -WIDTH]}),
    },
    *BOTH,
)
cases.add_table(
    EITHER,
    {
        "rle_runs_as_text": rle(
            lambda m: {"size": [*SIZE], "counts": [str(x) for x in uncompressed(m)["counts"]]}, True
        ),
        "rle_padded_with_a_zero_byte": rle(
            lambda m: {"size": [*SIZE], "counts": compressed(m)["counts"] + "\0"}, True
        ),
        "rle_runs_as_floats": rle(
            lambda m: {"size": [*SIZE], "counts": [float(x) for x in uncompressed(m)["counts"]]},
            True,
        ),
        "rle_size_as_text": rle(
            lambda m: {**compressed(m), "size": [str(HEIGHT), str(WIDTH)]}, True
        ),
        "rle_size_missing": rle(lambda m: {"counts": compressed(m)["counts"]}, True),
        "rle_more_keys": rle(lambda m: {**compressed(m), "area": 3}, True),
    },
    *BOTH,
)


def _bytes(mask):
    return compressed(mask)["counts"].encode()


@cases.add(EITHER, ObjectVideos)
def rle_of_no_pixel_in_a_frame(made):
    made.set_outline(2, compressed(np.zeros(SIZE, dtype=bool)))
    made.drop(2)


# ---- polygons ------------------------------------------------------------------------------


@cases.add(WORKS, *BOTH)
def polygons(made):
    made.each_outline(lambda mask: [_corners(mask)])


@cases.add(WORKS, *BOTH)
def polygon_of_two_parts(made):
    boxes = (2, 2, 12, 12), (40, 30, 50, 40)
    made.set_outline(2, [box_polygon(box) for box in boxes])
    made.change(2, box_mask(boxes[0]) | box_mask(boxes[1]))


@cases.add(WORKS, *BOTH)
def polygon_a_little_outside(made):
    made.set_outline(2, [box_polygon((-1.5, 4, 20, HEIGHT + 1.5))])
    made.change(2, box_mask((0, 4, 20, HEIGHT)))


def _corners(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return []
    return box_polygon((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))


_BOX = box_polygon((20, 20, 50, 44))
cases.add_table(
    REPORTED,
    {
        "polygon_far_corner": clipped((20, 20, 300_000_000, 44)),
        "polygon_far_corners_all_round": clipped((-(10**9), -(10**9), 10**9, 10**9)),
        "polygon_corner_1e30": clipped((20, 20, 1e30, 44)),
        "polygon_negative_far_corner": clipped((-(10**12), 20, 50, 44)),
    },
    *BOTH,
)
cases.add_table(
    EITHER,
    {
        "polygon_corner_ten_widths_away": clipped((20, 20, 640, 44)),
        "polygon_corner_at_minus_a_hundred": clipped((-100, 20, 50, 44)),
    },
    *BOTH,
)
cases.add_table(
    REPORTED,
    {
        "polygon_flat": polygon(_BOX),
        "polygon_too_deep": polygon([[_BOX]]),
        "polygon_of_points": polygon([[20, 20], [50, 20], [50, 44], [20, 44]]),
        "polygon_of_points_in_a_part": polygon([[[20, 20], [50, 20], [50, 44], [20, 44]]]),
        "polygon_of_x_and_y": polygon([{"x": 20, "y": 20}, {"x": 50, "y": 20}, {"x": 9, "y": 44}]),
        "polygon_of_two_lists": polygon({"x": [20, 50, 50], "y": [20, 20, 44]}),
        "polygon_as_text": polygon("20 20 50 20 50 44 20 44"),
        "polygon_texts_in_list": polygon(["20,20,50,20,50,44,20,44"]),
        "polygon_coordinate_null": polygon([[20, 20, 50, None, 50, 44]]),
        "polygon_coordinate_nested": polygon([[20, 20, [50], 20, 50, 44]]),
        "polygon_nan": polygon([[20, 20, 50, float("nan"), 50, 44]]),
        "polygon_infinite": polygon([[20, 20, float("inf"), 20, 50, 44]]),
        "polygon_minus_infinite": polygon([[20, 20, 50, 20, 50, float("-inf")]]),
        "polygon_integer_beyond_floats": polygon([[20, 20, 10**400, 20, 50, 44]]),
        "polygon_is_a_number": polygon(5),
        "polygon_is_true": polygon(True),
        "polygon_part_null": polygon([None]),
    },
    *BOTH,
)
cases.add_table(
    REPORTED,
    {
        "polygon_of_two_corners": polygon([[20, 20, 50, 44]]),
        "polygon_of_seven_numbers": polygon([[20, 20, 50, 20, 50, 44, 20]]),
        "polygon_of_no_numbers": polygon([[]]),
        "polygon_outside": polygon([box_polygon((WIDTH + 10, 10, WIDTH + 20, 20))]),
        "polygon_normalized": polygon([[0.2, 0.2, 0.6, 0.2, 0.6, 0.7, 0.2, 0.7]]),
        "polygon_of_no_area": polygon([[20.2, 20.2, 20.2, 20.2, 20.2, 20.2]]),
    },
    *BOTH,
)


@cases.add(EITHER, *BOTH)
def polygon_coordinates_as_text(made):
    made.set_outline(2, [[str(x) for x in _corners(made.mask(2))]])
    made.left_out = 2
    return [made.named(2)]


@cases.add(REPORTED, *BOTH, words=(("pixel", "normali", "shares", "0 to 1"),))
def polygons_normalized_all(made):
    made.each_outline(
        lambda mask: [[x / (WIDTH, HEIGHT)[i % 2] for i, x in enumerate(_corners(mask))]]
    )
    made.truth = {name: [] for name in made.truth}


def every(make):
    """Spoils all outlines: nothing is left to learn from."""

    def spoil(made):
        made.each_outline(make)

    return spoil


cases.add_table(
    REFUSED,
    {
        "rle_bytes_as_text_all": every(lambda m: {"size": [*SIZE], "counts": f"{_bytes(m)!r}"}),
        "rle_garbage_all": every(lambda m: {"size": [*SIZE], "counts": "garbage"}),
        "rle_too_short_all": every(lambda m: {"size": [*SIZE], "counts": [10, 100]}),
        "rle_swapped_size_all": every(lambda m: {**compressed(m), "size": [WIDTH, HEIGHT]}),
        "polygons_flat_all": every(_corners),
        "polygons_of_points_all": every(lambda m: [[1, 2], [3, 4], [5, 6]]),
        "polygons_nan_all": every(lambda m: [[float("nan")] * 6]),
    },
    *BOTH,
    words=(("annotation", "instances.json"),),
)

# ---- no outline ----------------------------------------------------------------------------


@cases.add(REPORTED, ObjectImages)
def box_without_mask(made):
    del made.annotations[1]["segmentation"]
    made.drop(2)
    return [made.named(2)]


@cases.add(REPORTED, ObjectImages)
def outline_null(made):
    made.set_outline(2, None)
    made.drop(2)
    return [made.named(2)]


@cases.add(REPORTED, ObjectImages)
def outline_empty(made):
    made.set_outline(2, [])
    made.drop(2)
    return [made.named(2)]


@cases.add(REPORTED, ObjectImages, words=("segmentation",))
def boxes_alone(made):
    for annotation in made.annotations:
        del annotation["segmentation"]
    made.truth = {name: [] for name in made.truth}


@cases.add(WORKS, ObjectVideos)
def frame_without_object(made):
    made.set_outline(2, None)
    made.drop(2)


@cases.add(EITHER, ObjectVideos)
def frame_with_empty_outline(made):
    made.set_outline(2, [])
    made.drop(2)


@cases.add(REPORTED, ObjectVideos)
def track_never_seen(made):
    made.annotations[1]["segmentations"] = [None] * 4
    made.truth["v1"].pop(1)
    return [made.named(2)]


@cases.add(REPORTED, ObjectVideos)
def track_of_too_few_frames(made):
    made.annotations[1]["segmentations"].pop()
    made.truth["v1"].pop(1)
    return [made.named(2)]


@cases.add(REPORTED, ObjectVideos)
def track_segmentations_null(made):
    made.annotations[1]["segmentations"] = None
    made.truth["v1"].pop(1)
    return [made.named(2)]


@cases.add(REPORTED, ObjectVideos)
def track_without_segmentations(made):
    del made.annotations[1]["segmentations"]
    made.truth["v1"].pop(1)
    return [made.named(2)]


@cases.parametrize
def test_outline(case, tmp_path):
    case.hold(tmp_path)
