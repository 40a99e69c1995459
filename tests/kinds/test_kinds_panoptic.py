"""Segments of COCO panoptic datasets: what the json says and what the PNGs show."""

import numpy as np
from kinds_cases import EITHER, NOTED, REFUSED, REPORTED, WORKS, Cases
from kinds_made import SIZE, ObjectImages, PanopticImages, colours
from PIL import Image

cases = Cases()


def segment(**values):
    """Sets keys of the plate of image 2."""

    def spoil(made):
        made.segments("2")[1].update(values)
        made.compare = "id" not in values
        return ["2.png"]

    return spoil


def png(make, compare=False):
    """The PNG of image 2 as `make` makes it of its colours."""

    def spoil(made):
        make(colours(made.maps["2"]), made.root / "panoptic/2.png")
        made.compare = compare
        return ["2.png"]

    return spoil


@cases.add(WORKS, PanopticImages)
def panoptic(made):
    pass


@cases.add(WORKS, PanopticImages)
def segment_white(made):
    ids = made.maps["2"]
    ids[ids == 2007] = 0xFFFFFF
    made.segments("2")[1]["id"] = 0xFFFFFF


@cases.add(WORKS, PanopticImages)
def segment_of_padding_minus_one(made):
    ids = made.maps["2"]
    ids[ids == 2007] = 0xFFFFFE
    made.segments("2")[1]["id"] = 0xFFFFFE


@cases.add(WORKS, PanopticImages)
def segment_id_255(made):
    ids = made.maps["2"]
    ids[ids == 2007] = 255
    made.segments("2")[1]["id"] = 255


@cases.add(REPORTED, PanopticImages, words=("2.png", "2007"))
def segment_ids_twice(made):
    made.segments("2")[2]["id"] = 2007
    made.compare = False


@cases.add(REPORTED, PanopticImages, words=("2.png", "2007"))
def segment_twice_with_other_category(made):
    made.segments("2").append({"id": 2007, "category_id": 1, "iscrowd": 0})
    made.compare = False


@cases.add(REPORTED, PanopticImages, words=(("image 2", "2.png"), ("twice", "two", "several")))
def image_annotated_twice(made):
    first = made.content["annotations"][1]
    other = {**first, "segments_info": first["segments_info"][:2]}
    made.content["annotations"].append(other)
    made.compare = False


@cases.add(NOTED, PanopticImages, words=(("image 4", "4.png"),))
def image_without_annotation(made):
    made.content["annotations"].pop()
    del made.maps["4"], made.truth["4"]
    made.records = 3


@cases.add(NOTED, PanopticImages, words=(("2.png", "image 2"),))
def segments_info_null(made):
    made.content["annotations"][1]["segments_info"] = None
    made.compare = False


@cases.add(NOTED, PanopticImages, words=("2.png",))
def segments_info_empty_of_black_png(made):
    made.content["annotations"][1]["segments_info"] = []
    made.maps["2"][:] = 0
    made.truth["2"] = []


cases.add_table(
    REFUSED,
    {
        "segments_info_text": lambda m: _info(m, "1007"),
        "segments_info_object": lambda m: _info(m, {"1007": 3}),
        "segments_info_of_null": lambda m: _info(m, [None]),
        "segments_info_of_lists": lambda m: _info(m, [[1007, 3]]),
        "segments_info_missing": lambda m: (
            m.content["annotations"][1].pop("segments_info") and None
        ),
        "segment_without_id": lambda m: m.segments("2")[1].pop("id") and None,
        "segment_without_category": lambda m: m.segments("2")[1].pop("category_id") and None,
        "segment_category_unlisted": segment(category_id=77),
        "segment_category_null": segment(category_id=None),
        "segment_category_list": segment(category_id=[2]),
        "segment_id_null": segment(id=None),
        "segment_id_list": segment(id=[2007]),
        "png_name_missing": lambda m: _without(m, "file_name"),
        "png_name_null": lambda m: m.content["annotations"][1].update(file_name=None),
        "png_not_there": lambda m: m.content["annotations"][1].update(file_name="absent.png"),
    },
    PanopticImages,
)


def _without(made, key):
    del made.content["annotations"][1][key]


def _info(made, value):
    made.content["annotations"][1]["segments_info"] = value
    return [("2.png", "image 2")]


def _unlisted(made):
    made.maps["2"][2:5] = 4711
    made.settle()


cases.add_table(
    REPORTED,
    {
        "segment_not_drawn": lambda m: m.segments("2").append({"id": 9, "category_id": 1}),
        "segment_not_listed": lambda m: _unlisted(m),
        "segment_id_zero": segment(id=0),
        "segment_id_negative": segment(id=-5),
        "segment_id_beyond_24_bits": segment(id=2**24),
        "segment_id_beyond_64_bits": segment(id=2**70),
        "segment_crowd_text": segment(iscrowd="perhaps"),
    },
    PanopticImages,
    words=("2.png",),
)
cases.add_table(
    EITHER,
    {
        "segment_id_text": lambda m: m.segments("2")[1].update(id="2007"),
        "segment_id_float": lambda m: m.segments("2")[1].update(id=2007.0),
        "segment_category_text": segment(category_id="2"),
        "segment_area_odd": segment(area="x", bbox=None),
    },
    PanopticImages,
)


def _crowd(value):
    def spoil(made):
        made.segments("2")[1]["iscrowd"] = 1
        made.settle()
        made.segments("2")[1]["iscrowd"] = value

    return spoil


