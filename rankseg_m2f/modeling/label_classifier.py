"""Which labels are in an image or clip, and nothing else: g of the single-task scheme (Sec. 3.2).

Shapes: B clips, T frames, K labels, κ ranked labels, C channels, h, w of the last feature map.
"""

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from torch import Tensor, nn

# Imported for its registration under the name configs use.
from rankseg_m2f.errors import UserError
from rankseg_m2f.modeling.backbone import swin  # noqa: F401
from rankseg_m2f.modeling.clip_model import ClipModel
from rankseg_m2f.modeling.options import RankOptions, build_rank_options, label_head
from rankseg_m2f.modeling.ranking import label_results
from rankseg_m2f.rankseg.head import tokens_of_map
from rankseg_m2f.rankseg.loss import asymmetric_loss
from rankseg_m2f.rankseg.presence import presence_of_labels
from rankseg_m2f.rankseg.selection import Selection, select


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
        rank_options: RankOptions,
        **input_settings,
    ):
        """
        Args:
            feature: name of the backbone's feature map.
            ml_head: (B, tokens, C) to (B, K) presence logits.
            rank_options: used are κ and dynamic κ at evaluation, and the weight of "loss_ml".
            input_settings: see `ClipModel`.

        Raises:
            UserError: the weight of "loss_ml" is 0 or less.
        """
        super().__init__(**input_settings)
        if rank_options.loss_weight <= 0:
            raise UserError(
                f"MODEL.RANKSEG.LOSS_WEIGHT={rank_options.loss_weight}: a LabelClassifier has no "
                "other loss"
            )
        self.backbone = backbone
        self.feature = feature
        self.ml_head = ml_head
        self.num_labels = num_labels
        self.rank_options = rank_options

    @classmethod
    def from_config(cls, cfg) -> dict:
        cfg = cfg.clone()
        cfg.defrost()
        # Norms of maps that are not read would have no gradient, for which DDP waits in vain.
        for node in (cfg.MODEL.RESNETS, cfg.MODEL.SWIN):
            node.OUT_FEATURES = node.OUT_FEATURES[-1:]
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        feature = max(shapes, key=lambda name: shapes[name].stride)
        num_labels = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        return {
            "backbone": backbone,
            "feature": feature,
            "ml_head": label_head(cfg, shapes[feature].channels),
            "num_labels": num_labels,
            "rank_options": build_rank_options(cfg.MODEL.RANKSEG, num_labels),
            **cls.input_settings(cfg, backbone),
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses when training, results otherwise.

        Args:
            batched_inputs: see `ClipBatch.from_inputs`; of `instances` only the labels count.
                At evaluation `selection`, a `Selection`, may say what is known about the labels.

        Returns:
            Training: "loss_ml", weighted. Evaluation: per clip `label_scores` (K,) float presence
            probabilities, and `label_ranking` int64 ids of the labels selected, κ (K for TOPK 0)
            or fewer, most probable first.
        """
        clips = self.clips(batched_inputs)
        features = self.backbone(clips.frames)[self.feature]
        presence_logits = self.ml_head(tokens_of_map(features, clips.num_frames)).float()
        if self.training:
            presence = presence_of_labels(clips.labels(), self.num_labels, self.device)
            loss = asymmetric_loss(presence_logits, presence)
            return {"loss_ml": loss * self.rank_options.loss_weight}
        known = [x.get("selection", Selection()) for x in batched_inputs]
        return self.infer(presence_logits, known)

    def infer(self, presence_logits: Tensor, selections: list[Selection]) -> list[dict]:
        """Results of each clip from (B, K) presence logits."""
        options = self.rank_options
        kappa = options.kappa_eval or self.num_labels
        return [
            label_results(row, select(row[None], kappa, known, options.min_score, options.mass))
            for row, known in zip(presence_logits, selections, strict=True)
        ]
