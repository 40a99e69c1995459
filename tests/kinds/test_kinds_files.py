"""Encodings of json, broken json, and what systems leave in folders."""

from kinds_cases import EITHER, REFUSED, WORKS, Cases
from kinds_made import (
    FramesFolder,
    LabelMaps,
    Made,
    ObjectImages,
    ObjectVideos,
    PanopticImages,
    VspwFolder,
    photo,
)

cases = Cases()
JSON = ObjectImages, ObjectVideos, PanopticImages

# ---- json ------------------------------------------------------------------------------------


@cases.add(WORKS, *JSON)
def json_with_bom(made):
    made.encoding = "utf-8-sig"


@cases.add(WORKS, *JSON)
def json_with_windows_endings(made):
    made.rewrite(lambda text: text.replace(", ", ",\r\n"))


@cases.add(EITHER, *JSON, words=(".json",))
def json_utf_16(made):
    made.encoding = "utf-16"


@cases.add(EITHER, *JSON, words=(".json",))
def json_utf_32(made):
    made.encoding = "utf-32"


@cases.add(REFUSED, *JSON, words=(".json",))
def json_latin_1(made):
    made.rewrite(lambda text: text.replace("cup", "tasse \u00e0 caf\u00e9").encode("latin-1"))


def rewritten(change):
    return lambda made: made.rewrite(change)


