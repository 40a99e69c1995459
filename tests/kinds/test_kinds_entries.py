"""Ids, sizes, names, categories and crowds in the json of objects, in images and in videos."""

import json

from kinds_cases import EITHER, NOTED, REFUSED, REPORTED, WORKS, Cases
from kinds_made import HEIGHT, WIDTH, ObjectImages, ObjectVideos, PanopticImages, photo

cases = Cases()
BOTH = ObjectImages, ObjectVideos
JSON = (*BOTH, PanopticImages)


def annotation(number, **values):
    """Sets keys of annotation `number`."""

    def spoil(made):
        made.annotations[number - 1].update(values)

    return spoil


def entry(number, **values):
    """Sets keys of image or video `number`."""

    def spoil(made):
        made.entries[number - 1].update(values)

    return spoil


def without(key, number=None):
    """Takes a key from every annotation, or from one."""

    def spoil(made):
        for place, one in enumerate(made.annotations, 1):
            if number in (None, place):
                one.pop(key, None)

    return spoil


# ---- ids of images and videos ----------------------------------------------------------------


@cases.add(WORKS, *JSON)
def image_ids_are_text(made):
    for one in made.entries:
        one["id"] = f"frame_{one['id']}"
    for one in made.annotations:
        one[made.owner_key] = f"frame_{one[made.owner_key]}"


@cases.add(WORKS, *JSON)
def image_ids_are_numbers_as_text(made):
    for one in made.entries:
        one["id"] = str(one["id"])
    for one in made.annotations:
        one[made.owner_key] = str(one[made.owner_key])


_MIXED = (("image_id", "video_id", "unknown image", "unknown video"),)


@cases.add(REFUSED, *JSON, words=_MIXED)
def image_ids_are_text_in_annotations(made):
    for one in made.annotations:
        one[made.owner_key] = str(one[made.owner_key])


@cases.add(REFUSED, *JSON, words=_MIXED)
def image_ids_are_text_in_images(made):
    for one in made.entries:
        one["id"] = str(one["id"])


@cases.add(EITHER, *JSON)
def image_ids_are_floats(made):
    for one in made.entries:
        one["id"] = float(one["id"])


@cases.add(WORKS, *JSON)
def image_ids_count_from_zero(made):
    for one in made.entries:
        one["id"] -= 1
    for one in made.annotations:
        one[made.owner_key] -= 1


@cases.add(EITHER, *JSON)
def image_ids_beyond_64_bits(made):
    for one in made.entries:
        one["id"] += 2**70
    for one in made.annotations:
        one[made.owner_key] += 2**70


cases.add_table(
    REFUSED,
    {
        "image_id_null": entry(2, id=None),
        "image_id_a_list": entry(2, id=[2]),
        "image_id_an_object": entry(2, id={"number": 2}),
    },
    *JSON,
)
cases.add_table(
    REFUSED,
    {
        "image_without_id": lambda m: m.entries[1].pop("id") and None,
        "image_is_null": lambda m: m.entries.__setitem__(1, None),
        "image_is_a_list": lambda m: m.entries.__setitem__(1, [1, 2]),
        "annotation_is_null": lambda m: m.annotations.__setitem__(1, None),
        "annotation_is_text": lambda m: m.annotations.__setitem__(1, "cup"),
        "category_is_null": lambda m: m.content["categories"].__setitem__(1, None),
        "images_an_object": lambda m: m.content.update({m.owners: {"1": m.entries[0]}}),
        "images_null": lambda m: m.content.update({m.owners: None}),
        "images_empty": lambda m: m.content.update({m.owners: [], "annotations": []}),
        "images_missing": lambda m: m.content.pop(m.owners) and None,
        "categories_empty": lambda m: m.content.update(categories=[]),
        "categories_null": lambda m: m.content.update(categories=None),
        "categories_missing": lambda m: m.content.pop("categories") and None,
        "annotations_text": lambda m: m.content.update(annotations="none"),
        "annotations_an_object": lambda m: m.content.update(annotations={"1": {}}),
    },
    *JSON,
)


@cases.add(NOTED, *BOTH, words=("annotation", "instances.json"))
def annotations_missing(made):
    del made.content["annotations"]
    made.compare = False


@cases.add(NOTED, *BOTH, words=("annotation", "instances.json"))
def annotations_null(made):
    made.content["annotations"] = None
    made.compare = False


@cases.add(NOTED, *BOTH, words=("instances.json",))
def annotations_empty(made):
    made.content["annotations"] = []
    made.truth = {name: [] for name in made.truth}
    made.compare = False


