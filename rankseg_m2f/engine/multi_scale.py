"""Multi-scale and flip inference (TEST.AUG), for semantic results."""

from dataclasses import replace

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import DatasetMapperTTA
from fvcore.transforms import HFlipTransform
from torch import Tensor, nn

from rankseg_m2f.images import read_image
from rankseg_m2f.modeling.segmentor import Segmentor


class MultiScaleModel(nn.Module):
    """Averages a model's semantic scores over TEST.AUG.MIN_SIZES, mirrored too if TEST.AUG.FLIP."""

    def __init__(self, cfg: CfgNode, model: Segmentor):
        super().__init__()
        self.model = model
        # Scores of different selections cannot be averaged, so all K are asked for.
        self.options = replace(
            model.inference_options,
            semantic=True,
            panoptic=False,
            instance=False,
            full_sem_seg=True,
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
            scores = self._view_scores(view)
            scores = scores.flip(2) if mirrored else scores
            # Scores of a view too large for the GPU come back on the CPU.
            total = scores if total is None else total.add_(scores.to(total.device))
            del scores
        return total.div_(len(views))

    def _view_scores(self, view: dict) -> Tensor:
        clips = self.model.clips([view])
        hints = self.model.hints([view], clips)
        prediction = self.model.predict(clips)
        (result,) = self.model.results(prediction, clips, hints, options=self.options)
        return result["sem_seg"]