cases.add_table(
    WORKS,
    {
        "segment_crowd": _crowd(1),
        "segment_crowd_true": _crowd(True),
        "segment_crowd_text_1": _crowd("1"),
        "segment_no_crowd_null": lambda m: m.segments("2")[1].update(iscrowd=None),
        "segment_no_crowd_false": lambda m: m.segments("2")[1].update(iscrowd=False),
        "segment_crowd_missing": lambda m: m.segments("2")[1].pop("iscrowd") and None,
        "png_rgba": png(lambda rgb, path: Image.fromarray(rgb).convert("RGBA").save(path), True),
        "things_not_said": lambda m: [c.pop("isthing") for c in m.content["categories"]] and None,
    },
    PanopticImages,
)


@cases.add(WORKS, PanopticImages)
def segment_no_crowd_text_0(made):
    made.segments("2")[1]["iscrowd"] = "0"


cases.add_table(
    EITHER,
    {
        "thing_true": lambda m: m.content["categories"][0].update(isthing=True),
        "thing_text": lambda m: m.content["categories"][2].update(isthing="0"),
        "thing_null": lambda m: m.content["categories"][2].update(isthing=None),
        "png_named_as_its_photo": lambda m: _named_as_photo(m),
    },
    PanopticImages,
)


def _named_as_photo(made):
    for stem, one in zip(made.maps, made.content["annotations"], strict=True):
        one["file_name"] = f"{stem}.jpg"
    return [".jpg"]


cases.add_table(
    REPORTED,
    {
        "png_grey": png(lambda rgb, path: Image.fromarray(rgb[:, :, 0]).save(path)),
        "png_16_bit": png(
            lambda rgb, path: Image.fromarray(rgb[:, :, 0].astype(np.uint16)).save(path)
        ),
        "png_is_jpeg": png(lambda rgb, path: Image.fromarray(rgb).save(path, format="JPEG")),
        "png_of_another_size": png(lambda rgb, path: Image.fromarray(rgb[:-3]).save(path)),
        "png_transposed": png(
            lambda rgb, path: Image.fromarray(rgb.transpose(1, 0, 2).copy()).save(path)
        ),
        "png_one_pixel": png(lambda rgb, path: Image.fromarray(rgb[:1, :1]).save(path)),
        "png_empty": png(lambda rgb, path: path.write_bytes(b"")),
        "png_cut": png(
            lambda rgb, path: (
                Image.fromarray(rgb).save(path),
                path.write_bytes(path.read_bytes()[:60]),
            )
        ),
        "png_is_the_photo": png(
            lambda rgb, path: path.write_bytes((path.parents[1] / "images/2.png").read_bytes())
        ),
    },
    PanopticImages,
)
cases.add_table(
    EITHER,
    {"png_palette": png(lambda rgb, path: Image.fromarray(rgb).convert("P").save(path), True)},
    PanopticImages,
)


# ---- panoptic and instances of one dataset ---------------------------------------------------


def with_instances(change):
    """The same photos with an instances json beside the panoptic one."""

    def spoil(made):
        other = ObjectImages(made.root / "instances")
        change(other)
        other.write()
        made.perfect = False
        made.definition["instances_json"] = "instances/instances.json"
        return None

    return spoil


cases.add_table(WORKS, {"instances_beside": with_instances(lambda other: None)}, PanopticImages)


@cases.add(WORKS, PanopticImages)
def instances_beside_count_from_zero(made):
    def change(other):
        for one in other.annotations:
            one["id"] -= 1

    with_instances(change)(made)


def _swap(other):
    first, second = other.content["categories"]
    first["name"], second["name"] = second["name"], first["name"]


@cases.add(EITHER, PanopticImages)
def instances_beside_swap_names(made):
    with_instances(_swap)(made)
    # Read by names, a cup of the panoptic json is a plate of the other.
    made.instance_labels = {0: 1, 1: 0}


cases.add_table(
    EITHER,
    {
        "instances_beside_have_other_ids": with_instances(
            lambda o: (
                [c.update(id=c["id"] + 40) for c in o.content["categories"]]
                and [a.update(category_id=a["category_id"] + 40) for a in o.annotations]
            )
        ),
        "instances_beside_have_another_category": with_instances(
            lambda o: o.content["categories"].append({"id": 9, "name": "fork"})
        ),
    },
    PanopticImages,
)
cases.add_table(
    REPORTED,
    {
        "instances_beside_of_other_images": with_instances(
            lambda o: (
                [i.update(id=i["id"] + 40) for i in o.entries]
                and [a.update(image_id=a["image_id"] + 40) for a in o.annotations]
            )
        ),
        "instances_beside_broken": with_instances(lambda o: o.rewrite(lambda text: text[:99])),
        "instances_beside_with_bad_outline": with_instances(lambda o: o.set_outline(2, [[1, 2]])),
    },
    PanopticImages,
)


def label_maps(change):
    """Label maps beside the panoptic PNGs."""

    def spoil(made):
        made.definition["semantic_root"] = "semantic"
        made.perfect = False
        (made.root / "semantic").mkdir()
        for stem, rows in made.truth.items():
            labels = np.full(SIZE, 255, dtype=np.uint8)
            for label, mask in rows:
                labels[mask] = label
            Image.fromarray(change(labels)).save(made.root / "semantic" / f"{stem}.png")

    return spoil


cases.add_table(WORKS, {"label_maps_beside": label_maps(lambda labels: labels)}, PanopticImages)
cases.add_table(
    REPORTED,
    {
        "label_maps_beside_of_another_size": label_maps(lambda labels: labels[:-1]),
        "label_maps_beside_out_of_range": label_maps(lambda labels: labels + 9),
        "label_maps_beside_in_colour": label_maps(lambda labels: np.stack([labels] * 3, axis=2)),
        "label_maps_beside_disagree": label_maps(lambda labels: np.where(labels == 2, 1, labels)),
    },
    PanopticImages,
    words=("semantic",),
)


@cases.parametrize
def test_panoptic(case, tmp_path):
    case.hold(tmp_path)