@cases.add(REPORTED, *JSON)
def image_listed_twice(made):
    made.entries.append(dict(made.entries[1]))
    made.records = len(made.entries) - 1


@cases.add(NOTED, *BOTH, words=(("2.png", "v2", "image 2", "video 2"),))
def same_photo_under_two_ids(made):
    made.entries.append({**made.entries[1], "id": 99})
    made.annotations[-1][made.owner_key] = 99
    made.compare = False


@cases.add(NOTED, ObjectImages, words=("2.png",))
def same_photo_in_two_spellings(made):
    made.entries.append({**made.entries[1], "id": 99, "file_name": "./2.png"})
    made.annotations[-1]["image_id"] = 99
    made.compare = False


@cases.add(NOTED, *BOTH, words=(("unknown", "not list", "unlisted", "no image", "lacks", "99"),))
def annotation_of_unlisted_image(made):
    made.annotations.append({**made.annotations[0], "id": 50, made.owner_key: 99})


@cases.add(REFUSED, *BOTH, words=(("image", "video"),))
def most_annotations_of_unlisted_images(made):
    for place, one in enumerate(list(made.annotations) * 4):
        made.annotations.append({**one, "id": 100 + place, made.owner_key: 1000 + place})


def astray(change):
    """Annotation 2 is of no image."""

    def spoil(made):
        change(made.annotations[1], made.owner_key)
        if made.is_video:
            made.truth["v1"].pop(1)
        elif made.mapper == "mask_former_instance":
            made.drop(2)
        else:
            made.compare = False

    return spoil


cases.add_table(
    REPORTED,
    {
        "annotation_of_image_null": astray(lambda one, key: one.update({key: None})),
        "annotation_of_image_list": astray(lambda one, key: one.update({key: [1]})),
        "annotation_without_image": astray(lambda one, key: one.pop(key)),
    },
    *JSON,
)

# ---- ids of annotations ----------------------------------------------------------------------


@cases.add(WORKS, *BOTH)
def annotation_id_zero(made):
    for one in made.annotations:
        one["id"] -= 1


@cases.add(WORKS, *BOTH)
def annotation_ids_huge(made):
    for one in made.annotations:
        one["id"] += 2**53


@cases.add(EITHER, *BOTH)
def annotation_ids_negative(made):
    for one in made.annotations:
        one["id"] = -one["id"]


@cases.add(EITHER, *BOTH)
def annotation_ids_text(made):
    for one in made.annotations:
        one["id"] = f"object-{one['id']}"


cases.add_table(
    EITHER,
    {
        "annotation_ids_all_equal": lambda m: [one.update(id=1) for one in m.annotations] and None,
        "annotation_id_twice": annotation(2, id=1),
        "annotation_ids_missing": without("id"),
        "annotation_id_null": annotation(2, id=None),
        "annotation_id_float": annotation(2, id=2.5),
        "annotation_id_a_list": annotation(2, id=[2]),
        "annotation_id_true": annotation(2, id=True),
    },
    *BOTH,
)

# ---- sizes -----------------------------------------------------------------------------------

cases.add_table(
    REPORTED,
    {
        "size_swapped": entry(2, height=WIDTH, width=HEIGHT),
        "size_of_another_photo": entry(2, height=HEIGHT + 1, width=WIDTH),
        "size_negative": entry(2, height=-HEIGHT, width=-WIDTH),
        "size_huge": entry(2, height=10**9, width=10**9),
        "size_no_number": entry(2, height="tall", width="wide"),
        "size_a_list": entry(2, height=[HEIGHT], width=[WIDTH]),
        "size_nan": entry(2, height=float("nan"), width=float("nan")),
    },
    *JSON,
)
cases.add_table(
    EITHER,
    {
        "size_zero": entry(2, height=0, width=0),
        "size_text": entry(2, height=str(HEIGHT), width=str(WIDTH)),
        "size_float": entry(2, height=float(HEIGHT), width=float(WIDTH)),
        "size_null": entry(2, height=None, width=None),
        "size_height_null": entry(2, height=None),
        "size_true": entry(2, height=True),
    },
    *JSON,
)


@cases.add(EITHER, *JSON)
def sizes_missing(made):
    for one in made.entries:
        del one["height"], one["width"]


@cases.add(EITHER, *JSON)
def sizes_null(made):
    for one in made.entries:
        one["height"] = one["width"] = None


# ---- file names ------------------------------------------------------------------------------


def names(made, change):
    """Changes the file names of image or video 2."""
    one = made.entries[1]
    if "file_names" in one:
        one["file_names"] = [change(name) for name in one["file_names"]]
    else:
        one["file_name"] = change(one["file_name"])


