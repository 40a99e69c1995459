"""MaskFormer and Mask2Former with or without RankSeg, for images and clips alike.

Shapes: B clips, T frames, Q queries, K labels, κ selected labels; H, W padded input size.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import ClassVar

import numpy as np
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_sem_seg_head
from detectron2.utils.memory import retry_if_cuda_oom
from torch import Tensor, nn

# Imported for their registration under the names configs use.
from rankseg_m2f.errors import UserError
from rankseg_m2f.modeling.backbone import swin  # noqa: F401
from rankseg_m2f.modeling.query import query_head  # noqa: F401
from rankseg_m2f.modeling.query.config_check import check_query_config
from rankseg_m2f.modeling.query.criteria import build_criterion
from rankseg_m2f.modeling.query.criterion import SetCriterion
from rankseg_m2f.modeling.query.decoder_parts import TRANSFORMER_DECODER_REGISTRY, decoder_name
from rankseg_m2f.modeling.query.ranked_queries import mask_absent, rank_layer, ranked_targets
from rankseg_m2f.modeling.query.result_maker import ResultMaker
from rankseg_m2f.modeling.query.tracks import QueryTracks
from rankseg_m2f.modeling.rank_parts import build_rank_parts
from rankseg_m2f.modeling.results import InferenceOptions, build_inference_options
from rankseg_m2f.modeling.segmentor import Segmentor
from rankseg_m2f.rankseg.head import LabelHead
from rankseg_m2f.rankseg.labels import RankedLabels
from rankseg_m2f.rankseg.policy import CandidateLabels
from rankseg_m2f.rankseg.presence import presence_of_labels
from rankseg_m2f.rankseg.temperature import RankTemperature
from rankseg_m2f.structures.clip import ClipBatch, Sizes
from rankseg_m2f.structures.predictions import (
    DecoderPrediction,
    QueryPrediction,
    QueryTargets,
    SelectedScores,
)

logger = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
class MaskFormer(Segmentor):
    """Backbone, pixel decoder, query decoder: each query predicts a mask and its label."""

    gives: ClassVar[frozenset[str]] = frozenset({"semantic", "panoptic", "instance"})

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        sem_seg_head: nn.Module,
        criterion: SetCriterion,
        query_layer: int = 0,
        oracle_aux: bool = True,
        ml_head: LabelHead | None = None,
        ml_norm: RankTemperature | None = None,
        **settings,
    ):
        """
        Args:
            query_layer: which of the decoder's predictions has the queries that the multi-label
                head reads.
            oracle_aux: the oracle of training rules hidden layers, too.
            settings: see `Segmentor`.
        """
        super().__init__(**settings)
        self.query_layer = query_layer
        self.oracle_aux = oracle_aux
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.ml_head = ml_head
        self.ml_norm = ml_norm

    @classmethod
    def check_config(cls, cfg: CfgNode) -> None:
        """See `Segmentor.check_config`."""
        check_query_config(cfg)

    @classmethod
    def from_config(cls, cfg) -> dict:
        _warn_of_flat_scores(cfg)
        backbone = build_backbone(cfg)
        width = cfg.MODEL.MASK_FORMER.HIDDEN_DIM
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "criterion": build_criterion(cfg),
            "query_layer": _query_layer(cfg),
            "oracle_aux": cfg.MODEL.RANKSEG.USE_GT_AUX,
            "inference_options": replace(
                build_inference_options(cfg), whole_segments=_decoder(cfg).whole_segments
            ),
            **cls.input_settings(cfg, backbone),
            **build_rank_parts(cfg, void=True, in_channels=width, shared_channels=width),
        }

    def network(self, clips: ClipBatch) -> DecoderPrediction:
        """See `Segmentor.network`; at evaluation only the final layer is kept."""
        features = self.backbone(clips.frames)
        layers = self.sem_seg_head(features, clips.num_frames, every_mask=self.training)
        presence_logits = self.presence_logits(layers)
        return DecoderPrediction(presence_logits, layers if self.training else layers[-1:])

    def presence_logits(self, layers: list[QueryPrediction]) -> Tensor | None:
        """(B, K), of the multi-label head; None without one."""
        if self.ml_head is None:
            return None
        shared = None
        if self.ml_head.share is not None:
            shared = self.sem_seg_head.predictor.class_embed.weight[:-1]  # (K, C)
        return self.ml_head(layers[self.query_layer].queries, shared)

    def mask_absent(self, prediction: DecoderPrediction, presence: Tensor) -> DecoderPrediction:
        """See `Segmentor.mask_absent`; officially hidden layers are spared (`oracle_aux`)."""
        layers = prediction.layers
        spared = 0 if self.oracle_aux else len(layers) - 1
        masked = [mask_absent(layer, presence) for layer in layers[spared:]]
        return replace(prediction, layers=layers[:spared] + masked)

    def targets(self, clips: ClipBatch) -> QueryTargets:
        """See `Segmentor.targets`."""
        targets = clips.targets(self.num_labels)
        presence = presence_of_labels([t.labels for t in targets], self.num_labels, self.device)
        return QueryTargets(presence, targets)

    def ranked(
        self, prediction: DecoderPrediction, ranked: RankedLabels | None, scaled: bool = True
    ) -> DecoderPrediction:
        """See `Segmentor.ranked`; no-object keeps the last rank."""
        if ranked is None:
            return prediction
        with_void, temperature = ranked.with_void(), self.ml_norm if scaled else None
        layers = [rank_layer(layer, with_void, temperature) for layer in prediction.layers]
        return replace(prediction, layers=layers)

    def losses(
        self, prediction: DecoderPrediction, targets: QueryTargets, ranked: RankedLabels | None
    ) -> dict[str, Tensor]:
        """See `SetCriterion.forward`."""
        clips = targets.clips if ranked is None else ranked_targets(targets.clips, ranked)
        return self.criterion(prediction.layers, clips)

    def class_scores(self, layer: QueryPrediction, candidates: CandidateLabels) -> Tensor:
        """(Q, κ + 1) probabilities of one clip's queries, no-object last."""
        if candidates.ranked is not None:
            temperature = self.ml_norm if candidates.scaled else None
            layer = rank_layer(layer, candidates.ranked.with_void(), temperature)
        return candidates.mask_disallowed(layer.class_logits[0]).float().softmax(-1)

    def clip_result(
        self,
        prediction: DecoderPrediction,
        candidates: CandidateLabels,
        sizes: Sizes,
        options: InferenceOptions,
        is_video: bool,
    ) -> dict:
        """See `ResultMaker.of_image` and `of_clip`."""
        layer = prediction.layers[-1]
        scores, masks = self.class_scores(layer, candidates), layer.mask_logits[0]
        maker = ResultMaker(options, self.num_labels)
        if is_video:
            return retry_if_cuda_oom(maker.of_clip)(scores, candidates.ids, masks, sizes)
        return retry_if_cuda_oom(maker.of_image)(scores, candidates.ids, masks[:, 0], sizes)

    def semantic_frames(
        self,
        prediction: DecoderPrediction,
        candidates: CandidateLabels,
        sizes: Sizes,
        options: InferenceOptions,
        first: int = 0,
    ) -> Iterator[SelectedScores]:
        """See `Segmentor.semantic_frames`."""
        layer = prediction.layers[-1]
        scores = self.class_scores(layer, candidates)[:, :-1]  # (Q, κ)
        maker = ResultMaker(options, self.num_labels)
        for masks in layer.mask_logits[0, :, first:].unbind(1):
            yield maker.semantic_frame(scores, candidates.ids, masks, sizes)

    def tracks(self, encode: Callable[[np.ndarray], dict | None]) -> QueryTracks | None:
        """See `Segmentor.tracks`."""
        if not self.inference_options.instance:
            return None
        return QueryTracks(self.class_scores, self.inference_options.max_tracks, encode)


