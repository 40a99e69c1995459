"""What a network predicts, what that is compared with, and what leaves the model.

Shapes: B clips, T frames, Q queries, N objects, K labels, κ selected labels, C channels;
H, W padded input size, h, w output size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rankseg_m2f.structures.pixel_logits import PixelLogits


@dataclass
class Prediction:
    """What is predicted of a batch of clips before labels are ranked; families add to it.

    Attributes:
        presence_logits: (B, K) float; None where nothing says which labels are present.
    """

    presence_logits: Tensor | None

    def __getitem__(self, clip: int) -> "Prediction":
        """The prediction of one clip, as a batch of one."""
        return Prediction(self.presence_of(clip))

    def presence_of(self, clip: int) -> Tensor | None:
        """(1, K) presence logits of one clip."""
        return None if self.presence_logits is None else self.presence_logits[clip : clip + 1]


@dataclass
class Targets:
    """Ground truth of a batch of clips; families add to it.

    Attributes:
        presence: (B, K) bool, labels truly present.
    """

    presence: Tensor


@dataclass
class QueryPrediction:
    """One decoder layer's prediction.

    Attributes:
        queries: (B, Q, C) before the final norm.
        class_logits: (B, Q, K + 1), no-object last; (B, Q, κ + 1) once ranked.
        mask_logits: (B, Q, T, H/4, W/4). None for hidden layers at inference, which need no mask
            once the next layer has used it.
    """

    queries: Tensor
    class_logits: Tensor
    mask_logits: Tensor | None

    def __getitem__(self, clip: int) -> "QueryPrediction":
        """The prediction of one clip, as a batch of one."""
        masks = None if self.mask_logits is None else self.mask_logits[clip : clip + 1]
        return QueryPrediction(
            self.queries[clip : clip + 1], self.class_logits[clip : clip + 1], masks
        )


@dataclass
class DecoderPrediction(Prediction):
    """Predictions of a query decoder.

    Attributes:
        layers: of all layers, or of the last at evaluation; the last is final.
    """

    layers: list[QueryPrediction]

    def __getitem__(self, clip: int) -> "DecoderPrediction":
        """The final prediction of one clip, as a batch of one."""
        return DecoderPrediction(self.presence_of(clip), [self.layers[-1][clip]])


@dataclass
class PixelPrediction(Prediction):
    """Prediction of a pixel head; frames of a clip are neighbours.

    Attributes:
        logits: of B * T frames, made once it is known which labels are wanted.
        num_frames: T.
        present: (B, K) bool, the only labels that can win (the oracle USE_GT); None: all can.
        auxiliary: of all labels, by the auxiliary head while training; None without one.
    """

    logits: PixelLogits
    num_frames: int
    present: Tensor | None = None
    auxiliary: PixelLogits | None = None

    def __getitem__(self, clip: int) -> "PixelPrediction":
        """The prediction of one clip, as a batch of one."""
        return PixelPrediction(
            self.presence_of(clip),
            self.logits[clip * self.num_frames : (clip + 1) * self.num_frames],
            self.num_frames,
            None if self.present is None else self.present[clip : clip + 1],
        )


@dataclass
class ClipTargets:
    """Ground truth of one clip.

    Attributes:
        labels: (N,) int64 in [0, K), or ranks in [0, κ) once ranked.
        masks: (N, T, H, W) bool.
        ids: (N, T) int64, the object's id where it is visible, -1 where not; None for images.
    """

    labels: Tensor
    masks: Tensor
    ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, kept: Tensor) -> "ClipTargets":
        """The objects picked by a bool or index tensor."""
        ids = None if self.ids is None else self.ids[kept]
        return ClipTargets(self.labels[kept], self.masks[kept], ids)


@dataclass
class QueryTargets(Targets):
    """Ground truth of queries.

    Attributes:
        clips: B.
    """

    clips: list[ClipTargets]


@dataclass
class PixelTargets(Targets):
    """Ground truth of pixels.

    Attributes:
        label_maps: (B * T, H, W) int64 in [0, K), -1 where ignored.
    """

    label_maps: Tensor


@dataclass
class SelectedScores:
    """Scores of the selected labels alone; the (K, h, w) map is never made when κ < K.

    Stands in for a (K, h, w) score tensor where only its arg-max is read.

    Attributes:
        ids: (κ,) int64 label ids, by rank.
        scores: (κ, h, w) float.
    """

    ids: Tensor
    scores: Tensor

    def argmax(self, dim: int = 0) -> Tensor:
        """Label map (h, w) int64 of the best-scoring selected label.

        Raises:
            ValueError: another dimension than the label one.
        """
        if dim != 0:
            raise ValueError(f"the labels of selected scores lie along dim 0, not {dim}")
        return self.ids[self.scores.argmax(0)]

    def full(self, num_labels: int) -> Tensor:
        """The (K, h, w) map, zero for labels not selected (probability e⁻¹⁰⁰ officially)."""
        return self.complete(num_labels, 0.0).scores

    def complete(self, num_labels: int, fill: float) -> "SelectedScores":
        """Scores of all K labels, in their order; `fill` for labels not selected."""
        full = self.scores.new_full((num_labels, *self.scores.shape[1:]), fill)
        full.index_copy_(0, self.ids, self.scores)
        return SelectedScores(torch.arange(num_labels, device=self.ids.device), full)

    def to(self, device: torch.device | str) -> "SelectedScores":
        """The same on another device."""
        return SelectedScores(self.ids.to(device), self.scores.to(device))


@dataclass
class LabelMaps:
    """The best label of each pixel of a clip, where scores of all frames would not fit in memory.

    Stands in for a (K, T, h, w) score tensor where only its arg-max is read.

    Attributes:
        labels: (T, h, w) int64, or int16 of a long video.
    """

    labels: Tensor

    def argmax(self, dim: int = 0) -> Tensor:
        """`labels`.

        Raises:
            ValueError: another dimension than the label one.
        """
        if dim != 0:
            raise ValueError(f"the labels of label maps lie along dim 0, not {dim}")
        return self.labels
