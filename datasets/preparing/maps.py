"""Label maps: from a release's ids to positions in our table of categories.

Shapes: H, W pixels of an image.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from preparing.processes import in_processes
from rankseg_m2f.files import replacing
from rankseg_m2f.images import ImageReadError, read_image, read_label_map

# In a lookup table: an id that the release does not have.
UNKNOWN = -1
# Pillow's options by ending; uncompressed, the label maps of ADE20K-Full would take 20 GB.
_FORMATS = {
    ".png": {"format": "PNG"},
    ".tif": {"format": "TIFF", "compression": "tiff_adobe_deflate"},
    ".jpg": {"format": "JPEG"},
}


def lookup(labels: Mapping[int, int], default: int = UNKNOWN, size: int = 0) -> np.ndarray:
    """A table with `labels[id]` at position id.

    Args:
        labels: value of each id, ids from 0 on.
        default: value of the other ids.
        size: least length.

    Returns:
        (max(id) + 1 or `size`,) int32.
    """
    table = np.full(max(size, max(labels) + 1), default, dtype=np.int32)
    table[list(labels)] = list(labels.values())
    return table


def translate(ids: np.ndarray, table: np.ndarray, path: Path) -> np.ndarray:
    """`table[ids]`.

    Raises:
        ValueError: an id that the table does not know, naming the file `path`.
    """
    low, high = int(ids.min(initial=0)), int(ids.max(initial=0))
    if low >= 0 and high < len(table):
        labels = table[ids]
        if labels.min(initial=0) != UNKNOWN:
            return labels
        bad = int(ids[labels == UNKNOWN][0])
    else:
        bad = low if low < 0 else high
    raise ValueError(f"{path}: id {bad} is not one of this dataset's")


def convert_maps(
    pairs: Sequence[tuple[Path, Path, Path]],
    table: np.ndarray,
    ignore: int,
    jobs: int | None,
    desc: str,
    read: Callable[[Path], np.ndarray] = read_label_map,
) -> None:
    """Write the label map of each image, unless a sound one is there.

    Args:
        pairs: image, its annotation, label map to write.
        table: label of each id of the annotations; UNKNOWN for ids that must not occur.
        ignore: value of pixels without label, in `table` too: 255, or 65535 with 16 bits.
        read: ids (H, W) of an annotation.

    Raises:
        ValueError: a file that cannot be read, an unknown id, or sizes that differ.
    """
    convert = partial(_convert, table=table, ignore=ignore, read=read)
    for _ in in_processes(convert, pairs, jobs, desc, "map"):
        pass


def _convert(paths: tuple[Path, Path, Path], *, table, ignore: int, read) -> None:
    picture, source, target = paths
    size = picture_size(picture)
    if not is_label_map(target, size, table):
        ids = same_size(read(source), size, source)
        write_label_map(target, translate(ids, table, source), ignore)


def same_size(ids: np.ndarray, size: tuple[int, int], path: Path) -> np.ndarray:
    """`ids`, or a ValueError that names the file if they are not of `size` (H, W)."""
    if ids.shape[:2] != size:
        raise ValueError(f"{path}: {ids.shape[:2]} pixels, its image has {size}")
    return ids


def is_label_map(path: Path, size: tuple[int, int], table: np.ndarray) -> bool:
    """Whether a file is a whole label map of `size` (H, W) with labels of `table` only."""
    labels = _read(read_label_map, path)
    if labels is None or labels.shape != size:
        return False
    return bool(np.isin(labels, table[table != UNKNOWN]).all())


def write_label_map(path: Path, labels: np.ndarray, ignore: int) -> None:
    """Write (H, W) labels with 8 bits if `ignore` is 255, else with 16."""
    save_picture(path, Image.fromarray(labels.astype(np.uint8 if ignore == 255 else np.uint16)))


def save_picture(path: Path, image: Image.Image) -> None:
    """Write an image whole or not at all; the ending says the format."""
    with replacing(path) as unfinished:
        image.save(unfinished, **_FORMATS[path.suffix])


def read_mat(path: Path, key: str) -> np.ndarray:
    """The array `key` of a MATLAB file, (H, W) integers.

    Raises:
        ValueError: a broken file, one of MATLAB 7.3, or one without `key`.
    """
    # Lazy: only two datasets come in this form.
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        return loadmat(path, variable_names=[key])[key].astype(np.int32)
    except KeyError as error:
        raise ValueError(f"{path}: has no {key!r}") from error
    except NotImplementedError as error:
        raise ValueError(f"{path}: of MATLAB 7.3, so of another release") from error
    except (MatReadError, ValueError, TypeError, OSError) as error:
        raise ValueError(f"{path}: missing or broken ({error})") from error


def picture_size(path: Path) -> tuple[int, int]:
    """(H, W) of an image, from its head.

    Raises:
        ImageReadError: missing or no image.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (UnidentifiedImageError, OSError) as error:
        raise ImageReadError(f"{path}: no such image, or a broken one") from error


def is_picture(path: Path, size: tuple[int, int]) -> bool:
    """Whether a file is a whole image of `size` (H, W)."""
    pixels = _read(read_image, path)
    return pixels is not None and pixels.shape[:2] == size


def _read(read: Callable[[Path], np.ndarray], path: Path) -> np.ndarray | None:
    """What a file holds; None if it is not there or broken."""
    if not path.is_file():
        return None
    try:
        with warnings.catch_warnings():
            # Pillow warns of what is cut off, and nobody reads on: it is made again.
            warnings.simplefilter("ignore")
            return read(path)
    except ImageReadError:
        return None
