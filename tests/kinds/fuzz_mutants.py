"""Datasets spoilt at random: mutant `index` of a seed is the same on every machine.

Every mutation takes a generator and a dataset, spoils that, and says how.
"""

import copy
import io
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from kinds_made import (
    FramesFolder,
    LabelMaps,
    Made,
    ObjectImages,
    ObjectVideos,
    PanopticBeside,
    PanopticImages,
    VspwFolder,
    compressed,
    uncompressed,
)
from PIL import Image

_TREES = ObjectImages, ObjectVideos, PanopticImages, PanopticBeside
BASES = (*_TREES, LabelMaps, FramesFolder, VspwFolder)
_NASTY = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**70, 10**400, 0.5, -0.0, 1e30, 1e308),
    *(
        float("nan"),
        float("inf"),
        float("-inf"),
        "",
        " ",
        "1",
        "x",
        "\0",
        "../..",
        "\ud800",
        "é" * 9,
    ),
    *([], {}, [[]], [None], [[[[1]]]], {"a": 1}, [0] * 7, "b'PPP0'", 255, 65535, 16777215),
)
_BOMB = "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def mutant(seed: int, index: int, root: Path) -> tuple[Made, str]:
    """Write a mutant below `root`, a new folder; the dataset and what was done to it."""
    rng = random.Random(f"{seed}/{index}")
    made = BASES[index % len(BASES)](root)
    said = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        said.append(rng.choice(_mutations_of(made))(rng, made))
    made.write()
    # The number of labels is whatever the spoilt definition says.
    made.classes = None
    said += [later(made) for later in made.after]
    return made, f"{type(made).__name__}: {'; '.join(said)}"


def _mutations_of(made: Made) -> list[Callable]:
    every = [spoil_image, spoil_image, spoil_definition, spoil_yaml, spoil_folder]
    if isinstance(made, ObjectImages | ObjectVideos):
        return [*every, *[spoil_tree] * 6, *[spoil_outline] * 8, spoil_json, spoil_json]
    if isinstance(made, PanopticBeside):
        return [*every, *[spoil_tree] * 8, *[spoil_outline] * 4, spoil_json, spoil_json]
    if isinstance(made, PanopticImages):
        return [*every, spoil_image, *[spoil_tree] * 8, spoil_json, spoil_json]
    return [*every, *[spoil_image] * 5, *[spoil_list] * 2, spoil_definition]


# ---- json ------------------------------------------------------------------------------------


def spoil_tree(rng: random.Random, made: Made) -> str:
    """Something inside the json is another thing, elsewhere, missing or there twice."""
    holder, key, where = _place(rng, _one_json(rng, made).content)
    if holder is None:
        return "nothing"
    change = rng.choice((_replaced, _replaced, _replaced, _removed, _doubled, _cast, _shuffled))
    return f"json{where}: {change(rng, holder, key)}"


def _one_json(rng: random.Random, made: Made) -> Made:
    """The dataset, or its objects where these have a json of their own."""
    return made.objects if isinstance(made, PanopticBeside) and rng.random() < 0.5 else made


def _place(rng: random.Random, tree) -> tuple:
    """A random place of a tree of lists and dicts: what holds it, its key, and its path."""
    holder, key, where = None, None, ""
    while isinstance(tree, list | dict) and tree and (holder is None or rng.random() < 0.8):
        keys = list(tree) if isinstance(tree, dict) else range(len(tree))
        holder, key = tree, rng.choice(list(keys))
        tree, where = tree[key], f"{where}[{key!r}]"
    return holder, key, where


def _replaced(rng, holder, key) -> str:
    holder[key] = copy.deepcopy(rng.choice(_NASTY))
    return f"= {str(holder[key])[:30]!r}"


def _removed(rng, holder, key) -> str:
    del holder[key]
    return "removed"


def _doubled(rng, holder, key) -> str:
    twin = copy.deepcopy(holder[key])
    if isinstance(holder, list):
        holder.insert(rng.randrange(len(holder) + 1), twin)
    else:
        holder[key] = [twin, twin]
    return "twice"


def _cast(rng, holder, key) -> str:
    kind = rng.choice((str, float, bool, list, repr, lambda x: [x], lambda x: {"x": x}))
    try:
        holder[key] = kind(holder[key])
    except (TypeError, ValueError, OverflowError):
        holder[key] = [holder[key]]
    return f"cast to {str(holder[key])[:30]!r}"


def _shuffled(rng, holder, key) -> str:
    keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    other = rng.choice(keys)
    holder[key], holder[other] = holder[other], holder[key]
    return f"swapped with {other!r}"


def spoil_json(rng: random.Random, made: Made) -> str:
    """The text of the json is spoilt."""
    return _later(made, "json", lambda made: _spoil_text(rng, _one_json(rng, made).file))


