"""Which labels are in a picture or clip, and nothing else: g of the single-task scheme (Sec. 3.2).

Shapes: B clips, T frames, K labels, κ ranked labels, C channels, h, w of the last feature map.
"""

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from torch import Tensor, nn

# Imported for its registration under the name configs use.
from rankseg_m2f.modeling.backbone import swin  # noqa: F401
from rankseg_m2f.modeling.clip_model import ClipModel
from rankseg_m2f.modeling.options import label_head
from rankseg_m2f.rankseg.labels import RankedLabels
from rankseg_m2f.rankseg.loss import asymmetric_loss
from rankseg_m2f.rankseg.presence import presence_of_labels


@META_ARCH_REGISTRY.register()
class LabelClassifier(ClipModel):
    """Backbone and multi-label head; with a head of two decoder layers it is Query2Label.

    The pixels of all frames are the head's tokens, so a clip has one prediction. Unlike
    Query2Label's, they are given no position.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        feature: str,
        ml_head: nn.Module,
        num_labels: int,
        kappa: int,
        loss_weight: float,
        **input_settings,
    ):
        """
        Args:
            feature: name of the backbone's feature map.
            ml_head: (B, tokens, C) to (B, K) presence logits.
            kappa: κ.
            loss_weight: of "loss_ml".
            input_settings: see `ClipModel`.

        Raises:
            ValueError: a loss of no weight.
        """
        super().__init__(**input_settings)
        if loss_weight <= 0:
            raise ValueError(
                f"MODEL.RANKSEG.LOSS_WEIGHT={loss_weight}: a LabelClassifier has no other loss"
            )
        self.backbone = backbone
        self.feature = feature
        self.ml_head = ml_head
        self.num_labels = num_labels
        self.kappa = kappa
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg) -> dict:
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        feature = max(shapes, key=lambda name: shapes[name].stride)
        num_labels = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        return {
            "backbone": backbone,
            "feature": feature,
            "ml_head": label_head(cfg, shapes[feature].channels),
            "num_labels": num_labels,
            "kappa": cfg.MODEL.RANKSEG.TOPK or num_labels,
            "loss_weight": cfg.MODEL.RANKSEG.LOSS_WEIGHT,
            **cls.input_settings(cfg, backbone),
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses when training, results otherwise.

        Args:
            batched_inputs: see `ClipBatch.from_inputs`; of `instances` only the labels count.

        Returns:
            Training: "loss_ml", weighted. Evaluation: per clip `label_scores` (K,) float presence
            probabilities, and `label_ranking` (κ,) int64 label ids, most probable first.
        """
        clips = self.clips(batched_inputs)
        features = self.backbone(clips.frames)[self.feature]
        presence = self.ml_head(tokens_of_map(features, clips.num_frames)).float()
        if self.training:
            truth = presence_of_labels(clips.labels(), self.num_labels, self.device)
            return {"loss_ml": asymmetric_loss(presence, truth) * self.loss_weight}
        return self.infer(presence)

    def infer(self, presence: Tensor) -> list[dict]:
        """Results of each clip from (B, K) presence logits."""
        ranking = RankedLabels.top(presence, self.kappa).index
        return [
            {"label_scores": scores, "label_ranking": ranked}
            for scores, ranked in zip(presence.sigmoid(), ranking, strict=True)
        ]


def tokens_of_map(features: Tensor, num_frames: int) -> Tensor:
    """Feature maps (B * T, C, h, w) as tokens (B, T * h * w, C)."""
    return features.unflatten(0, (-1, num_frames)).movedim(2, -1).flatten(1, 3)
