"""The one `forward` of every family: RankSeg between a prediction and its losses or results.

Shapes: B clips, T frames, K labels, κ selected labels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from rankseg_m2f.modeling.clip_model import ClipModel
from rankseg_m2f.modeling.results import RESULTS, InferenceOptions, label_results
from rankseg_m2f.rankseg.head import LabelHead
from rankseg_m2f.rankseg.hints import LabelHints
from rankseg_m2f.rankseg.labels import RankedLabels
from rankseg_m2f.rankseg.loss import asymmetric_loss
from rankseg_m2f.rankseg.policy import CandidateLabels, RankPolicy
from rankseg_m2f.rankseg.presence import presence_of_labels
from rankseg_m2f.rankseg.temperature import RankTemperature
from rankseg_m2f.structures.clip import ClipBatch, Sizes
from rankseg_m2f.structures.predictions import LabelMaps, Prediction, SelectedScores, Targets


class Segmentor(ClipModel, ABC):
    """A model that scores labels: those of queries, of pixels, or of the image alone.

    A family says how clips are predicted (`network`), what is left of that for the labels selected
    (`ranked`), what it is compared with (`targets`, `losses`) and the results of one clip
    (`clip_result`). Its `__init__` makes its modules, `ml_head` and `ml_norm` last: the order is
    that of optimizer states in checkpoints.

    Attributes:
        gives: kinds of results of the family, among those of `RESULTS`.
        absent_score: what `averaged_frames` would give for a label that is not selected.
        ml_head: multi-label head; None: a plain model, a family with a head of its own, or scores
            that come with inputs.
        ml_norm: temperature per rank; None for models that do not select.
        progress: share of training done, in [0, 1]. The training loop sets it before each step,
            since a scheduled κ (TRAIN_SELECTION) follows it; None until then. Not saved in
            checkpoints.
    """

    gives: ClassVar[frozenset[str]] = frozenset({"semantic"})
    absent_score: ClassVar[float] = 0.0
    ml_head: LabelHead | None
    ml_norm: RankTemperature | None

    def __init__(
        self,
        *,
        policy: RankPolicy,
        inference_options: InferenceOptions,
        label_loss_weight: float,
        label_criterion: Callable[[Tensor, Tensor], Tensor] = asymmetric_loss,
        given_scores: bool = False,
        **input_settings,
    ):
        """
        Args:
            label_loss_weight: of "loss_ml".
            label_criterion: presence logits (B, K) and presence (B, K) to "loss_ml".
            given_scores: presence comes with the inputs (MODEL.RANKSEG.SCORES).
            input_settings: see `ClipModel`.
        """
        super().__init__(**input_settings)
        self.policy = policy
        self.inference_options = inference_options
        self.label_loss_weight = label_loss_weight
        self.label_criterion = label_criterion
        self.given_scores = given_scores
        self.progress: float | None = None

    @classmethod
    def check_config(cls, cfg: CfgNode) -> None:
        """Check what building the family would stumble over, before data is read.

        Raises:
            UserError: keys that do not fit each other.
        """

    @property
    def num_labels(self) -> int:
        """K."""
        return self.policy.num_labels

    @property
    def scores_labels(self) -> bool:
        """Whether something says which labels are present, so that they can be ranked."""
        return self.ml_head is not None or self.given_scores

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses when training, results otherwise.

        Args:
            batched_inputs: see `ClipBatch.from_inputs`. At evaluation `label_hints`, `LabelHints`,
                may say what is known about an input's labels, with and without RankSeg.

        Returns:
            Training: weighted losses. Evaluation: per image, as configured and as the family can,
            `sem_seg` (K, height, width) float, or `SelectedScores` when κ < K;
            `panoptic_seg`, see `inference.panoptic`; `instances`, see `inference.instances`.
            Per video clip `sem_seg` is `LabelMaps`, or (K, T, height, width) with
            MODEL.RANKSEG.FULL_SEM_SEG, beside what `inference.video_instances` gives.
            Where something scores labels also `label_scores` (K,) float presence probabilities,
            and `label_ranking` int64 ids of the labels selected, κ or fewer, most probable first.
        """
        clips = self.clips(batched_inputs)
        prediction = self.predict(clips)
        if not self.training:
            return self.results(prediction, clips, self.hints(batched_inputs, clips))
        targets = self.targets(clips)
        ranked = self.policy.train(prediction.presence_logits, targets.presence, self.progress)
        losses = self.losses(self.ranked(prediction, ranked), targets, ranked)
        return losses | self.label_loss(prediction, targets)

    def predict(self, clips: ClipBatch) -> Prediction:
        """Everything before ranking; nothing in it depends on the policy but its oracle USE_GT."""
        prediction = self.network(clips)
        if self.given_scores:
            presence_logits = clips.presence_logits(self.num_labels)
            prediction = replace(prediction, presence_logits=presence_logits)
        if self.policy.oracle_train:
            prediction = self.mask_absent(prediction, self.presence(clips))
        return prediction

    def presence(self, clips: ClipBatch) -> Tensor:
        """(B, K) bool, labels of the ground truth.

        Raises:
            ValueError: a clip without ground truth.
        """
        return presence_of_labels(clips.labels(), self.num_labels, self.device)

    def hints(
        self, batched_inputs: Sequence[dict], clips: ClipBatch, policy: RankPolicy | None = None
    ) -> list[LabelHints]:
        """What is known about each clip's labels: by its input, else by an oracle, else nothing."""
        known = [LabelHints()] * len(batched_inputs)
        if (policy or self.policy).oracle_eval:
            known = [LabelHints.from_presence(row) for row in self.presence(clips)]
        return [x.get("label_hints", k) for x, k in zip(batched_inputs, known, strict=True)]

    def label_loss(self, prediction: Prediction, targets: Targets) -> dict[str, Tensor]:
        """The weighted loss of the multi-label head ("loss_ml"), where there is one to learn."""
        if prediction.presence_logits is None or self.given_scores:
            return {}
        loss = self.label_criterion(prediction.presence_logits.float(), targets.presence)
        return {"loss_ml": loss * self.label_loss_weight}

    def choose(
        self, presence_logits: Tensor | None, hints: LabelHints, policy: RankPolicy | None = None
    ) -> CandidateLabels:
        """The candidates of one clip; see `RankPolicy.choose`."""
        return (policy or self.policy).choose(presence_logits, hints, self.device)

    def results(
        self,
        prediction: Prediction,
        clips: ClipBatch,
        hints: Sequence[LabelHints],
        policy: RankPolicy | None = None,
        options: InferenceOptions | None = None,
    ) -> list[dict]:
        """Results of each clip; see `forward`.

        Args:
            hints: of each clip.
            policy: None: the model's own. A sweep tries others on one prediction.
            options: None: the model's own.
        """
        options = options or self.inference_options
        results = []
        for i, known in enumerate(hints):
            clip = prediction[i]
            candidates = self.choose(clip.presence_logits, known, policy)
            result = self.clip_result(clip, candidates, clips.sizes_of(i), options, clips.is_video)
            if clip.presence_logits is not None:
                result |= label_results(clip.presence_logits[0], candidates)
            results.append(result)
        return results

    @abstractmethod
    def network(self, clips: ClipBatch) -> Prediction:
        """The prediction of the network's layers, ground truth unseen."""

    @abstractmethod
    def targets(self, clips: ClipBatch) -> Targets:
        """Ground truth as the family's losses take it.

        Raises:
            ValueError: a clip without ground truth.
        """

    @abstractmethod
    def ranked(
        self, prediction: Prediction, ranked: RankedLabels | None, scaled: bool = True
    ) -> Prediction:
        """Rank-adaptive selected-label classification (Eqs. 2 and 3).

        Args:
            ranked: the labels selected; None: all, in their own order.
            scaled: logits are scaled by rank.

        Returns:
            The prediction with logits of the selected labels, by rank.
        """

    @abstractmethod
    def losses(
        self, prediction: Prediction, targets: Targets, ranked: RankedLabels | None
    ) -> dict[str, Tensor]:
        """Weighted losses of all but the multi-label head.

        Args:
            prediction: what `ranked` gave for the labels `ranked`.
        """

    @abstractmethod
    def mask_absent(self, prediction: Prediction, presence: Tensor) -> Prediction:
        """The prediction in which labels absent from `presence` (B, K) cannot win."""

    def clip_result(
        self,
        prediction: Prediction,
        candidates: CandidateLabels,
        sizes: Sizes,
        options: InferenceOptions,
        is_video: bool,
    ) -> dict:
        """Results of one clip beside its labels: here `sem_seg`, see `forward`.

        Args:
            prediction: of a batch of one.
            is_video: results have a T axis.
        """
        if not options.semantic:
            return {}
        frames = self.semantic_frames(prediction, candidates, sizes, options)
        if not is_video:
            (frame,) = frames
            complete = isinstance(frame, SelectedScores) and len(frame.ids) == self.num_labels
            return {"sem_seg": frame.scores if complete else frame}
        if options.full_sem_seg:
            return {"sem_seg": torch.stack([frame.scores for frame in frames], dim=1)}
        return {"sem_seg": LabelMaps(torch.stack([frame.argmax(0) for frame in frames]))}

    @abstractmethod
    def semantic_frames(
        self,
        prediction: Prediction,
        candidates: CandidateLabels,
        sizes: Sizes,
        options: InferenceOptions,
        first: int = 0,
    ) -> Iterator[SelectedScores]:
        """Semantic scores of the frames of one clip from number `first` on, at output size."""

    def averaged_frames(
        self,
        prediction: Prediction,
        candidates: CandidateLabels,
        sizes: Sizes,
        options: InferenceOptions,
        first: int = 0,
    ) -> Iterator[SelectedScores]:
        """What sliding windows average, frame by frame: here semantic scores.

        Args:
            sizes: of one window, whose results are not resized.

        Yields:
            Scores of the allowed labels, at any resolution: resized to `sizes.padded` and cut to
            `sizes.resized` they are those of the window's pixels.
        """
        for frame in self.semantic_frames(prediction, candidates, sizes, options, first):
            below, right = (a - b for a, b in zip(sizes.padded, sizes.resized, strict=True))
            yield replace(frame, scores=F.pad(frame.scores, (0, right, 0, below)))

    def scores_of_average(self, average: Tensor) -> Tensor:
        """Semantic scores (κ, height, width) of averages of windows, by label."""
        return average

    def tracks(self, encode: Callable[[np.ndarray], dict | None]) -> "Tracks | None":
        """Collects the objects of a video seen in windows; None: none are wanted, or known.

        Args:
            encode: (h, w) bool to run lengths, None where empty.
        """
        return None


class Tracks(ABC):
    """Objects of a video seen window by window."""

    @abstractmethod
    def add(
        self, prediction: Prediction, candidates: CandidateLabels, sizes: Sizes, seen: int
    ) -> None:
        """Go on by a window, `seen` of whose first frames the last one had."""

    @abstractmethod
    def results(self, candidates: CandidateLabels) -> dict:
        """`pred_scores`, `pred_labels` and `pred_masks` (lists of run lengths, None where unseen).

        Args:
            candidates: of the whole video.
        """


def given_results(cfg: CfgNode) -> frozenset[str]:
    """Kinds of results, among those of `RESULTS`, that the model of a config gives; none is built.

    A meta-architecture that is no `Segmentor` is taken to give all that is switched on.
    """
    switched_on = {kind for kind, key in RESULTS.items() if cfg.MODEL.MASK_FORMER.TEST[key]}
    architecture = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    if issubclass(architecture, Segmentor):
        switched_on &= architecture.gives
    return frozenset(switched_on)
