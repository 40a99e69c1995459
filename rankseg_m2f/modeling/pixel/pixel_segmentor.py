"""Segmentors that classify each pixel, with or without RankSeg, for images and clips alike.

Shapes: B clips, T frames, N = B * T, K labels, κ selected labels; h, w size of the prediction;
H, W padded input size; height, width output size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    build_backbone,
    build_sem_seg_head,
)
from detectron2.utils.memory import retry_if_cuda_oom
from torch import Tensor, nn

from rankseg_m2f.errors import UserError

# Imported for their registration under the names configs use.
from rankseg_m2f.modeling.backbone import swin  # noqa: F401
from rankseg_m2f.modeling.pixel.heads import (  # noqa: F401
    deeplab,
    enc,
    sampled,
    segmenter,
    uper,
)
from rankseg_m2f.modeling.pixel.heads.fcn import FCNHead
from rankseg_m2f.modeling.pixel.pixel_head import PixelHead
from rankseg_m2f.modeling.rank_parts import build_rank_parts
from rankseg_m2f.modeling.results import (
    InferenceOptions,
    build_inference_options,
    crop_and_resize,
    resize,
)
from rankseg_m2f.modeling.segmentor import Segmentor
from rankseg_m2f.rankseg.head import LabelHead, tokens_of_map
from rankseg_m2f.rankseg.labels import ABSENT_LOGIT, RankedLabels
from rankseg_m2f.rankseg.loss import MEANS, pixel_cross_entropy
from rankseg_m2f.rankseg.policy import CandidateLabels
from rankseg_m2f.rankseg.presence import presence_of_map
from rankseg_m2f.rankseg.temperature import RankTemperature
from rankseg_m2f.structures.clip import ClipBatch, Sizes
from rankseg_m2f.structures.pixel_logits import DenseLogits
from rankseg_m2f.structures.predictions import (
    PixelPrediction,
    PixelTargets,
    SelectedScores,
)


@META_ARCH_REGISTRY.register()
class PixelSegmentor(Segmentor):
    """Backbone, pixel head, and a multi-label head: labels are gathered, then maps upsampled."""

    absent_score = ABSENT_LOGIT

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        sem_seg_head: PixelHead,
        label_feature: str,
        label_pool: int = 0,
        loss_mean: str = "all",
        aux_head: PixelHead | None = None,
        aux_weight: float = 0.4,
        ml_head: LabelHead | None = None,
        ml_norm: RankTemperature | None = None,
        **settings,
    ):
        """
        Args:
            label_feature: name of the backbone's map that the multi-label head reads.
            label_pool: side of the grid to which that map is averaged; 0: it is read as it is.
            loss_mean: see `pixel_cross_entropy`.
            aux_head: while training, a loss on all labels of weight `aux_weight`; None: none.
            ml_norm: temperature per rank, without no-object.
            settings: see `Segmentor`.
        """
        super().__init__(**settings)
        self.label_feature = label_feature
        self.label_pool = label_pool
        self.pixel_loss = partial(pixel_cross_entropy, mean=loss_mean)
        self.aux_weight = aux_weight
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.aux_head = aux_head
        self.ml_head = ml_head
        self.ml_norm = ml_norm

    @classmethod
    def from_config(cls, cfg) -> dict:
        node = cfg.MODEL.PIXEL
        head_type = _check(cfg)
        # Maps that nothing reads are not made: that of labels only where a multi-label head is.
        rankseg = cfg.MODEL.RANKSEG
        has_label_head = rankseg.FLAG and not rankseg.SCORES and not head_type.scores_labels
        label_features = [node.LABEL_FEATURE] * has_label_head
        auxiliary = [node.AUX_FEATURE] if node.AUX_FEATURE else []
        cfg = _limit_outputs(
            cfg, [*cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES, *auxiliary, *label_features]
        )
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        head = build_sem_seg_head(cfg, shapes)
        embeddings = head.label_embeddings
        return {
            "backbone": backbone,
            "sem_seg_head": head,
            "label_feature": node.LABEL_FEATURE,
            "label_pool": node.LABEL_POOL,
            "loss_mean": node.LOSS_MEAN,
            "aux_head": _auxiliary_head(cfg, shapes) if auxiliary else None,
            "aux_weight": node.AUX_WEIGHT,
            "inference_options": build_inference_options(cfg),
            **cls.input_settings(cfg, backbone),
            **build_rank_parts(
                cfg,
                void=False,
                in_channels=_channels(shapes, "LABEL_FEATURE", *label_features)
                if label_features
                else None,
                shared_channels=None if embeddings is None else embeddings.shape[1],
            ),
        }

    @property
    def scores_labels(self) -> bool:
        """See `Segmentor.scores_labels`."""
        return super().scores_labels or self.sem_seg_head.scores_labels

    def network(self, clips: ClipBatch) -> PixelPrediction:
        """See `Segmentor.network`."""
        features = self.backbone(clips.frames)
        prediction = self.sem_seg_head(features, clips.num_frames)
        if self.ml_head is not None:
            maps = features[self.label_feature]
            if self.label_pool:
                maps = F.adaptive_avg_pool2d(maps, self.label_pool)
            embeddings = None if self.ml_head.share is None else self.sem_seg_head.label_embeddings
            presence_logits = self.ml_head(tokens_of_map(maps, clips.num_frames), embeddings)
            prediction = replace(prediction, presence_logits=presence_logits)
        if self.aux_head is not None and self.training:
            auxiliary = self.aux_head(features, clips.num_frames).logits
            prediction = replace(prediction, auxiliary=auxiliary)
        return prediction

    def mask_absent(self, prediction: PixelPrediction, presence: Tensor) -> PixelPrediction:
        """See `Segmentor.mask_absent`; carried out on the labels selected."""
        frames = presence.repeat_interleave(prediction.num_frames, dim=0)  # (N, K)
        return replace(prediction, present=presence, logits=prediction.logits.seeing(frames))

    def ranked(
        self, prediction: PixelPrediction, ranked: RankedLabels | None, scaled: bool = True
    ) -> PixelPrediction:
        """See `Segmentor.ranked`; the frames of a clip have its ranking."""
        frames, present = prediction.num_frames, prediction.present
        if present is not None:
            present = present.repeat_interleave(frames, dim=0)  # (N, K)
        if ranked is None:
            maps = prediction.logits.of_all()  # (N, K, h, w)
        else:
            ranked = ranked.repeat(frames)
            maps = prediction.logits.of_labels(ranked.index)  # (N, κ, h, w)
            present = None if present is None else ranked.gather(present, 1)  # (N, κ)
        if present is not None:
            maps = maps.masked_fill(~present[:, :, None, None], ABSENT_LOGIT)
        if ranked is not None and scaled:
            maps = self.ml_norm(maps, dim=1)
        return replace(prediction, logits=DenseLogits(maps), present=None)

    def targets(self, clips: ClipBatch) -> PixelTargets:
        """See `Segmentor.targets`; a label is present in a clip if one pixel of it is."""
        label_maps = clips.label_maps(self.num_labels)
        presence = presence_of_map(label_maps.unflatten(0, (-1, clips.num_frames)), self.num_labels)
        return PixelTargets(presence, label_maps)

    def losses(
        self, prediction: PixelPrediction, targets: PixelTargets, ranked: RankedLabels | None
    ) -> dict[str, Tensor]:
        """See `PixelHead.losses`, and "loss_aux" of the auxiliary head."""
        labels = targets.label_maps  # (N, H, W)
        if ranked is not None:
            labels = ranked.repeat(prediction.num_frames).rank_of(labels, missing=-1)
        losses = self.sem_seg_head.losses(prediction, labels, targets, self.pixel_loss)
        if prediction.auxiliary is not None:
            loss = self.pixel_loss(prediction.auxiliary.of_all(), targets.label_maps)
            losses["loss_aux"] = loss * self.aux_weight
        return losses

    def semantic_frames(
        self,
        prediction: PixelPrediction,
        candidates: CandidateLabels,
        sizes: Sizes,
        options: InferenceOptions,
        first: int = 0,
    ) -> Iterator[SelectedScores]:
        """See `Segmentor.semantic_frames`; all K labels, in their order, where κ = K or wanted."""
        full = options.full_sem_seg or len(candidates.ids) == self.num_labels
        for frame in self.averaged_frames(prediction, candidates, sizes, options, first):
            if full:
                frame = frame.complete(self.num_labels, ABSENT_LOGIT)
            yield replace(frame, scores=retry_if_cuda_oom(pixel_scores)(frame.scores, sizes))

    def averaged_frames(
        self,
        prediction: PixelPrediction,
        candidates: CandidateLabels,
        sizes: Sizes,
        options: InferenceOptions,
        first: int = 0,
    ) -> Iterator[SelectedScores]:
        """See `Segmentor.averaged_frames`; logits at the resolution of the head."""
        ranked = self.ranked(prediction, candidates.ranked, candidates.scaled)
        ids, allowed = candidates.ids, candidates.allowed
        for maps in ranked.logits.of_all()[first:]:  # (κ, h, w)
            maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
            # Labels that are not allowed are never upsampled.
            frame = SelectedScores(ids[allowed], maps[allowed])
            if not len(frame.ids):
                # Nothing may be predicted, and an arg-max needs a map.
                frame = SelectedScores(ids[:1], torch.full_like(maps[:1], ABSENT_LOGIT))
            yield frame

    def scores_of_average(self, average: Tensor) -> Tensor:
        """See `Segmentor.scores_of_average`."""
        return average.softmax(0)


def pixel_scores(logits: Tensor, sizes: Sizes) -> Tensor:
    """Probabilities of labels at output size: (κ, h, w) logits to (κ, height, width)."""
    logits = crop_and_resize(resize(logits, sizes.padded), sizes.resized, sizes.output)
    return logits.softmax(0)


def _check(cfg: CfgNode) -> type[PixelHead]:
    """The class of the head.

    Raises:
        UserError: settings that a segmentor of pixels cannot follow.
    """
    for key in ("PANOPTIC_ON", "INSTANCE_ON"):
        if cfg.MODEL.MASK_FORMER.TEST[key]:
            raise UserError(
                f"MODEL.MASK_FORMER.TEST.{key} is True, and a PixelSegmentor gives semantic "
                "results alone: set it False"
            )
    if cfg.MODEL.PIXEL.LOSS_MEAN not in MEANS:
        raise UserError(
            f"MODEL.PIXEL.LOSS_MEAN={cfg.MODEL.PIXEL.LOSS_MEAN!r} must be one of {', '.join(MEANS)}"
        )
    name = cfg.MODEL.SEM_SEG_HEAD.NAME
    head = SEM_SEG_HEADS_REGISTRY.get(name)
    if not (isinstance(head, type) and issubclass(head, PixelHead)):
        raise UserError(f"MODEL.SEM_SEG_HEAD.NAME={name!r} is not a pixel head, such as FCNHead")
    return head


def _limit_outputs(cfg: CfgNode, names: Sequence[str]) -> CfgNode:
    """A copy of a config whose ResNet or Swin Transformer gives the maps of these names alone.

    Norms of maps that are not read would have no gradient, for which DDP waits in vain. A backbone
    that lacks one of the maps is left as it is.
    """
    cfg = cfg.clone()
    cfg.defrost()
    for node in (cfg.MODEL.RESNETS, cfg.MODEL.SWIN):
        if set(names) <= set(node.OUT_FEATURES):
            node.OUT_FEATURES = [name for name in node.OUT_FEATURES if name in names]
    return cfg


def _channels(shapes: dict[str, ShapeSpec], key: str, name: str) -> int:
    """Channels of one of the backbone's maps, which MODEL.PIXEL names."""
    if name not in shapes:
        raise UserError(
            f"MODEL.PIXEL.{key}={name!r} must be a map of the backbone: {', '.join(shapes)}"
        )
    return shapes[name].channels


def _auxiliary_head(cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> FCNHead:
    node, name = cfg.MODEL.PIXEL, cfg.MODEL.PIXEL.AUX_FEATURE
    return FCNHead(
        feature=name,
        in_channels=_channels(shapes, "AUX_FEATURE", name),
        channels=node.AUX_CHANNELS,
        num_labels=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        norm=cfg.MODEL.SEM_SEG_HEAD.NORM,
        dropout=node.DROPOUT,
    )
