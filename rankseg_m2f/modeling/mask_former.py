"""Mask2Former with or without RankSeg, for images and clips alike.

Shapes: B clips, T frames, Q queries, K labels, κ selected labels; H, W padded input size.
"""

from dataclasses import replace

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_sem_seg_head
from detectron2.utils.memory import retry_if_cuda_oom
from torch import Tensor, nn

# Imported for their registration under the names configs use.
from rankseg_m2f.modeling import query_head  # noqa: F401
from rankseg_m2f.modeling.backbone import swin  # noqa: F401
from rankseg_m2f.modeling.clip_model import ClipModel
from rankseg_m2f.modeling.criterion import SetCriterion
from rankseg_m2f.modeling.options import (
    InferenceOptions,
    RankOptions,
    build_criterion,
    build_inference_options,
    rankseg_parts,
)
from rankseg_m2f.modeling.ranking import label_results, mask_absent, ranked_targets
from rankseg_m2f.modeling.results import ResultMaker
from rankseg_m2f.rankseg.head import LabelHead
from rankseg_m2f.rankseg.labels import RankedLabels
from rankseg_m2f.rankseg.loss import asymmetric_loss
from rankseg_m2f.rankseg.presence import presence_of_labels
from rankseg_m2f.rankseg.selection import SelectedLabels, Selection, select, unranked
from rankseg_m2f.rankseg.temperature import RankTemperature
from rankseg_m2f.structures.clip import ClipBatch
from rankseg_m2f.structures.predictions import ClipTargets, QueryPrediction


