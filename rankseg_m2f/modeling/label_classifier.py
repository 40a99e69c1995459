"""Which labels are in an image or clip, and nothing else: g of the single-task scheme (Sec. 3.2).

Shapes: B clips, T frames, K labels, κ ranked labels, C channels, h, w of the last feature map.
"""

from collections.abc import Iterator
from typing import ClassVar

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from torch import Tensor, nn

# Imported for its registration under the name configs use.
from rankseg_m2f.errors import UserError
from rankseg_m2f.modeling.backbone import swin  # noqa: F401
from rankseg_m2f.modeling.rank_parts import build_head, build_label_criterion, build_policy
from rankseg_m2f.modeling.results import InferenceOptions, build_inference_options
from rankseg_m2f.modeling.segmentor import Segmentor
from rankseg_m2f.rankseg.head import tokens_of_map
from rankseg_m2f.rankseg.labels import RankedLabels
from rankseg_m2f.rankseg.policy import CandidateLabels
from rankseg_m2f.structures.clip import ClipBatch, Sizes
from rankseg_m2f.structures.predictions import Prediction, SelectedScores, Targets


@META_ARCH_REGISTRY.register()
class LabelClassifier(Segmentor):
    """Backbone and multi-label head; with a head of two decoder layers it is Query2Label.

    A segmentor without segments: it is trained by the loss of its multi-label head, and its results
    are those of labels alone. The pixels of all frames are the head's tokens, so a clip has one
    prediction. Unlike Query2Label's, they are given no position.
    """

    gives: ClassVar[frozenset[str]] = frozenset()

    @configurable
    def __init__(self, *, backbone: nn.Module, feature: str, ml_head: nn.Module, **settings):
        """
        Args:
            feature: name of the backbone's feature map.
            ml_head: (B, tokens, C) to (B, K) presence logits.
            settings: see `Segmentor`.

        Raises:
            UserError: the weight of "loss_ml" is 0 or less.
        """
        super().__init__(**settings)
        if self.label_loss_weight <= 0:
            raise UserError(
                f"MODEL.RANKSEG.LOSS_WEIGHT={self.label_loss_weight}: a LabelClassifier has no "
                "other loss"
            )
        self.backbone = backbone
        self.feature = feature
        self.ml_head = ml_head
        self.ml_norm = None

    @classmethod
    def from_config(cls, cfg) -> dict:
        cfg = cfg.clone()
        cfg.defrost()
        # Norms of maps that are not read would have no gradient, for which DDP waits in vain.
        for node in (cfg.MODEL.RESNETS, cfg.MODEL.SWIN):
            node.OUT_FEATURES = node.OUT_FEATURES[-1:]
        # No segments, of which a dataset would have to know the things.
        cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = False
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        feature = max(shapes, key=lambda name: shapes[name].stride)
        # Labels are ranked at evaluation, all K of them for TOPK 0. While training nothing depends
        # on ranks, and there is no oracle for a classifier.
        policy = build_policy(
            cfg,
            kappa=cfg.MODEL.RANKSEG.TOPK or cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            selection=True,
            train_selection="official",
            oracle_train=False,
            oracle_eval=False,
        )
        return {
            "backbone": backbone,
            "feature": feature,
            "ml_head": build_head(cfg, shapes[feature].channels),
            "policy": policy,
            "inference_options": build_inference_options(cfg),
            "label_loss_weight": cfg.MODEL.RANKSEG.LOSS_WEIGHT,
            "label_criterion": build_label_criterion(cfg),
            **cls.input_settings(cfg, backbone),
        }

    def network(self, clips: ClipBatch) -> Prediction:
        """See `Segmentor.network`."""
        features = self.backbone(clips.frames)[self.feature]  # (B * T, C, h, w)
        return Prediction(self.ml_head(tokens_of_map(features, clips.num_frames)).float())

    def targets(self, clips: ClipBatch) -> Targets:
        """See `Segmentor.targets`; of `instances` only the labels count."""
        return Targets(self.presence(clips))

    def ranked(
        self, prediction: Prediction, ranked: RankedLabels | None, scaled: bool = True
    ) -> Prediction:
        """The prediction itself: nothing is classified among the labels selected."""
        return prediction

    def losses(
        self, prediction: Prediction, targets: Targets, ranked: RankedLabels | None
    ) -> dict[str, Tensor]:
        """No losses beside "loss_ml"."""
        return {}

    def mask_absent(self, prediction: Prediction, presence: Tensor) -> Prediction:
        """The prediction itself: there is no oracle for a classifier."""
        return prediction

    def clip_result(
        self,
        prediction: Prediction,
        candidates: CandidateLabels,
        sizes: Sizes,
        options: InferenceOptions,
        is_video: bool,
    ) -> dict:
        """No results beside the labels' own."""
        return {}

    def semantic_frames(
        self,
        prediction: Prediction,
        candidates: CandidateLabels,
        sizes: Sizes,
        options: InferenceOptions,
        first: int = 0,
    ) -> Iterator[SelectedScores]:
        """None."""
        return iter(())
