"""A batch of clips; the only door where "image" is seen: an image is a clip of one frame.

Shapes: B clips, T frames, N objects, H, W padded input.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from torch import Tensor

from rankseg_m2f.structures.predictions import ClipTargets


class Sizes(NamedTuple):
    """Of one image, or of each frame of a clip.

    Attributes:
        padded: (H, W) of the batch.
        resized: (h, w) before padding.
        output: (height, width) of results.
    """

    padded: tuple[int, int]
    resized: tuple[int, int]
    output: tuple[int, int]


@dataclass
class ClipBatch:
    """Frames as the backbone takes them, and what relates them to inputs and results.

    Attributes:
        frames: (B * T, 3, H, W) float, normalised, zero-padded right and bottom; frames of a clip
            are neighbours.
        num_frames: T.
        sizes: B pairs (h, w) before padding.
        output_sizes: B pairs (height, width) results are wanted in.
        instances: per clip, T Instances; None where the input has none.
        sem_seg: per clip, T label maps (h, w); None where the input has none.
        is_video: whether inputs were lists of frames, even of one; results then have a T axis.
        label_scores: per clip (K,) presence probabilities; None where the input has none.
    """

    frames: Tensor
    num_frames: int
    sizes: list[tuple[int, int]]
    output_sizes: list[tuple[int, int]]
    instances: list[list[Instances] | None]
    sem_seg: list[list[Tensor] | None]
    is_video: bool = False
    label_scores: list[Tensor | None] = field(default_factory=list)

    @classmethod
    def from_inputs(
        cls,
        inputs: Sequence[dict],
        normalise: Callable[[Tensor], Tensor],
        size_divisibility: int,
        device: torch.device,
    ) -> "ClipBatch":
        """Batch Detectron2's dataset dicts.

        Args:
            inputs: `image` is a (3, h, w) tensor or a list of T of them; `height`, `width` (output
                size) default to the image's. Optional are `instances` and `sem_seg` (h, w) integer
                label maps, ground truth, lists for a list; and `label_scores` (K,).
            normalise: maps a (3, h, w) frame to what the backbone expects.
            size_divisibility: padding makes H and W multiples of it; below 2: no padding.

        Raises:
            ValueError: clips of no frames or of different length, or frames of one clip of
                different size.
        """
        clips = [_as_list(x["image"]) for x in inputs]
        lengths = {len(clip) for clip in clips}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                "clips of one batch need the same number of frames, at least one, "
                f"got {sorted(lengths)}"
            )
        for clip, x in zip(clips, inputs, strict=True):
            if len({frame.shape for frame in clip}) != 1:
                name = x.get("file_name", x.get("file_names", "a clip"))
                raise ValueError(f"{name}: frames of one clip need the same size")
        sizes = [tuple(clip[0].shape[-2:]) for clip in clips]
        padded = _padded_size(sizes, size_divisibility)
        frames = torch.stack(
            [
                _pad(normalise(frame.to(device, non_blocking=True)), padded)
                for clip in clips
                for frame in clip
            ]
        )
        output_sizes = [
            (int(x.get("height", h)), int(x.get("width", w)))
            for x, (h, w) in zip(inputs, sizes, strict=True)
        ]
        instances, sem_seg = (
            [None if x.get(key) is None else _as_list(x[key]) for x in inputs]
            for key in ("instances", "sem_seg")
        )
        is_video = any(isinstance(x["image"], (list, tuple)) for x in inputs)
        scores = [x.get("label_scores") for x in inputs]
        return cls(frames, lengths.pop(), sizes, output_sizes, instances, sem_seg, is_video, scores)

    @property
    def padded_size(self) -> tuple[int, int]:
        """(H, W)."""
        return tuple(self.frames.shape[-2:])

    def sizes_of(self, clip: int) -> Sizes:
        """Sizes of clip number `clip`."""
        return Sizes(self.padded_size, self.sizes[clip], self.output_sizes[clip])

    def presence_logits(self, num_labels: int) -> Tensor:
        """(B, K) float64 presence logits of the `label_scores` that came with the inputs.

        In double precision, so that different float32 scores keep different logits: the ranking
        is that of the scores.

        Raises:
            ValueError: a clip without scores, or of another number of them.
        """
        for scores in self.label_scores:
            shape = None if scores is None else tuple(scores.shape)
            if shape != (num_labels,):
                raise ValueError(
                    f"MODEL.RANKSEG.SCORES: every input needs 'label_scores' of shape "
                    f"({num_labels},), got {shape}"
                )
        return torch.stack(self.label_scores).to(self.frames.device).double().logit()

    def labels(self) -> list[Tensor]:
        """Labels of each clip's objects, or of its pixels, (N,) each: all the oracle needs.

        Raises:
            ValueError: a clip without ground truth.
        """
        device = self.frames.device
        return [
            torch.cat([frame.flatten() for frame in maps]).to(device)
            if frames is None and maps is not None
            else torch.cat([frame.gt_classes for frame in self._truth_of(frames)]).to(device)
            for frames, maps in zip(self.instances, self.sem_seg, strict=True)
        ]

    def targets(self, num_labels: int) -> list[ClipTargets]:
        """Ground truth of each clip, masks padded to the input size.

        Objects with a label outside [0, num_labels), such as 255, are left out.

        Raises:
            ValueError: a clip without ground truth.
        """
        truths = [self._truth_of(frames) for frames in self.instances]
        return [self._clip_targets(frames, num_labels) for frames in truths]

    def label_maps(self, num_labels: int) -> Tensor:
        """Labels of all pixels, padded to the input size: (B * T, H, W) int64.

        They are those of `sem_seg`, else those of the objects, later ones on top.

        Returns:
            Labels in [0, num_labels); -1 for all others (such as 255), for padding and where
            nothing is.

        Raises:
            ValueError: a clip without ground truth.
        """
        device = self.frames.device
        maps = []
        for objects, label_maps in zip(self.instances, self.sem_seg, strict=True):
            if label_maps is None:
                frames = [_painted(frame, device) for frame in self._truth_of(objects)]
            else:
                frames = [frame.to(device).long() for frame in label_maps]
            maps += [_pad(frame, self.padded_size, value=-1) for frame in frames]
        labels = torch.stack(maps)  # (B * T, H, W)
        return labels.masked_fill((labels < 0) | (labels >= num_labels), -1)

    @staticmethod
    def _truth_of(frames: list[Instances] | None) -> list[Instances]:
        if frames is None:
            raise ValueError(
                "training and the ground-truth oracle need 'instances' in every input; "
                "for new images turn MODEL.RANKSEG.USE_GT and USE_GT_EVAL off"
            )
        return frames

    def _clip_targets(self, frames: list[Instances], num_labels: int) -> ClipTargets:
        # Objects are picked before the transfer: picking on a GPU would stop it.
        labels = torch.stack([frame.gt_classes for frame in frames], dim=1).long()
        ids = None
        kept = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
        if self.num_frames > 1:
            # An object takes its class from a frame that shows it; one never shown is dropped.
            ids = torch.stack([frame.gt_ids for frame in frames], dim=1)
            labels = labels.gather(1, (ids >= 0).int().argmax(1, keepdim=True))
            kept &= (ids >= 0).any(1)
        labels = labels[:, 0]
        kept &= (labels >= 0) & (labels < num_labels)
        picked = slice(None) if kept.all() else kept
        device = self.frames.device
        masks = [_pad(_mask_tensor(frame)[picked].to(device), self.padded_size) for frame in frames]
        return ClipTargets(
            labels[picked].to(device),
            torch.stack(masks, dim=1),
            None if ids is None else ids[picked].to(device),
        )


def _as_list(value) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _padded_size(sizes: list[tuple[int, int]], divisor: int) -> tuple[int, int]:
    divisor = max(divisor, 1)
    return tuple(-(-max(side) // divisor) * divisor for side in zip(*sizes, strict=True))


def _pad(image: Tensor, size: tuple[int, int], value: float = 0) -> Tensor:
    height, width = image.shape[-2:]
    return F.pad(image, (0, size[1] - width, 0, size[0] - height), value=value)


def _mask_tensor(instances: Instances) -> Tensor:
    """(N, h, w) bool from a tensor or Detectron2's BitMasks."""
    masks = instances.gt_masks
    return getattr(masks, "tensor", masks).bool()


def _painted(instances: Instances, device: torch.device) -> Tensor:
    """(h, w) int64 label map of the objects of a frame, -1 where there is none."""
    masks = _mask_tensor(instances).to(device)
    labels = instances.gt_classes.to(device).long()
    label_map = labels.new_full(masks.shape[1:], -1)
    for mask, label in zip(masks, labels, strict=True):
        label_map = torch.where(mask, label, label_map)
    return label_map
