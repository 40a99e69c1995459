"""Reading of images and label maps in every mode a file may come in."""

import warnings

import numpy as np
import pytest
from PIL import Image

from rankseg_m2f.images import (
    ImageReadError,
    read_image,
    read_label_map,
    read_panoptic_map,
)

RED, GREEN = (250, 0, 0), (0, 250, 0)


@pytest.fixture
def picture():
    """3 x 5 pixels (height x width), red with a green top-left corner."""
    image = Image.new("RGB", (5, 3), RED)
    image.putpixel((0, 0), GREEN)
    return image


def test_rgb_and_bgr(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    rgb = read_image(tmp_path / "a.png")
    assert rgb.shape == (3, 5, 3) and rgb.dtype == np.uint8
    assert tuple(rgb[0, 0]) == GREEN and tuple(rgb[2, 4]) == RED
    bgr = read_image(tmp_path / "a.png", "BGR")
    assert np.array_equal(bgr, rgb[:, :, ::-1]) and bgr.flags.c_contiguous
    with pytest.raises(ValueError, match="YUV"):
        read_image(tmp_path / "a.png", "YUV")


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16", "F", "CMYK"])
def test_every_mode_becomes_colour(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode in ("F", "CMYK") else "a.png")
    if mode == "I;16":
        image = Image.fromarray(np.array([[0, 65535]], dtype=np.uint16))
    elif mode == "F":
        image = Image.fromarray(np.array([[0, 1]], dtype=np.float32))
    else:
        image = Image.new("RGB", (2, 1))
        image.putpixel((1, 0), (255, 255, 255))
        image = image.convert(mode)
    image.save(path)
    assert np.array_equal(read_image(path), [[[0, 0, 0], [255, 255, 255]]])


def test_transparent_palette_does_not_warn(tmp_path, picture):
    picture.convert("P").save(tmp_path / "a.png", transparency=bytes([0, 128]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "a.png").shape == (3, 5, 3)


def test_exif_orientation_is_applied(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    picture.save(tmp_path / "a.png", exif=exif)
    upright = read_image(tmp_path / "a.png")
    assert upright.shape == (5, 3, 3) and tuple(upright[0, 2]) == GREEN


@pytest.mark.parametrize(
    "content, reason",
    [
        (None, "no such file"),
        (b"", "empty file"),
        (b"<html>not found</html>", "not an image"),
        ("truncated", "broken image"),
        ("folder", "a folder"),
    ],
)
def test_errors_name_file_and_reason(tmp_path, content, reason):
    path = tmp_path / "bad.png"
    if content == "folder":
        path.mkdir()
    elif content == "truncated":
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageReadError, match=f"bad.png: {reason}") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_label_maps_keep_their_ids(tmp_path):
    ids = np.array([[0, 7, 255]], dtype=np.uint8)
    Image.fromarray(ids).save(tmp_path / "grey.png")
    palette = Image.fromarray(ids, mode="P")
    palette.putpalette([i % 256 for i in range(768)])
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(read_label_map(tmp_path / "grey.png"), ids)
    assert np.array_equal(read_label_map(tmp_path / "palette.png"), ids)
    deep = np.array([[0, 846, 65535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(read_label_map(tmp_path / "deep.png"), deep)
    Image.new("RGB", (2, 2)).save(tmp_path / "colour.png")
    with pytest.raises(ImageReadError, match=r"colour.png: a label map must have one channel"):
        read_label_map(tmp_path / "colour.png")


def test_panoptic_ids_are_three_bytes(tmp_path, picture):
    image = Image.new("RGB", (1, 1), (1, 2, 3))
    image.save(tmp_path / "a.png")
    assert read_panoptic_map(tmp_path / "a.png").tolist() == [[1 + 2 * 256 + 3 * 65536]]
    picture.convert("L").save(tmp_path / "grey.png")
    with pytest.raises(ImageReadError, match=r"grey.png: a panoptic map must be an RGB PNG"):
        read_panoptic_map(tmp_path / "grey.png")