def _spoil_text(rng: random.Random, path: Path) -> str:
    """Spoil a text file by bytes."""
    if not path.is_file():
        return f"{path.name} is no file"
    data = path.read_bytes()
    name, change = rng.choice(list(_TEXTS.items()))
    path.write_bytes(change(rng, data))
    return f"{path.name}: {name}"


def _flipped(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(min(len(data), rng.choice((1, 3, 20)))):
        changed[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(changed)


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _inserted(rng: random.Random, data: bytes) -> bytes:
    place = rng.randrange(len(data) + 1)
    return (
        data[:place]
        + rng.choice((b"[" * 50_000, b"\0", b"\xff\xfe", b'"', b"{}" * 99))
        + data[place:]
    )


def _recoded(encoding: str) -> Callable:
    return lambda rng, data: data.decode("utf-8", "replace").encode(encoding, "replace")


_TEXTS = {
    "flipped": _flipped,
    "flipped again": _flipped,
    "cut": _cut,
    "inserted": _inserted,
    "BOM": lambda rng, data: b"\xef\xbb\xbf" + data,
    "two BOMs": lambda rng, data: b"\xef\xbb\xbf" * 2 + data,
    "UTF-16": _recoded("utf-16"),
    "Latin 1": _recoded("latin-1"),
    "empty": lambda rng, data: b"",
    "twice": lambda rng, data: data + data,
    "Windows endings": lambda rng, data: data.replace(b", ", b",\r\n").replace(b"\n", b"\r\n"),
    "numbers of others": lambda rng, data: data.replace(
        b"1", rng.choice((b"9" * 5000, b"NaN", b"-1"))
    ),
}

# ---- outlines --------------------------------------------------------------------------------


def spoil_outline(rng: random.Random, made: Made) -> str:
    """One outline is spoilt as a polygon or as run lengths."""
    number = rng.randrange(1, 4)
    made = made.objects if isinstance(made, PanopticBeside) else made
    mask = made.mask(number)
    make, change = rng.choice(
        (
            (_polygon, _spoilt_polygon),
            (_polygon, _spoilt_polygon),
            (compressed, _spoilt_text),
            (compressed, _spoilt_text),
            (uncompressed, _spoilt_runs),
            (compressed, _spoilt_size),
        )
    )
    outline, said = change(rng, make(mask))
    try:
        made.set_outline(number, outline)
    except (IndexError, KeyError, TypeError, AttributeError):
        return "no outline left to spoil"
    return f"outline {number}: {said}"


def _polygon(mask: np.ndarray) -> list:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x0, y0, x1, y1 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return [list(map(int, (x0, y0, x1, y0, x1, y1, x0, y1)))]


def _spoilt_polygon(rng: random.Random, outline: list) -> tuple:
    numbers = outline[0]
    place = rng.randrange(len(numbers))
    far = (1e9, -1e9, 3e8, 1e30, -1e30, 1e308, 10**12, 2**31, 2**32, 2**63, 10**400, 1e5, -1e5)
    odd = (float("nan"), float("inf"), float("-inf"), None, "12", "x", True, [1], [], {})
    form = rng.randrange(8)
    if form < 3:
        numbers[place] = rng.choice(far)
        return outline, f"corner {numbers[place]:.3g}" if numbers[place] < 1e300 else "corner huge"
    if form < 5:
        numbers[place] = rng.choice(odd)
        return outline, f"corner {numbers[place]!r}"
    forms = (
        numbers,
        [outline],
        [],
        [[]],
        [numbers[:-1]],
        [numbers[:4]],
        [numbers[:2]],
        [[x / 64 for x in numbers]],
        [[x + 1000 for x in numbers]],
        [[-x for x in numbers]],
        [numbers] * 300,
        [[x, x] for x in numbers],
        {"x": numbers},
        [numbers * 500],
        [[0] * 8],
        [[x * 10**8 for x in numbers]],
        [numbers, None],
        [numbers, [1, 2, 3]],
        " ".join(map(str, numbers)),
    )
    spoilt = rng.choice(forms)
    return spoilt, f"polygon {str(spoilt)[:40]}"


def _spoilt_text(rng: random.Random, outline: dict) -> tuple:
    text = outline["counts"]
    place = rng.randrange(len(text))
    letter = chr(rng.choice((*range(33, 127), 0, 10, 200, 0x4E2D)))
    forms = (
        text[:place] + letter + text[place + 1 :],
        text[:place] + letter + text[place + 1 :],
        text[:place],
        text + letter,
        text + text,
        text[:place] + letter + text[place:],
        text[:place] + text[place + 1 :],
        repr(text.encode()),
        "",
        letter * 100,
        "o" * 50,
        text[::-1],
    )
    counts = rng.choice(forms)
    return {**outline, "counts": counts}, f"run lengths {counts[:30]!r}"


def _spoilt_runs(rng: random.Random, outline: dict) -> tuple:
    runs = list(outline["counts"])
    place = rng.randrange(len(runs))
    form = rng.randrange(5)
    if form == 0:
        runs[place] = rng.choice((-1, 0, 2**31, 2**32, 2**33, 2**63, 10**30, 1.5, -5))
    elif form == 1:
        runs[place] = rng.choice((None, "3", "x", [1], float("nan"), True))
    elif form == 2:
        del runs[place:]
    elif form == 3:
        runs = [*runs, *runs]
    else:
        runs = [runs[0] - 1, *runs[1:]]
    return {**outline, "counts": runs}, f"runs {str(runs)[:40]}"


def _spoilt_size(rng: random.Random, outline: dict) -> tuple:
    height, width = outline["size"]
    sizes = (
        [width, height],
        [height],
        [height, width, 3],
        [0, 0],
        [-height, -width],
        [height * 1000, width * 1000],
        [10**9, 10**9],
        [str(height), str(width)],
        [float(height), width + 0.5],
        None,
        "48x64",
        [None, None],
        {},
    )
    size = rng.choice(sizes)
    return {**outline, "size": size}, f"size {size}"


# ---- images ----------------------------------------------------------------------------------


def spoil_image(rng: random.Random, made: Made) -> str:
    """One image, label map or panoptic PNG is spoilt."""

    def spoil(made: Made) -> str:
        suffixes = {".png", ".jpg"}
        paths = sorted(p for p in made.root.rglob("*") if p.suffix in suffixes and p.is_file())
        if not paths:
            return "no image left"
        path = rng.choice(paths)
        name, change = rng.choice(list(_IMAGES.items()))
        try:
            change(rng, path)
        except (OSError, SyntaxError, ValueError):
            # An earlier mutation may have left nothing that can be opened.
            name = f"{name} in vain"
        return f"{path.relative_to(made.root)}: {name}"

    return _later(made, "image", spoil)


def _bytes(change: Callable) -> Callable:
    return lambda rng, path: path.write_bytes(change(rng, path.read_bytes()))


def _image(change: Callable, **options) -> Callable:
    def write(rng: random.Random, path: Path) -> None:
        with Image.open(path) as image:
            image.load()
        stream = io.BytesIO()
        change(rng, image).save(stream, **{"format": "PNG", **options})
        path.write_bytes(stream.getvalue())

    return write


def _mode(rng: random.Random, image: Image.Image) -> Image.Image:
    return image.convert(rng.choice(("L", "LA", "RGB", "RGBA", "P", "1")))


def _size(rng: random.Random, image: Image.Image) -> Image.Image:
    width, height = image.size
    sizes = (1, 1), (1, height), (width, 1), (height, width), (width + 1, height), (900, 700)
    return image.resize(rng.choice(sizes), Image.Resampling.NEAREST)


def _values(rng: random.Random, image: Image.Image) -> Image.Image:
    pixels = np.array(image)
    noise = np.random.default_rng(rng.randrange(2**32))
    if rng.random() < 0.5:
        return Image.fromarray(noise.integers(0, 256, pixels.shape).astype(np.uint8))
    pixels[..., :5, :] = rng.choice((0, 1, 3, 7, 254, 255))
    return Image.fromarray(pixels)


def _floats(rng: random.Random, image: Image.Image) -> Image.Image:
    pixels = np.array(image.convert("L")).astype(np.float32)
    pixels[rng.randrange(len(pixels))] = rng.choice((np.nan, np.inf, -1, 0.5, 1e30))
    return Image.fromarray(pixels)


def _claims(rng: random.Random, data: bytes) -> bytes:
    """A PNG whose header claims another size, checksum included."""
    if data[:4] != b"\x89PNG":
        return data
    side = rng.choice((0, 1, 10_000, 30_000, 65_535, 2**31 - 1))
    header = b"IHDR" + side.to_bytes(4, "big") * 2 + data[24:29]
    return data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]


def _as_folder(rng: random.Random, path: Path) -> None:
    path.unlink()
    path.mkdir()


def _renamed(rng: random.Random, path: Path) -> None:
    endings = ".PNG", ".bmp", ".tif", ".jpeg", ".npy", ""
    path.rename(path.with_suffix(rng.choice(endings)))


def _twin(rng: random.Random, path: Path) -> None:
    endings = ".jpg", ".bmp", ".tif", ".JPEG", ".png"
    twin = path.with_suffix(rng.choice(endings))
    if not twin.exists():
        with Image.open(path) as image:
            image.convert("L").save(twin)


_IMAGES = {
    "flipped": _bytes(_flipped),
    "flipped again": _bytes(_flipped),
    "cut": _bytes(_cut),
    "cut again": _bytes(_cut),
    "claims another size": _bytes(_claims),
    "empty": _bytes(lambda rng, data: b""),
    "text": _bytes(lambda rng, data: b"<html>404</html>"),
    "another mode": _image(_mode),
    "another mode again": _image(_mode),
    "another size": _image(_size),
    "another size again": _image(_size),
    "other values": _image(_values),
    "16 bit": _image(
        lambda rng, im: Image.fromarray(np.array(im.convert("L")).astype(np.uint16) * 257)
    ),
    "floats": _image(_floats, format="TIFF"),
    "JPEG": _image(lambda rng, image: image.convert("L"), format="JPEG"),
    "GIF": _image(lambda rng, image: image.convert("L"), format="GIF"),
    "a folder": _as_folder,
    "renamed": _renamed,
    "a twin": _twin,
    "gone": lambda rng, path: path.unlink(),
}

# ---- definitions, lists, folders -------------------------------------------------------------


def spoil_definition(rng: random.Random, made: Made) -> str:
    """An argument of the definition is another thing, missing, or unknown."""
    form = rng.randrange(4)
    if form == 0:
        key = rng.choice(("lable_root", "ignore_label", "label_offset", "table", "clip_length"))
        made.definition[key] = _plain(rng)
        return f"definition[{key!r}] = {made.definition[key]!r}"
    holder, key, where = _place(rng, made.definition)
    if form == 1:
        del holder[key]
        return f"definition{where}: removed"
    holder[key] = _plain(rng)
    return f"definition{where} = {holder[key]!r}"


def _plain(rng: random.Random):
    """A nasty value that YAML can hold."""
    return rng.choice([v for v in _NASTY if "\ud800" not in str(v) and v != 10**400])


def spoil_yaml(rng: random.Random, made: Made) -> str:
    """The text of data.yaml is spoilt."""
    wholes = (
        "own: *a\n",
        f"a: &a [x, x, x, x, x, x, x, x, x]\n{_BOMB}own: *i\n",
        "own: &a {kind: semantic_folder, image_root: images, label_root: *a}\n",
        "own: {kind: semantic_folder, image_root: images, label_root: labels, classes: &c [*c]}\n",
        "[" * 5000,
        "own:\n\tkind: ytvis\n",
        "own: !!python/object/apply:os.getcwd []\n",
        "own: 2024-13-45\n",
        "? {a: b}\n: c\n",
        "own: {<<: 7}\n",
        "own: !!binary x\n",
        "own: !!float .\n",
    )

    def spoil(made: Made) -> str:
        path = made.root / "data.yaml"
        if rng.random() < 0.5:
            return _spoil_text(rng, path)
        text = rng.choice(wholes)
        path.write_text(text)
        return f"data.yaml: {text[:40]!r}"

    return _later(made, "yaml", spoil)


def spoil_list(rng: random.Random, made: Made) -> str:
    """The list of names is spoilt; image folders get one."""
    path = made.root / "train.txt"
    if isinstance(made, FramesFolder):
        return spoil_definition(rng, made)
    if isinstance(made, LabelMaps) and not path.exists():
        made.definition["split_file"] = "train.txt"
        path.write_text("1\n2\n3\n4\n")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or ["x"]
    odd = (
        "",
        "..",
        "../images/1",
        "/",
        "1.png",
        "1.PNG",
        "v1/",
        "absent",
        "a\0b",
        "x" * 300,
        "1 1",
    )
    lines[rng.randrange(len(lines))] = rng.choice(
        (*odd, "./1", ".", "\ufeff1", "é", "*", "v1", "2")
    )
    path.write_text("\n".join(lines), encoding="utf-8")
    if rng.random() < 0.4:
        return _spoil_text(rng, path)
    return f"list {str(lines)[:80]}"


def spoil_folder(rng: random.Random, made: Made) -> str:
    """Something strange lies in one of the folders."""

    def spoil(made: Made) -> str:
        folders = sorted(p for p in made.root.rglob("*") if p.is_dir())
        folder = rng.choice(folders)
        strange = folder / rng.choice(
            (
                ".x.png",
                "._1.png",
                "@eaDir",
                ".git",
                "9.png",
                "9.tif",
                "Thumbs.db",
                "1",
                "\udcff.png",
                "z.PNG",
            )
        )
        if not strange.exists():
            form = rng.randrange(4)
            if form == 0:
                strange.mkdir()
            elif form == 1:
                strange.symlink_to(rng.choice((folder, made.root / "absent", Path("/dev/null"))))
            else:
                strange.write_bytes(rng.randbytes(rng.choice((0, 10, 1000))))
        return f"strange {strange.relative_to(made.root)!s:.40}"

    return _later(made, "folder", spoil)


def _later(made: Made, what: str, change: Callable) -> str:
    made.after.append(change)
    return what
