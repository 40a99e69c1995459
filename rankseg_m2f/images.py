"""Reading images and label maps as they come, with one-line errors that name the file."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from rankseg_m2f.errors import UserError

# EXIF's tag, and its values of images that lie on their side.
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)


class ImageReadError(UserError):
    """A file that cannot be read as the image or label map it should be."""


class AnnotationError(UserError):
    """Files of a dataset that can be read but contradict each other or the config."""


def read_image(path: str | os.PathLike, format: str = "RGB", *, upright: bool = True) -> np.ndarray:
    """Any image as 8-bit colour, upright.

    EXIF orientation is applied; grey, palette, 1-bit, 16-bit, CMYK and alpha are converted (alpha
    is dropped); of an animation the first frame is read.

    Args:
        format: "RGB" or "BGR".
        upright: False leaves EXIF orientation, for label maps that were drawn without it.

    Returns:
        (H, W, 3) uint8, contiguous.

    Raises:
        ImageReadError: missing, broken or no image.
    """
    if format not in ("RGB", "BGR"):
        raise UserError(f"INPUT.FORMAT={format!r} is neither 'RGB' nor 'BGR'")
    image = _open(path)
    if upright:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _deep_grey_to_8_bit(image)
    if "transparency" in image.info:
        # Through RGBA, or Pillow warns that a palette's transparency is lost.
        image = image.convert("RGBA")
    pixels = np.asarray(image.convert("RGB"))
    return np.ascontiguousarray(pixels if format == "RGB" else pixels[:, :, ::-1])


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """(H, W) of the upright image, from the file's header.

    Raises:
        ImageReadError: missing, broken or not an image.
    """
    with _reading(path), _opened(path) as image:
        width, height = image.size
        turned = image.getexif().get(_ORIENTATION) in _TURNED
    return (width, height) if turned else (height, width)


def read_label_map(path: str | os.PathLike) -> np.ndarray:
    """A map of label ids, 8 or 16 bit; a palette's indices are the ids.

    Returns:
        (H, W) uint8 or int32.

    Raises:
        ImageReadError: missing, broken, in colour, JPEG, or of numbers that are not ids.
    """
    image = _open(path)
    if image.format in ("JPEG", "MPO"):
        raise ImageReadError(
            f"{path}: a label map must not be JPEG, which is lossy and blurs labels at their "
            "edges; save it as PNG"
        )
    if image.mode in ("L", "P", "1"):
        return np.array(image, dtype=np.uint8)
    if image.mode.startswith("I"):
        return np.array(image, dtype=np.int32)
    if image.mode == "F":
        return _ids_of_floats(path, np.asarray(image))
    raise ImageReadError(
        f"{path}: a label map must have one channel of ids (8 or 16 bit), not {image.mode}; "
        "convert its colours to ids first"
    )


def read_panoptic_map(path: str | os.PathLike) -> np.ndarray:
    """A COCO panoptic PNG as segment ids R + 256 G + 65536 B.

    Returns:
        (H, W) int32.

    Raises:
        ImageReadError: missing, broken, or not in colour.
    """
    image = _open(path)
    if image.mode not in ("RGB", "RGBA"):
        raise ImageReadError(f"{path}: a panoptic map must be an RGB PNG, not {image.mode}")
    pixels = np.asarray(image.convert("RGB")).astype(np.int32)
    return pixels[:, :, 0] + 256 * pixels[:, :, 1] + 65536 * pixels[:, :, 2]


def _open(path: str | os.PathLike) -> Image.Image:
    """The image with all its pixels read."""
    with _reading(path):
        image = _opened(path)
        image.load()
    return image


def _opened(path: str | os.PathLike) -> Image.Image:
    """The image of which only the header is read."""
    path = Path(path)
    # Unlike Path's, this one knows no error of a name that is too long.
    if not os.path.exists(path):
        advice = "; its name has backslashes: write / between folders" if "\\" in str(path) else ""
        raise ImageReadError(f"{path}: no such file{advice}")
    if path.is_dir():
        raise ImageReadError(f"{path}: a folder, not an image")
    with _reading(path):
        return Image.open(path)


@contextmanager
def _reading(path: str | os.PathLike) -> Iterator[None]:
    """Pillow's many errors as one."""
    try:
        yield
    except ImageReadError:
        raise
    except UnidentifiedImageError as error:
        size = Path(path).stat().st_size
        reason = "empty file" if size == 0 else f"not an image ({size} bytes)"
        raise ImageReadError(f"{path}: {reason}") from error
    except Image.DecompressionBombError as error:
        raise ImageReadError(f"{path}: too large to be read safely ({error})") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise ImageReadError(f"{path}: broken image ({error})") from error


def _ids_of_floats(path: str | os.PathLike, values: np.ndarray) -> np.ndarray:
    """Ids of a TIFF of floats, as geographic tools write them."""
    if not np.isfinite(values).all():
        raise ImageReadError(
            f"{path}: a label map must hold ids, but {np.count_nonzero(~np.isfinite(values))} "
            "pixels are NaN or infinite; write the ignore label there"
        )
    ids = values.astype(np.int64)
    if (ids != values).any() or np.abs(values).max(initial=0) >= 1 << 31:
        raise ImageReadError(
            f"{path}: a label map must hold ids, but it has values such as "
            f"{values[ids != values].flat[0] if (ids != values).any() else np.abs(values).max():g}"
        )
    return ids.astype(np.int32)


def _deep_grey_to_8_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F" and values.max(initial=0) <= 1:
        values = values * 255
    elif values.max(initial=0) > 255:
        values = values / 257  # 65535 becomes 255
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