@META_ARCH_REGISTRY.register()
class MaskFormer(ClipModel):
    """Backbone, pixel decoder, query decoder; RankSeg between decoder and losses or results.

    Attributes:
        progress: share of training done, in [0, 1]. The training loop sets it before each step,
            since a scheduled κ (TRAIN_SELECTION) follows it; None until then. Not saved in
            checkpoints.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        sem_seg_head: nn.Module,
        criterion: SetCriterion,
        num_labels: int,
        inference_options: InferenceOptions,
        rank_options: RankOptions,
        ml_head: LabelHead | None = None,
        ml_norm: RankTemperature | None = None,
        **input_settings,
    ):
        """
        Args:
            ml_head: multi-label head; None is plain Mask2Former, or scores that come with inputs.
            ml_norm: temperature per rank; None for models that do not select.
            input_settings: see `ClipModel`.
        """
        super().__init__(**input_settings)
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.num_labels = num_labels
        self.ml_head = ml_head
        self.ml_norm = ml_norm
        self.inference_options = inference_options
        self.rank_options = rank_options
        self.progress: float | None = None

    @classmethod
    def from_config(cls, cfg) -> dict:
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "criterion": build_criterion(cfg),
            "num_labels": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "inference_options": build_inference_options(cfg),
            **cls.input_settings(cfg, backbone),
            **rankseg_parts(cfg),
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses when training, results otherwise.

        Args:
            batched_inputs: see `ClipBatch.from_inputs`. At evaluation `selection`, a `Selection`,
                may say what is known about an input's labels, with and without RankSeg.

        Returns:
            Training: weighted losses. Evaluation: per image, as configured,
            `sem_seg` (K, height, width) float, or `SelectedScores` when κ < K;
            `panoptic_seg`, see `inference.panoptic`; `instances`, see `inference.instances`.
            Per video clip `sem_seg`, see `ResultMaker.of_clip`, and what
            `inference.video_instances` gives.
            With RankSeg also `label_scores` (K,) float presence probabilities, and
            `label_ranking` int64 ids of the labels selected, κ or fewer, most probable first.
        """
        clips, layers, presence_logits = self.decode(batched_inputs)
        if not self.training:
            selections = self.selections(batched_inputs, clips)
            return self.infer(layers[-1], presence_logits, selections, clips)
        targets = clips.targets(self.num_labels)
        ranked = self.rank(presence_logits, targets) if self.rank_options.selection else None
        if ranked is not None:
            with_void = ranked.with_void()
            layers = [self.rank_layer(layer, with_void) for layer in layers]
        return self.losses(layers, targets, presence_logits, ranked)

    def decode(
        self, batched_inputs: list[dict]
    ) -> tuple[ClipBatch, list[QueryPrediction], Tensor | None]:
        """Everything before ranking.

        Returns:
            The clips; predictions of all layers, or of the last at evaluation; `presence_logits`
            (B, K), None where nothing says which labels are present.
        """
        clips = self.clips(batched_inputs)
        features = self.backbone(clips.frames)
        layers = self.sem_seg_head(features, clips.num_frames, every_mask=self.training)
        if self.rank_options.given_scores:
            presence_logits = clips.presence_logits(self.num_labels)
        else:
            presence_logits = self.presence_logits(layers)
        if not self.training:
            layers = layers[-1:]
        if self.rank_options.oracle_train:
            layers = self.apply_oracle(layers, clips.labels())
        return clips, layers, presence_logits

    def presence_logits(self, layers: list[QueryPrediction]) -> Tensor | None:
        """(B, K), of the multi-label head; None without one."""
        if self.ml_head is None:
            return None
        shared = None
        if self.ml_head.share is not None:
            shared = self.sem_seg_head.predictor.class_embed.weight[:-1]
        return self.ml_head(layers[self.rank_options.query_layer].queries, shared)

    def rank(self, presence_logits: Tensor, targets: list[ClipTargets]) -> RankedLabels:
        """The selected labels of each clip while training, as TRAIN_SELECTION says."""
        options = self.rank_options
        keep = None
        if options.train_selection == "keep_present":
            keep = presence_of_labels([t.labels for t in targets], self.num_labels)
        return RankedLabels.top(
            presence_logits, options.training_kappa(self.num_labels, self.progress), keep
        )

    def rank_layer(self, layer: QueryPrediction, with_void: RankedLabels) -> QueryPrediction:
        """Rank-adaptive selected-label classification (Eqs. 2 and 3)."""
        logits = with_void.gather(layer.class_logits, dim=2)
        if self.rank_options.temperature:
            logits = self.ml_norm(logits, dim=2)
        return replace(layer, class_logits=logits)

    def apply_oracle(
        self, layers: list[QueryPrediction], labels: list[Tensor]
    ) -> list[QueryPrediction]:
        """Layers in which no label absent from the ground truth can win."""
        presence = presence_of_labels(labels, self.num_labels, self.device)
        spared = 0 if self.rank_options.oracle_aux else len(layers) - 1
        return layers[:spared] + [mask_absent(layer, presence) for layer in layers[spared:]]

    def selections(self, batched_inputs: list[dict], clips: ClipBatch) -> list[Selection]:
        """What is known about each clip's labels: by its input, else by an oracle, else nothing."""
        known = [Selection()] * len(batched_inputs)
        if self.rank_options.oracle_eval:
            presence = presence_of_labels(clips.labels(), self.num_labels, self.device)
            known = [Selection(labels=row.nonzero().flatten()) for row in presence]
        return [x.get("selection", k) for x, k in zip(batched_inputs, known, strict=True)]

    def select_labels(self, presence_logits: Tensor | None, selection: Selection) -> SelectedLabels:
        """The labels one clip is classified among at evaluation, from its (1, K) logits."""
        options = self.rank_options
        if not options.selection:
            return unranked(self.num_labels, self.device, selection, presence_logits)
        kappa = options.kappa_eval
        return select(presence_logits, kappa, selection, options.min_score, options.mass)

    def class_scores(self, layer: QueryPrediction, selected: SelectedLabels) -> Tensor:
        """(Q, κ + 1) probabilities of one clip's queries, no-object last."""
        if selected.ranked is not None:
            layer = self.rank_layer(layer, selected.ranked.with_void())
        return selected.close(layer.class_logits[0]).float().softmax(-1)

    def result_maker(self) -> ResultMaker:
        """Makes results of scores and masks, as configured."""
        return ResultMaker(self.inference_options, self.num_labels, self.rank_options.full_sem_seg)

    def losses(
        self,
        layers: list[QueryPrediction],
        targets: list[ClipTargets],
        presence_logits: Tensor | None,
        ranked: RankedLabels | None,
    ) -> dict[str, Tensor]:
        """Weighted losses of all layers, and of the multi-label head ("loss_ml")."""
        seen = targets if ranked is None else ranked_targets(targets, ranked)
        losses = self.criterion(layers, seen)
        if self.ml_head is not None:
            presence = presence_of_labels([t.labels for t in targets], self.num_labels)
            loss = asymmetric_loss(presence_logits.float(), presence)
            losses["loss_ml"] = loss * self.rank_options.loss_weight
        return losses

    def infer(
        self,
        layer: QueryPrediction,
        presence_logits: Tensor | None,
        selections: list[Selection],
        clips: ClipBatch,
    ) -> list[dict]:
        """Results of each clip from the final layer."""
        maker = self.result_maker()
        results = []
        for i, selection in enumerate(selections):
            found = None if presence_logits is None else presence_logits[i : i + 1]
            selected = self.select_labels(found, selection)
            scores = self.class_scores(layer[i], selected)
            sizes = clips.sizes_of(i)
            masks = layer.mask_logits[i]
            if clips.is_video:
                make, args = maker.of_clip, (scores, selected.ids, masks, sizes)
            else:
                make, args = maker.of_image, (scores, selected.ids, masks[:, 0], sizes)
            result = retry_if_cuda_oom(make)(*args)
            if presence_logits is not None:
                result |= label_results(presence_logits[i], selected)
            results.append(result)
        return results


META_ARCH_REGISTRY._do_register("VideoMaskFormer", MaskFormer)