META_ARCH_REGISTRY._do_register("VideoMaskFormer", MaskFormer)


def _decoder(cfg: CfgNode) -> type[nn.Module]:
    """The class of the query decoder; see `decoder_parts` for its attributes."""
    return TRANSFORMER_DECODER_REGISTRY.get(decoder_name(cfg))


def _query_layer(cfg: CfgNode) -> int:
    """Which prediction has the queries that the multi-label head reads.

    Raises:
        UserError: the decoder has no such layer.
    """
    node, predictions = cfg.MODEL.RANKSEG, cfg.MODEL.MASK_FORMER.DEC_LAYERS
    first = _decoder(cfg).first_layer
    last = first + predictions - 1
    if node.FLAG and not first <= node.QUERY_LAYER <= last:
        raise UserError(
            f"MODEL.RANKSEG.QUERY_LAYER={node.QUERY_LAYER} needs a decoder of that many "
            f"layers; MODEL.MASK_FORMER.DEC_LAYERS={predictions} makes {last}"
            + (", counted from 1" if first else "")
        )
    return node.QUERY_LAYER - first


def _warn_of_flat_scores(cfg: CfgNode) -> None:
    """Cosines lie in [-1, 1]: unscaled, no label's score exceeds e² times another's."""
    node, head = cfg.MODEL.RANKSEG, cfg.MODEL.SEM_SEG_HEAD
    selects = node.FLAG and node.SELECTION
    if not head.USE_LAYERNORM or head.COSINE_SCALE or (selects and node.TEMPERATURE == "layernorm"):
        return
    if not selects:
        advice = "nothing scales them: try MODEL.SEM_SEG_HEAD.COSINE_SCALE 10 or more"
    elif node.TEMPERATURE_INIT < 5:
        advice = f"MODEL.RANKSEG.TEMPERATURE_INIT={node.TEMPERATURE_INIT} is low: try 10 or more"
    else:
        return
    logger.warning("The cosine classifier's logits lie in [-1, 1]; %s", advice)
