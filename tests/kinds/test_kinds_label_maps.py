"""Label maps of folders: their formats, values, names and lists, of images and of frames."""

import numpy as np
from kinds_cases import EITHER, NOTED, REFUSED, REPORTED, WORKS, Cases
from kinds_made import (
    HEIGHT,
    SIZE,
    WIDTH,
    FramesFolder,
    LabelMaps,
    VspwFolder,
    photo,
    segments_of,
)
from PIL import Image

cases = Cases()
BOTH = LabelMaps, FramesFolder

# ---- formats ---------------------------------------------------------------------------------


def saved(ending, make=None, **options):
    return lambda made: made.save_as(ending, make, **options)


def _palette(labels):
    image = Image.fromarray(labels)
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200] + [9] * 759)
    return image


def _floats(labels):
    return Image.fromarray(labels.astype(np.float32))


def _with_nan(labels):
    values = labels.astype(np.float32)
    values[5:9, 5:9] = np.nan
    return Image.fromarray(values)


def _of(dtype):
    return lambda labels: Image.fromarray(labels.astype(dtype))


cases.add_table(
    WORKS,
    {
        "maps_png": saved(".png"),
        "maps_upper_case_ending": saved(".PNG"),
        "maps_tif": saved(".tif"),
        "maps_tiff": saved(".tiff"),
        "maps_tif_compressed": saved(".tif", compression="tiff_lzw"),
        "maps_16_bit": saved(".png", _of(np.uint16)),
        "maps_16_bit_tif": saved(".tif", _of(np.uint16)),
        "maps_32_bit_tif": saved(".tif", _of(np.int32)),
        "maps_palette": saved(".png", _palette),
        "maps_bmp": saved(".bmp"),
    },
    *BOTH,
)
cases.add_table(
    REFUSED,
    {
        "maps_colour": saved(".png", lambda m: Image.fromarray(m * 99).convert("RGB")),
        "maps_rgba": saved(".png", lambda m: Image.fromarray(m * 99).convert("RGBA")),
        "maps_float_with_nan": saved(".tif", _with_nan),
        "maps_float_with_fractions": saved(".tif", lambda m: Image.fromarray(m / np.float32(2))),
    },
    *BOTH,
    words=("labels",),
)
cases.add_table(
    REFUSED,
    {"maps_jpg": saved(".jpg"), "maps_jpeg": saved(".jpeg")},
    *BOTH,
    words=(("lossy", "JPEG", "compress", "webp"), "labels"),
)
cases.add_table(REFUSED, {"maps_webp": saved(".webp")}, *BOTH, words=("labels",))
cases.add_table(
    REPORTED,
    {"maps_png_is_jpeg": saved(".png", lambda m: Image.fromarray(m * 99), format="JPEG")},
    *BOTH,
    words=("labels",),
)
cases.add_table(
    EITHER,
    {
        "maps_float": saved(".tif", _floats),
        "maps_grey_and_alpha": saved(".png", lambda m: Image.fromarray(m).convert("LA")),
        "maps_grey_as_colour": saved(".png", lambda m: Image.fromarray(m).convert("RGB")),
    },
    *BOTH,
    words=("labels",),
)


@cases.add(WORKS, *BOTH)
def maps_one_bit(made):
    made.definition["classes"] = ["table", "object"]
    made.classes = 2
    made.maps = {key: (labels > 0).astype(np.uint8) for key, labels in made.maps.items()}
    made.save_as(".png", lambda labels: Image.fromarray(labels.astype(bool)))


@cases.add(WORKS, *BOTH)
def maps_of_300_labels(made):
    made.definition["classes"] = [f"c{i}" for i in range(300)]
    made.definition["ignore_label"] = 65535
    made.classes = 300
    made.maps = {key: labels.astype(np.uint16) * 140 for key, labels in made.maps.items()}


# ---- values ----------------------------------------------------------------------------------