@cases.add(REFUSED, *JSON)
def file_is_not_there(made):
    names(made, lambda name: f"absent/{name}")
    return ["absent"]


@cases.add(EITHER, *JSON, words=(("\\", "backslash"),))
def file_name_with_backslashes(made):
    made.definition["image_root"] = "."
    folder = "frames" if made.is_video else "images"
    for one in made.entries:
        if "file_names" in one:
            one["file_names"] = [f"{folder}/{n}".replace("/", "\\") for n in one["file_names"]]
        else:
            one["file_name"] = f"{folder}\\{one['file_name']}"


@cases.add(WORKS, *JSON)
def file_name_with_dots(made):
    names(made, lambda name: f"./{name}")


@cases.add(WORKS, ObjectImages)
def file_name_not_ascii(made):
    folder = made.root / "images"
    (folder / "2.png").rename(folder / "tasse à café 图.png")
    names(made, lambda name: "tasse à café 图.png")
    made.truth["tasse à café 图"] = made.truth.pop("2")


@cases.add(EITHER, *JSON)
def file_name_absolute(made):
    folder = made.root / made.definition["image_root"]
    names(made, lambda name: str(folder / name))


cases.add_table(
    REFUSED,
    {
        "file_name_null": lambda m: names(m, lambda _: None),
        "file_name_number": lambda m: names(m, lambda _: 2),
        "file_name_list": lambda m: names(m, lambda name: [name]),
        "file_name_empty": lambda m: names(m, lambda _: ""),
        "file_name_with_null_byte": lambda m: names(m, lambda name: f"\0{name}"),
        "file_name_too_long": lambda m: names(m, lambda name: "x" * 5000 + name),
    },
    *JSON,
)
cases.add_table(
    REFUSED,
    {
        "file_names_null": entry(2, file_names=None),
        "file_names_empty": entry(2, file_names=[], length=0),
        "file_names_text": entry(2, file_names="v2/00000.png"),
        "file_names_missing": lambda m: m.entries[1].pop("file_names") and None,
        "length_of_another_video": entry(2, length=7),
    },
    ObjectVideos,
)
cases.add_table(
    EITHER,
    {
        "length_text": entry(2, length="3"),
        "length_null": entry(2, length=None),
        "length_missing": lambda m: m.entries[1].pop("length") and None,
    },
    ObjectVideos,
)


@cases.add(REFUSED, ObjectImages)
def file_name_missing(made):
    del made.entries[1]["file_name"]


@cases.add(REPORTED, ObjectVideos, words=("v2/00001.png",))
def frame_of_another_size(made):
    photo(1, (WIDTH, HEIGHT)).save(made.root / "frames/v2/00001.png")


# ---- categories ------------------------------------------------------------------------------


@cases.add(WORKS, *JSON)
def category_ids_with_gaps(made):
    _renumber(made, {1: 3, 2: 17, 3: 90})


@cases.add(WORKS, *JSON)
def category_ids_count_from_zero(made):
    _renumber(made, {1: 0, 2: 1, 3: 2})


@cases.add(WORKS, *BOTH)
def categories_not_in_order(made):
    made.content["categories"].reverse()


def _renumber(made, new):
    for one in made.content["categories"]:
        one["id"] = new[one["id"]]
    for one in made.annotations:
        for segment in one.get("segments_info", [one]):
            segment["category_id"] = new[segment["category_id"]]
    if hasattr(made, "settle"):
        back = {b: a for a, b in new.items()}
        for stem, ids in made.maps.items():
            made.truth[stem] = [
                (back[s["category_id"]] - 1, ids == s["id"]) for s in made.segments(stem)
            ]


def category(number, **values):
    return lambda made: made.content["categories"][number - 1].update(values)


cases.add_table(
    REFUSED,
    {
        "category_id_twice": category(2, id=1),
        "category_id_null": category(2, id=None),
        "category_id_list": category(2, id=[2]),
        "category_name_null": category(2, name=None),
        "category_without_id": lambda m: m.content["categories"][1].pop("id") and None,
        "category_without_name": lambda m: m.content["categories"][1].pop("name") and None,
    },
    *JSON,
)
cases.add_table(
    EITHER,
    {
        "category_name_number": category(2, name=2),
        "category_name_empty": category(2, name=" "),
        "category_id_text": category(2, id="2"),
        "category_with_more_keys": category(2, supercategory=None, keypoints=["a"], color=None),
    },
    *JSON,
)


@cases.add(NOTED, *JSON, words=("cup",))
def two_categories_of_one_name(made):
    made.content["categories"][1]["name"] = "cup"