cases.add_table(
    REFUSED,
    {
        "json_empty": rewritten(lambda text: ""),
        "json_of_blanks": rewritten(lambda text: "\n \n"),
        "json_of_bom_alone": rewritten(lambda text: b"\xef\xbb\xbf"),
        "json_cut": rewritten(lambda text: text[: len(text) // 2]),
        "json_followed_by_more": rewritten(lambda text: text + text),
        "json_a_list": rewritten(lambda text: f"[{text}]"),
        "json_null": rewritten(lambda text: "null"),
        "json_a_text": rewritten(lambda text: '"images"'),
        "json_a_number": rewritten(lambda text: "17"),
        "json_a_dictionary_of_python": rewritten(lambda text: text.replace('"', "'")),
        "json_lines": rewritten(lambda text: text.replace(", ", "\n")),
        "json_html": rewritten(lambda text: "<html><body>404</body></html>"),
        "json_of_zero_bytes": rewritten(lambda text: b"\0" * 4096),
        "json_zip": rewritten(lambda text: b"PK\x03\x04" + bytes(range(256))),
        "json_nested_too_deep": rewritten(lambda text: "[" * 200_000),
        "json_objects_nested_too_deep": rewritten(lambda text: '{"images":' * 100_000),
        "json_number_too_long": rewritten(lambda text: f'{{"images": {"9" * 10_000}}}'),
        "json_half_a_surrogate": rewritten(lambda text: text.replace(".png", "\\ud800.png", 1)),
        "json_folder": lambda made: made.file.mkdir(),
    },
    *JSON,
    words=((".json", "png"),),
)


@cases.add(REFUSED, *JSON, words=(".json",))
def json_missing(made):
    made.file.write_text("{}")
    made.after.append(lambda made: made.file.unlink())


@cases.add(WORKS, ObjectImages)
def json_is_a_link(made):
    kept = made.root / "kept.json"
    made.rewrite(lambda text: text)
    made.file.rename(kept)
    made.file.symlink_to(kept)


# ---- folders ---------------------------------------------------------------------------------

_FOLDERS = LabelMaps, FramesFolder


def roots(made: Made, sides: str) -> list:
    """Folders of images, of labels, or of both; in videos those of the first video."""
    keys = {
        "images": ["image_root"],
        "labels": ["label_root"],
        "both": ["image_root", "label_root"],
    }
    found = [made.root / made.definition[key] for key in keys[sides]]
    return [folder / "v1" for folder in found] if made.is_video else found


def left_behind(folder: str, sides: str):
    """A hidden folder, or one of a system, with copies of all files of its own folder."""

    def spoil(made):
        made.write()
        for root in roots(made, sides):
            files = [path for path in root.iterdir() if path.is_file()]
            (root / folder).mkdir()
            for path in files:
                (root / folder / path.name).write_bytes(path.read_bytes())

    return spoil


def stray(name: str, content: bytes = b"stray"):
    """A file that is none of the dataset's, in each folder."""

    def spoil(made):
        made.write()
        for root in roots(made, "both"):
            (root / name).write_bytes(content)

    return spoil


cases.add_table(
    WORKS,
    {
        f"{name}_in_{sides}": left_behind(folder, sides)
        for name, folder in (
            ("jupyter_checkpoints", ".ipynb_checkpoints"),
            ("synology_eadir", "@eaDir"),
            ("apple_double", ".AppleDouble"),
            ("git_folder", ".git"),
        )
        for sides in ("images", "labels", "both")
    },
    *_FOLDERS,
)
cases.add_table(
    WORKS,
    {
        "apple_dot_underscore": stray("._1.png"),
        "apple_ds_store": stray(".DS_Store"),
        "windows_thumbs": stray("Thumbs.db"),
        "windows_desktop_ini": stray("desktop.ini"),
        "hidden_image": stray(".1.png"),
        "readme_among_images": stray("README.md"),
        "archive_among_images": stray("1.png.zip"),
    },
    *_FOLDERS,
)


@cases.add(WORKS, VspwFolder)
def frames_beside_thumbs(made):
    for folder in ("origin", "mask"):
        for name in ("Thumbs.db", "._000.jpg", ".000.png", ".DS_Store"):
            (made.root / "data/v1" / folder / name).write_bytes(b"stray")
        (made.root / "data/v1" / folder / "@eaDir").mkdir()


@cases.add(WORKS, LabelMaps)
def folders_are_links(made):
    made.write()
    for folder in ("images", "labels"):
        (made.root / folder).rename(made.root / f"real_{folder}")
        (made.root / folder).symlink_to(made.root / f"real_{folder}")


@cases.add(WORKS, LabelMaps)
def link_back_to_its_own_folder(made):
    made.write()
    for folder in ("images", "labels"):
        (made.root / folder / "loop").symlink_to(made.root / folder)


@cases.add(REFUSED, LabelMaps)
def link_to_nowhere(made):
    (made.root / "images/9.png").symlink_to(made.root / "absent.png")
    (made.root / "labels/9.png").symlink_to(made.root / "absent.png")


@cases.add(REFUSED, *_FOLDERS)
def folder_of_labels_missing(made):
    made.write()
    made.after.append(lambda made: (made.root / "labels").rename(made.root / "elsewhere"))


@cases.add(REFUSED, LabelMaps)
def folder_of_images_a_file(made):
    made.write()
    made.definition["image_root"] = "images/1.png"
    (made.root / "data.yaml").unlink()


@cases.add(EITHER, LabelMaps)
def folder_named_as_image(made):
    made.write()
    (made.root / "images/9.png").mkdir()
    (made.root / "labels/9.png").mkdir()


# ---- photos ----------------------------------------------------------------------------------


def photo_bytes(change):
    """Photo 2 as `change` makes it of its bytes."""

    def spoil(made):
        path = made.root / "images/2.png"
        path.write_bytes(change(path.read_bytes()))
        return ["2.png"]

    return spoil


def photo_mode(mode: str, ending: str = ".png"):
    """Photo 2 in another mode or format."""

    def spoil(made):
        path = made.root / "images/2.png"
        path.unlink()
        photo(2).convert(mode).save(path.with_suffix(ending))
        for one in getattr(made, "content", {}).get("images", []):
            if one["id"] == 2:
                one["file_name"] = f"2{ending}"

    return spoil


_IMAGES = LabelMaps, ObjectImages, PanopticImages
cases.add_table(
    REFUSED,
    {
        "photo_empty": photo_bytes(lambda data: b""),
        "photo_cut": photo_bytes(lambda data: data[: len(data) // 2]),
        "photo_header_alone": photo_bytes(lambda data: data[:30]),
        "photo_html": photo_bytes(lambda data: b"<html>404</html>"),
    },
    *_IMAGES,
)
cases.add_table(
    WORKS,
    {
        "photo_grey": photo_mode("L"),
        "photo_rgba": photo_mode("RGBA"),
        "photo_palette": photo_mode("P"),
        "photo_one_bit": photo_mode("1"),
        "photo_16_bit": photo_mode("I;16"),
        "photo_cmyk": photo_mode("CMYK", ".jpg"),
        "photo_webp": photo_mode("RGB", ".webp"),
        "photo_upper_case_ending": photo_mode("RGB", ".JPG"),
    },
    *_IMAGES,
)


@cases.parametrize
def test_file(case, tmp_path):
    case.hold(tmp_path)