def values(change, **definition):
    """Label maps of other values."""

    def spoil(made):
        made.definition.update(definition)
        made.maps = {key: change(labels).astype(labels.dtype) for key, labels in made.maps.items()}

    return spoil


@cases.add(NOTED, *BOTH, words=("255",))
def binary_0_255(made):
    made.definition["classes"] = ["background", "object"]
    made.classes = 2
    values(lambda m: np.where(m > 0, 255, 0))(made)


@cases.add(NOTED, *BOTH, words=("255",))
def label_hidden_by_the_ignore_label(made):
    values(lambda m: np.where(m == 2, 255, m))(made)


cases.add_table(
    WORKS,
    {
        "ignore_255": values(lambda m: _border(m, 255)),
        "ignore_254": values(lambda m: _border(m, 254), ignore_label=254),
        "ignore_0_offset_1": values(lambda m: _border(m + 1, 0), ignore_label=0, label_offset=1),
        "offset_1": values(lambda m: _border(m + 1, 0), label_offset=1),
        "offset_1_and_255": values(lambda m: _border(m + 1, 255), label_offset=1),
        "offset_10": values(lambda m: _border(m + 10, 3), label_offset=10),
    },
    *BOTH,
)


def _border(labels, value):
    labels = labels.copy()
    labels[:, :3] = value
    return labels


cases.add_table(
    REFUSED,
    {
        "ignore_label_is_a_label": values(lambda m: m, ignore_label=1),
        "ignore_label_text": values(lambda m: m, ignore_label="255"),
        "ignore_label_float": values(lambda m: m, ignore_label=2.5),
        "ignore_label_list": values(lambda m: m, ignore_label=[255]),
        "ignore_label_true": values(lambda m: m, ignore_label=True),
        "offset_negative": values(lambda m: m, label_offset=-1),
        "offset_text": values(lambda m: m, label_offset="1"),
    },
    *BOTH,
    words=(("ignore_label", "label_offset"),),
)
cases.add_table(
    EITHER,
    {
        "ignore_label_negative": values(lambda m: m, ignore_label=-1),
        "ignore_label_huge": values(lambda m: m, ignore_label=2**40),
        "offset_huge": values(lambda m: m, label_offset=2**40),
    },
    *BOTH,
)


@cases.add(REFUSED, LabelMaps, words=("labels/2.png", "7"))
def label_out_of_range(made):
    made.maps["2"][5, 5] = 7


@cases.add(NOTED, FramesFolder, words=("labels", "7"))
def label_out_of_range_in_a_frame(made):
    made.maps["v1", "2"][5, 5] = 7
    made.compare = False


@cases.add(NOTED, LabelMaps, words=("2.png",))
def map_all_ignored(made):
    made.maps["2"][:] = 255


@cases.add(REPORTED, *BOTH)
def maps_all_ignored(made):
    for labels in made.maps.values():
        labels[:] = 255


# ---- sizes -----------------------------------------------------------------------------------


@cases.add(REFUSED, LabelMaps, words=("2.png",))
def map_of_another_size(made):
    made.maps["2"] = made.maps["2"][:-3]


@cases.add(REFUSED, LabelMaps, words=("2.png",))
def map_transposed(made):
    made.maps["2"] = made.maps["2"].T.copy()


@cases.add(REFUSED, FramesFolder, words=("v1",))
def map_of_a_frame_of_another_size(made):
    made.maps["v1", "2"] = made.maps["v1", "2"][:-3]


