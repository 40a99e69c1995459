"""Multi-scale and flip inference (TEST.AUG), for semantic results."""

import copy
from dataclasses import replace

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import DatasetMapperTTA
from fvcore.transforms import HFlipTransform
from torch import Tensor, nn

from rankseg_m2f.images import read_image


class MultiScaleModel(nn.Module):
    """Averages a model's semantic scores over TEST.AUG.MIN_SIZES, mirrored too if TEST.AUG.FLIP."""

    def __init__(self, cfg: CfgNode, model: nn.Module):
        """
        Args:
            model: `MaskFormer`; it is not changed.
        """
        super().__init__()
        # Scores of different selections cannot be averaged, so all K are asked for; parameters
        # are shared with the original.
        self.model = copy.copy(model)
        self.model.rank_options = replace(self.model.rank_options, full_sem_seg=True)
        self.model.inference_options = replace(
            self.model.inference_options, semantic=True, panoptic=False, instance=False
        )
        self.image_format = cfg.INPUT.FORMAT
        self.views = DatasetMapperTTA(cfg)
        # The shared layers are left in this mode after evaluation.
        self.train(model.training)

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Per image `sem_seg` (K, height, width), from its `file_name`.

        Views are made of the file, not of the image as resized for the test, which has lost what
        the larger ones could show; the official code makes them of that.
        """
        return [{"sem_seg": self._scores(x)} for x in batched_inputs]

    def _scores(self, sample: dict) -> Tensor:
        image = read_image(sample["file_name"], self.image_format)
        whole = dict(sample, image=torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))))
        views = self.views(whole)
        total = None
        for view in views:
            mirrored = any(isinstance(t, HFlipTransform) for t in view.pop("transforms").transforms)
            scores = self.model([view])[0].pop("sem_seg")
            scores = scores.flip(2) if mirrored else scores
            # Scores of a view too large for the GPU come back on the CPU.
            total = scores if total is None else total.add_(scores.to(total.device))
            del scores
        return total.div_(len(views))
