"""An image or a video in, results out; no ground truth, no dataset."""

import itertools
from collections.abc import Iterable

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from rankseg_m2f.data.augmentation import resize_for_test
from rankseg_m2f.engine.config_checks import check_model
from rankseg_m2f.engine.windows import WindowedModel
from rankseg_m2f.errors import UserError
from rankseg_m2f.modeling.wrappers.sliding import with_sliding
from rankseg_m2f.rankseg.hints import LabelHints
from rankseg_m2f.weights.checkpoint import load_model
from rankseg_m2f.weights.metadata import label_names


def _checked(image: np.ndarray) -> np.ndarray:
    """`image` itself: floats in [0, 1], say, would be segmented without a word, and wrongly.

    Raises:
        TypeError: no NumPy array.
        ValueError: not (H, W, 3) uint8, or without a pixel.
    """
    is_array = isinstance(image, np.ndarray)
    if is_array and image.dtype == np.uint8 and image.shape[2:] == (3,) and image.size:
        return image
    got = f"{image.dtype} of shape {image.shape}" if is_array else type(image).__name__
    raise (ValueError if is_array else TypeError)(
        f"Predictor takes (H, W, 3) uint8 RGB, got {got}; "
        "rankseg_m2f.images.read_image reads any image"
    )


class Predictor:
    """The model of a config with MODEL.WEIGHTS, ready for single images.

    Attributes:
        label_names: K names, or none where the config's datasets have none.
        hints: what is known about the labels of all inputs to come, such as
            ``LabelHints(deny=[3])``; a call may say otherwise.
    """

    def __init__(self, cfg: CfgNode, trust: bool = False, allow_partial: bool = False):
        """
        Args:
            trust: unpickle MODEL.WEIGHTS without restriction.
            allow_partial: accept weights that lack parts of the model.

        Raises:
            UserError: labels are ranked by scores of a dataset's images, or see `load_model`.
        """
        check_model(cfg)
        if cfg.MODEL.RANKSEG.SCORES:
            raise UserError(
                "a model with MODEL.RANKSEG.SCORES ranks labels by scores of a dataset's images: "
                "it cannot be shown on single images"
            )
        model, _ = load_model(cfg, trust=trust, allow_partial=allow_partial)
        self.model = with_sliding(cfg, model)
        self.label_names = label_names(cfg)
        self.hints = LabelHints()
        self.image_format = cfg.INPUT.FORMAT
        self.augmentations = T.AugmentationList(resize_for_test(cfg))

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, hints: LabelHints | None = None) -> dict:
        """Results as `Segmentor.forward` gives them, at the image's own size.

        Args:
            image: (H, W, 3) uint8, RGB.
            hints: what is known about this image's labels; None: `self.hints`.

        Raises:
            TypeError: no NumPy array.
            ValueError: one of another shape or dtype.
        """
        image = _checked(image)
        return self.model([self.sample(self.resized(image), image, hints)])[0]

    def sample(self, images, original: np.ndarray, hints: LabelHints | None) -> dict:
        """The model's input: `images` as it takes them, results at the size of `original`."""
        height, width = original.shape[:2]
        known = self.hints if hints is None else hints
        return {"image": images, "height": height, "width": width, "label_hints": known}

    def resized(self, image: np.ndarray) -> torch.Tensor:
        """(3, h, w) uint8 as the model takes it."""
        pixels = image if self.image_format == "RGB" else image[:, :, ::-1]
        sample = T.AugInput(np.ascontiguousarray(pixels))
        self.augmentations(sample)
        return torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))


class VideoPredictor(Predictor):
    """The model of a config for videos of any length, read frame by frame."""

    # Frames per window where the config does not say.
    WINDOW = 16

    def __init__(self, cfg: CfgNode, trust: bool = False, allow_partial: bool = False):
        """See `Predictor`."""
        super().__init__(cfg, trust, allow_partial)
        test = cfg.MODEL.MASK_FORMER.TEST
        self.windowed = WindowedModel(
            self.model, test.WINDOW or self.WINDOW, test.WINDOW_OVERLAP
        ).eval()

    @torch.inference_mode()
    def __call__(self, frames: Iterable[np.ndarray], hints: LabelHints | None = None) -> dict:
        """Results as `WindowedModel` gives them, at the video's own size.

        Args:
            frames: (H, W, 3) uint8, RGB; read once.
            hints: what is known about this video's labels; None: `self.hints`.

        Raises:
            TypeError: a frame is no NumPy array.
            ValueError: no frame, or one of another shape or dtype.
        """
        stream = map(_checked, frames)
        first = next(stream, None)
        if first is None:
            raise ValueError("the video has no frame")
        images = map(self.resized, itertools.chain([first], stream))
        return self.windowed([self.sample(images, first, hints)])[0]