def photo_of(height, width):
    """Photo and map 2 have this size."""

    def spoil(made):
        photo(2, (height, width)).save(made.root / "images/2.png")
        labels = np.zeros((height, width), dtype=np.uint8)
        labels[: max(1, height // 2), : max(1, width // 2)] = 1
        made.maps["2"] = labels
        # The short side is scaled to that of the other photos: masks are not what they were.
        made.compare = False

    return spoil


cases.add_table(
    WORKS,
    {
        "photo_of_one_row": photo_of(1, 400),
        "photo_of_one_column": photo_of(400, 1),
        "photo_of_one_pixel": photo_of(1, 1),
        "photo_upright": photo_of(WIDTH, HEIGHT),
    },
    LabelMaps,
)

# ---- names -----------------------------------------------------------------------------------


@cases.add(EITHER, LabelMaps, words=("labels", "png"))
def photos_and_maps_in_one_folder(made):
    made.write()
    for stem in made.maps:
        Image.open(made.root / f"images/{stem}.png").save(made.root / f"labels/{stem}.jpg")
    _define(made, image_root="labels")


@cases.add(REFUSED, LabelMaps)
def photos_are_their_own_maps(made):
    made.write()
    _define(made, image_root="labels")


@cases.add(REPORTED, LabelMaps, words=("2.jpg", "2.png"))
def photo_in_two_formats(made):
    photo(9).save(made.root / "images/2.jpg")


@cases.add(REPORTED, FramesFolder, words=("2.jpg", "2.png"))
def frame_in_two_formats(made):
    photo(9).save(made.root / "frames/v1/2.jpg")


@cases.add(REPORTED, LabelMaps, words=("2.tif", "2.png"))
def map_in_two_formats(made):
    made.write()
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(made.root / "labels/2.tif")


@cases.add(REFUSED, LabelMaps, words=("2.png",))
def photo_without_map(made):
    made.write()
    (made.root / "labels/2.png").unlink()


@cases.add(WORKS, LabelMaps)
def map_without_photo(made):
    made.write()
    (made.root / "images/2.png").unlink()
    del made.truth["2"]
    made.records = 3


@cases.add(WORKS, LabelMaps)
def folders_below_folders(made):
    made.write()
    for folder in ("images", "labels"):
        (made.root / folder / "a b/ü").mkdir(parents=True)
        (made.root / folder / "2.png").rename(made.root / folder / "a b/ü/2.png")


@cases.add(WORKS, FramesFolder)
def frames_in_the_order_of_numbers(made):
    made.maps = {
        (video, {"0": "8", "1": "9", "2": "10", "3": "11"}[frame]): labels
        for (video, frame), labels in made.maps.items()
    }
    for video, number in (("v1", 4), ("v2", 3)):
        folder = made.root / "frames" / video
        for i in reversed(range(number)):
            (folder / f"{i}.png").rename(folder / f"{i + 8}.png")


@cases.add(REFUSED, FramesFolder, words=("v1",))
def frame_without_map(made):
    made.write()
    (made.root / "labels/v1/2.png").unlink()


@cases.add(REFUSED, FramesFolder, words=("v1",))
def map_without_frame(made):
    made.write()
    (made.root / "frames/v1/2.png").unlink()


@cases.add(REFUSED, LabelMaps)
def folder_of_images_empty(made):
    for path in (made.root / "images").iterdir():
        path.unlink()


def _define(made, **definition):
    made.definition.update(definition)
    (made.root / "data.yaml").unlink(missing_ok=True)
    made.write()


# ---- lists -----------------------------------------------------------------------------------


def listed(text, keep=("1", "3"), encoding="utf-8"):
    """A list of names beside the folders; a right reading finds those of `keep`."""

    def spoil(made):
        made.definition["split_file"] = "train.txt"
        content = text if isinstance(text, bytes) else text.encode(encoding)
        (made.root / "train.txt").write_bytes(content)
        made.write()
        made.truth = {stem: made.truth[stem] for stem in keep}
        made.records = len(keep)

    return spoil


cases.add_table(
    WORKS,
    {
        "list_plain": listed("1\n3\n"),
        "list_with_bom": listed("1\n3\n", encoding="utf-8-sig"),
        "list_from_windows": listed("1\r\n3\r\n"),
        "list_from_windows_with_bom": listed("1\r\n3\r\n", encoding="utf-8-sig"),
        "list_of_old_macs": listed("1\r3\r"),
        "list_with_blanks": listed("  1 \n\t3\t\n\n   \n"),
        "list_without_last_newline": listed("1\n3"),
    },
    LabelMaps,
)
cases.add_table(
    EITHER,
    {
        "list_with_endings": listed("1.png\n3.png\n"),
        "list_with_endings_of_photos": listed("1.PNG\n3.png\n"),
        "list_with_dots": listed("./1\n./3\n"),
        "list_utf_16": listed("1\n3\n", encoding="utf-16"),
        "list_names_twice": listed("1\n3\n1\n"),
        "list_names_twice_with_ending": listed("1\n3\n1.png\n"),
        "list_with_folders": listed("images/1.png\nimages/3.png\n"),
        "list_of_pairs": listed("images/1.png labels/1.png\nimages/3.png labels/3.png\n"),
        "list_quoted": listed('"1"\n"3"\n'),
        "list_with_backslashes": listed(".\\1\n.\\3\n"),
    },
    LabelMaps,
    words=(("train.txt", "images"),),
)
cases.add_table(
    REFUSED,
    {
        "list_empty": listed("\n\n"),
        "list_of_bom_alone": listed("", encoding="utf-8-sig"),
        "list_names_absent": listed("1\nabsent\n"),
        "list_of_zero_bytes": listed(b"\0" * 100),
        "list_latin_1": listed("caf\u00e9\n".encode("latin-1")),
        "list_of_one_long_line": listed("x" * 100_000),
        "list_climbs_out": listed("1\n../../1\n"),
    },
    LabelMaps,
)


@cases.add(REFUSED, LabelMaps, words=("train.txt",))
def list_missing(made):
    made.definition["split_file"] = "train.txt"


@cases.add(REFUSED, LabelMaps, words=("train.txt",))
def list_a_folder(made):
    made.definition["split_file"] = "train.txt"
    (made.root / "train.txt").mkdir()


def videos_listed(text, encoding="utf-8", keep=("v1", "v2")):
    """VSPW's list of videos."""

    def spoil(made):
        (made.root / "train.txt").write_bytes(text.encode(encoding))
        made.truth = {video: made.truth[video] for video in keep}
        made.records = len(keep)

    return spoil


cases.add_table(
    WORKS,
    {
        "videos_list_plain": videos_listed("v1\nv2\n"),
        "videos_list_with_bom": videos_listed("v1\nv2\n", "utf-8-sig"),
        "videos_list_from_windows_with_bom": videos_listed("v1\r\nv2\r\n", "utf-8-sig"),
        "videos_list_with_blanks": videos_listed(" v1 \n\n\tv2\t\n"),
        "videos_list_in_another_order": videos_listed("v2\nv1\n"),
    },
    VspwFolder,
)
cases.add_table(
    EITHER,
    {
        "videos_list_names_twice": videos_listed("v1\nv2\nv1\n"),
        "videos_list_with_slashes": videos_listed("v1/\nv2/\n"),
        "videos_list_utf_16": videos_listed("v1\nv2\n", "utf-16"),
    },
    VspwFolder,
)
cases.add_table(
    REFUSED,
    {
        "videos_list_empty": videos_listed(""),
        "videos_list_names_absent": videos_listed("v1\nv9\n"),
        "videos_list_climbs_out": videos_listed("v1\n../../x\n"),
    },
    VspwFolder,
)


@cases.add(WORKS, VspwFolder)
def vspw_void_0_and_255(made):
    path = made.root / "data/v1/mask/000.png"
    labels = np.array(Image.open(path))
    labels[:5], labels[-5:] = 0, 255
    Image.fromarray(labels).save(path)
    maps = [np.array(Image.open(p)) for p in sorted(path.parent.iterdir())]
    made.truth["v1"] = segments_of(np.stack(maps), {"label_offset": 1}, 3)


@cases.parametrize
def test_label_map(case, tmp_path):
    case.hold(tmp_path)
