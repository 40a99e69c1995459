"""Multi-scale and flip inference (TEST.AUG), for semantic results."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from rankseg_m2f.data.augmentation import ResizeShortestEdge
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
        views = cfg.TEST.AUG
        self.resizes = [ResizeShortestEdge(size, views.MAX_SIZE) for size in views.MIN_SIZES]
        self.mirrored = (False, True) if views.FLIP else (False,)
        # The shared layers are left in this mode after evaluation.
        self.train(model.training)

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Per image `sem_seg` (K, height, width), from its `file_name`.

        Views are made of the file, not of the image as resized for the test, which has lost what
        the larger ones could show; the official code makes them of that.
        """
        return [{"sem_seg": self._scores(x)} for x in batched_inputs]

    def _scores(self, sample: dict) -> Tensor:
        total = None
        for pixels, mirrored in self._views(sample["file_name"]):
            scores = self._view_scores({**sample, "image": pixels})
            scores = scores.flip(2) if mirrored else scores  # (K, height, width)
            # Scores of a view too large for the GPU come back on the CPU.
            total = scores if total is None else total.add_(scores.to(total.device))
            del scores
        return total.div_(len(self.resizes) * len(self.mirrored))

    def _views(self, path: str) -> Iterator[tuple[Tensor, bool]]:
        """The file's image in each size, (3, h, w) uint8, and whether it is mirrored."""
        image = read_image(path, self.image_format)
        for resize in self.resizes:
            resized = resize.get_transform(image).apply_image(image)  # (h, w, 3)
            for mirrored in self.mirrored:
                view = resized[:, ::-1] if mirrored else resized
                yield torch.from_numpy(np.ascontiguousarray(view.transpose(2, 0, 1))), mirrored

    def _view_scores(self, view: dict) -> Tensor:
        clips = self.model.clips([view])
        hints = self.model.hints([view], clips)
        prediction = self.model.predict(clips)
        (result,) = self.model.results(prediction, clips, hints, options=self.options)
        return result["sem_seg"]
