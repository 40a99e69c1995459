"""One picture in, results out; no ground truth, no dataset."""

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model

from rankseg_m2f.data.augmentation import resize_for_test
from rankseg_m2f.engine.checkpoint import Checkpointer


class Predictor:
    """The model of a config with MODEL.WEIGHTS, ready for single pictures."""

    def __init__(self, cfg: CfgNode, trust: bool = False, allow_partial: bool = False):
        """
        Args:
            trust: unpickle MODEL.WEIGHTS without restriction.
            allow_partial: accept weights that lack parts of the model.
        """
        self.model = build_model(cfg).eval()
        self.image_format = cfg.INPUT.FORMAT
        self.augmentations = T.AugmentationList(resize_for_test(cfg))
        Checkpointer(
            self.model, trust=trust, allow_partial=allow_partial, for_evaluation=True
        ).load(cfg.MODEL.WEIGHTS)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> dict:
        """Results as `MaskFormer.forward` gives them, at the picture's own size.

        Args:
            image: (H, W, 3) uint8, RGB.
        """
        pixels = image if self.image_format == "RGB" else image[:, :, ::-1]
        sample = T.AugInput(np.ascontiguousarray(pixels))
        self.augmentations(sample)
        resized = torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))
        height, width = image.shape[:2]
        return self.model([{"image": resized, "height": height, "width": width}])[0]