cases.add_table(
    REFUSED,
    {
        "annotation_of_unlisted_category": annotation(2, category_id=77),
        "annotation_category_null": annotation(2, category_id=None),
        "annotation_category_list": annotation(2, category_id=[1]),
        "annotation_without_category": without("category_id", 2),
    },
    *BOTH,
)
cases.add_table(
    EITHER,
    {"annotation_category_text": annotation(1, category_id="1")},
    *BOTH,
)

# ---- crowds ----------------------------------------------------------------------------------


def crowd(value):
    """Object 2 is a crowd, said by `value`."""

    def spoil(made):
        made.annotations[1]["iscrowd"] = value
        made.compare = value in (1, "1")
        if made.is_video:
            made.truth["v1"].pop(1)
        else:
            made.drop(2)

    return spoil


cases.add_table(
    WORKS,
    {"crowd_1": crowd(1), "crowd_true": crowd(True), "crowd_text_1": crowd("1")},
    *BOTH,
)
cases.add_table(
    WORKS,
    {
        "no_crowd_false": annotation(2, iscrowd=False),
        "no_crowd_null": annotation(2, iscrowd=None),
        "no_crowd_text_0": annotation(2, iscrowd="0"),
    },
    *BOTH,
)
cases.add_table(
    EITHER,
    {
        "crowd_missing": without("iscrowd", 2),
        "crowds_missing": without("iscrowd"),
        "no_crowd_float": annotation(2, iscrowd=0.0),
        "no_crowd_text_false": annotation(2, iscrowd="false"),
    },
    *BOTH,
)
cases.add_table(
    REPORTED,
    {
        "crowd_2": crowd(2),
        "crowd_text": crowd("perhaps"),
        "crowd_list": crowd([1]),
        "crowd_nan": crowd(float("nan")),
    },
    *BOTH,
)


@cases.add(WORKS, ObjectImages)
def crowds_alone_in_an_image(made):
    made.annotations[0]["iscrowd"] = 1
    made.drop(1)


# ---- what masks do without -------------------------------------------------------------------

cases.add_table(
    EITHER,
    {
        "box_missing": without("bbox"),
        "box_null": annotation(2, bbox=None),
        "box_empty": annotation(2, bbox=[]),
        "box_of_text": annotation(2, bbox=["a", "b", "c", "d"]),
        "box_wrong": annotation(2, bbox=[500, 500, -3, float("nan")]),
        "area_missing": without("area"),
        "area_null": annotation(2, area=None),
        "area_text": annotation(2, area="720"),
        "area_list": annotation(2, area=[720]),
        "area_nan": annotation(2, area=float("nan")),
        "keypoints_odd": annotation(2, keypoints=None, num_keypoints="x"),
        "attributes_odd": annotation(2, attributes={"occluded": False}, score=None),
    },
    ObjectImages,
)
cases.add_table(
    EITHER,
    {
        "boxes_missing": without("bboxes"),
        "boxes_null": annotation(2, bboxes=None),
        "boxes_of_null": annotation(2, bboxes=[None] * 4),
        "boxes_too_few": annotation(2, bboxes=[[1, 2, 3, 4]]),
        "areas_missing": without("areas"),
        "areas_null": annotation(2, areas=None),
        "areas_of_null": annotation(2, areas=[None] * 4),
        "areas_of_text": annotation(2, areas=["1"] * 4),
    },
    ObjectVideos,
)


@cases.add(WORKS, *BOTH)
def image_without_object(made):
    last = made.annotations.pop()
    made.truth[list(made.truth)[-1]].pop()
    assert last[made.owner_key] == len(made.entries)


@cases.add(WORKS, *JSON)
def more_keys_in_the_json(made):
    made.content.update(info=None, licenses=[{"id": 0}], extra=[[[]]], segment_info=[])


@cases.add(REFUSED, ObjectImages, words=(("instances.json",),))
def panoptic_json_for_objects(made):
    other = PanopticImages(made.root / "other")
    made.content = json.loads(json.dumps(other.content))


@cases.add(REFUSED, ObjectVideos, words=(("instances.json",),))
def image_json_for_videos(made):
    other = ObjectImages(made.root / "other")
    made.content = json.loads(json.dumps(other.content))


@cases.add(REFUSED, ObjectImages, words=(("instances.json",),))
def video_json_for_images(made):
    other = ObjectVideos(made.root / "other")
    made.content = json.loads(json.dumps(other.content))


@cases.parametrize
def test_entry(case, tmp_path):
    case.hold(tmp_path)
