"""Tables of categories: complete, and as other code and the data have them."""

import pytest
from detectron2.data.datasets import builtin_meta

from rankseg_m2f.data.categories import read_categories, tables

# Table -> labels, of them things (None: the release does not say).
SIZES = {
    "ade20k_150": (150, 100),
    "ade20k_full_847": (847, None),
    "cityscapes_19": (19, 8),
    "coco_lvis_1284": (1284, None),
    "coco_panoptic_133": (133, 80),
    "coco_stuff_171": (171, 80),
    "mapillary_vistas_65": (65, 37),
    "ovis_25": (25, 25),
    "pascal_context_59": (59, None),
    "pascal_context_60": (60, None),
    "vspw_124": (124, None),
    "ytvis_2019": (40, 40),
    "ytvis_2021": (40, 40),
}


def test_every_table_is_listed():
    assert tables() == sorted(SIZES)
    with pytest.raises(ValueError, match="ade20k_150"):
        read_categories("ade20k")


@pytest.mark.parametrize("table", SIZES)
def test_sizes_names_and_colours(table):
    categories = read_categories(table)
    num_labels, num_things = SIZES[table]
    assert len(categories) == num_labels
    for key in ("id", "name"):
        assert len({c[key] for c in categories}) == num_labels
    assert all(len(c["color"]) == 3 for c in categories if "color" in c)
    if num_things is not None:
        assert sum(c["isthing"] for c in categories) == num_things


@pytest.mark.parametrize(
    ("table", "theirs"),
    [
        ("coco_panoptic_133", builtin_meta.COCO_CATEGORIES),
        ("cityscapes_19", builtin_meta.CITYSCAPES_CATEGORIES),
    ],
)
def test_as_detectron2_has_them(table, theirs):
    ours = [(c["id"], c["name"], c["isthing"], list(c["color"])) for c in read_categories(table)]
    assert ours == [(c["id"], c["name"], c["isthing"], list(c["color"])) for c in theirs]


def test_pascal_context_has_background_first():
    with_background = [c["name"] for c in read_categories("pascal_context_60")]
    without = [c["name"] for c in read_categories("pascal_context_59")]
    assert with_background == ["background", *without]
