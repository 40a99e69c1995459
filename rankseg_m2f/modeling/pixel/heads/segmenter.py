"""Segmenter (Strudel et al., ICCV 2021): labels are tokens among those of patches.

With RankSeg, κ labels are selected before the decoder, so that it never sees the others. Checkpoint
names are those of `decode_head` in the official code (`decoder` in Segmenter's own).

Shapes: B clips, T frames, N = B * T frames, L patches of a frame, K labels, κ selected labels,
C feature channels, D width of the decoder, E width of scores; h, w of the feature map, h w = L.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from rankseg_m2f.errors import UserError
from rankseg_m2f.modeling.pixel.heads.head_config import (
    decoder_settings,
    feature_of,
    ranks_labels,
    refuse_ranks,
)
from rankseg_m2f.modeling.pixel.pixel_head import PixelHead
from rankseg_m2f.rankseg.head import GroupWiseLinear, tokens_of_map
from rankseg_m2f.rankseg.labels import ABSENT_LOGIT
from rankseg_m2f.rankseg.transformer import Block
from rankseg_m2f.structures.pixel_logits import DenseLogits, EmbeddedLogits, PixelLogits
from rankseg_m2f.structures.predictions import PixelPrediction


@dataclass
class DecodedLogits(PixelLogits):
    """Scores that a decoder gives once it knows which labels are wanted.

    Attributes:
        decode: patches (N, L, D) and tokens of labels (N, κ, D) to scores (N, L, κ).
        patches: (N, L, D).
        labels: (N, K, D) tokens of all labels.
        size: h, w.
    """

    decode: Callable[[Tensor, Tensor], Tensor]
    patches: Tensor
    labels: Tensor
    size: tuple[int, int]

    def of_all(self) -> Tensor:
        """See `PixelLogits`."""
        return self._maps(self.labels)

    def of_labels(self, index: Tensor) -> Tensor:
        """See `PixelLogits`."""
        rows = index[:, :, None].expand(-1, -1, self.labels.shape[2])
        return self._maps(self.labels.gather(1, rows))

    def __getitem__(self, frames: slice) -> "DecodedLogits":
        """See `PixelLogits`."""
        return replace(self, patches=self.patches[frames], labels=self.labels[frames])

    def _maps(self, labels: Tensor) -> Tensor:
        return maps_of_tokens(self.decode(self.patches, labels), self.size)


class MaskTransformer(PixelHead):
    """The decoder: tokens attend to each other; a score is the cosine of a patch and a label."""

    def __init__(
        self,
        *,
        feature: str,
        in_channels: int,
        num_labels: int,
        width: int,
        depth: int = 2,
        heads: int | None = None,
        expansion: int = 4,
        dropout: float = 0.1,
        score_width: int | None = None,
        own_embeddings: bool = True,
    ):
        """
        Args:
            feature: name of the feature map, the backbone's last.
            in_channels: C.
            num_labels: K.
            width: D.
            depth, expansion, dropout: of its transformer layers.
            heads: of attention; None: one per 64 channels, as published.
            score_width: E; None: D.
            own_embeddings: labels have embeddings of their own; otherwise `features["cls_emb"]`
                (N, K, D), which went through the backbone, stand for them.
        """
        super().__init__()
        self.feature = feature
        self.proj_dec = nn.Linear(in_channels, width)
        self.cls_emb = None
        if own_embeddings:
            self.cls_emb = nn.Parameter(torch.empty(1, num_labels, width))
            nn.init.trunc_normal_(self.cls_emb, std=0.02)
        heads = heads or max(1, width // 64)
        self.blocks = nn.ModuleList(Block(width, heads, expansion, dropout) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(width)
        score_width = width if score_width is None else score_width
        scale = width**-0.5
        self.proj_patch = nn.Parameter(scale * torch.randn(width, score_width))
        self.proj_classes = nn.Parameter(scale * torch.randn(width, score_width))
        init_linear(self)

    @property
    def label_embeddings(self) -> Tensor | None:
        """See `PixelHead.label_embeddings`."""
        return None if self.cls_emb is None else self.cls_emb[0]

    def patches(self, features: dict[str, Tensor]) -> Tensor:
        """(N, L, D) tokens of the pixels of the feature map, row by row."""
        return self.proj_dec(tokens_of_map(features[self.feature]))

    def label_tokens(self, features: dict[str, Tensor], num_frames: int) -> Tensor:
        """(B, K, D) embeddings of labels; of those that saw a frame each, the mean of the clip."""
        if self.cls_emb is None:
            return features["cls_emb"].unflatten(0, (-1, num_frames)).mean(1)
        return self.cls_emb.expand(len(features[self.feature]) // num_frames, -1, -1)

    def decode(self, patches: Tensor, labels: Tensor, first: int = 0) -> Tensor:
        """Scores (N, L, κ) of patches (N, L, D) and labels (N, κ, D).

        Args:
            first: number of the first block to go through.
        """
        tokens = torch.cat([patches, labels], dim=1)
        for block in self.blocks[first:]:
            tokens = block(tokens)
        tokens = self.decoder_norm(tokens)
        count = patches.shape[1]
        patches = unit_vectors(tokens[:, :count] @ self.proj_patch)  # (N, L, E)
        labels = unit_vectors(tokens[:, count:] @ self.proj_classes)  # (N, κ, E)
        return patches @ labels.transpose(1, 2)


@SEM_SEG_HEADS_REGISTRY.register()
class SegmenterHead(MaskTransformer):
    """The mask transformer, of all labels in their own order or of those selected."""

    @configurable
    def __init__(self, *, num_labels: int, ranked: bool = False, **settings):
        """
        Args:
            ranked: labels will be selected and their logits scaled by rank; otherwise logits are
                normalised over all labels here.
            settings: see `MaskTransformer`.
        """
        super().__init__(num_labels=num_labels, **settings)
        self.mask_norm = None if ranked else nn.LayerNorm(num_labels)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        return {**decoder_settings(cfg, input_shape), "ranked": ranks_labels(cfg)}

    def forward(self, features: dict[str, Tensor], num_frames: int) -> PixelPrediction:
        """See `PixelHead.forward`."""
        labels = self.label_tokens(features, num_frames)
        logits = self.logits(features, self.patches(features), labels, num_frames)
        return PixelPrediction(None, logits, num_frames)

    def logits(
        self, features: dict[str, Tensor], patches: Tensor, labels: Tensor, num_frames: int
    ) -> PixelLogits:
        """Logits by patches (N, L, D) and tokens of labels (B, K, D)."""
        labels = labels.repeat_interleave(num_frames, dim=0)  # (N, K, D)
        size = features[self.feature].shape[2:]
        if self.mask_norm is None:
            return DecodedLogits(self.decode, patches, labels, size)
        scores = self.mask_norm(self.decode(patches, labels))  # (N, L, K)
        return DenseLogits(maps_of_tokens(scores, size))


@SEM_SEG_HEADS_REGISTRY.register()
class RankedSegmenterHead(SegmenterHead):
    """RankSeg's own: the first block tells which labels are present, and refines their tokens."""

    scores_labels = True

    @configurable
    def __init__(
        self,
        *,
        num_labels: int,
        width: int,
        depth: int = 3,
        pool: int = 8,
        ranked: bool = True,
        **settings,
    ):
        """
        Args:
            pool: side of the grid to which the map is averaged for the first block; 0: it reads
                the map as it is, and the decoder goes on with the patches as refined by it (as for
                ADE20K-Full and COCO+LVIS).
            depth: blocks in all.
            ranked: see `SegmenterHead`; False: presence is learned and selects nothing.
            settings: see `SegmenterHead`.
        """
        super().__init__(num_labels=num_labels, width=width, depth=depth, ranked=ranked, **settings)
        self.pool = pool
        self.decoder_norm2 = nn.LayerNorm(width)
        self.ml_fc = GroupWiseLinear(num_labels, width)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        if not cfg.MODEL.RANKSEG.FLAG:
            raise UserError(
                "MODEL.RANKSEG.FLAG is False, and a RankedSegmenterHead is RankSeg's: without it "
                "MODEL.SEM_SEG_HEAD.NAME is SegmenterHead"
            )
        return {**super().from_config(cfg, input_shape), "pool": cfg.MODEL.PIXEL.LABEL_POOL}

    def forward(self, features: dict[str, Tensor], num_frames: int) -> PixelPrediction:
        """See `PixelHead.forward`."""
        seen = maps = features[self.feature]
        if self.pool:
            seen = F.adaptive_avg_pool2d(maps, self.pool)
        seen = self.proj_dec(tokens_of_map(seen, num_frames))  # (B, T L', D)
        labels = self.label_tokens(features, num_frames)
        tokens = self.blocks[0](torch.cat([seen, labels], dim=1))
        seen, labels = tokens.split([seen.shape[1], labels.shape[1]], dim=1)
        labels = self.decoder_norm2(labels)  # (B, K, D)
        if self.pool:
            patches = self.patches(features)  # (N, L, D)
        else:
            patches = seen.unflatten(1, (num_frames, -1)).flatten(0, 1)
        logits = self.logits(features, patches, labels, num_frames)
        return PixelPrediction(self.ml_fc(labels), logits, num_frames)

    def decode(self, patches: Tensor, labels: Tensor, first: int = 1) -> Tensor:
        """See `MaskTransformer.decode`; the first block has been gone through."""
        return super().decode(patches, labels, first)


@dataclass
class OracleLogits(DecodedLogits):
    """Logits of a decoder that is to see the labels of the ground truth alone.

    Attributes:
        norm: over the labels seen.
    """

    norm: nn.Module

    def of_all(self) -> Tensor:
        """Of an image in which every label is present."""
        return self.norm(super().of_all())

    def of_labels(self, index: Tensor) -> Tensor:
        """Of images in which these labels are present."""
        return self.norm(super().of_labels(index))

    def seeing(self, present: Tensor) -> DenseLogits:
        """See `PixelLogits.seeing`.

        Images have different numbers of them, so they are decoded one by one. The label of an
        image that has none is the first, as in the official code.
        """
        maps = self.patches.new_full((*present.shape, *self.size), ABSENT_LOGIT)
        rows = []
        for i, row in enumerate(present):
            ids = row.nonzero().flatten()
            ids = ids if len(ids) else ids.new_zeros(1)
            logits = self[i : i + 1].of_labels(ids[None])[0]
            rows.append(maps[i].index_copy(0, ids, logits.to(maps.dtype)))
        return DenseLogits(torch.stack(rows))


class PositionNorm(nn.Module):
    """Standardises over labels; scale and bias belong to positions in the row, not to labels.

    Not a LayerNorm: its variance has Bessel's correction. Of one label alone only the mean is
    taken off.
    """

    def __init__(self, num_labels: int, eps: float = 1e-5):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(num_labels))
        self.beta = nn.Parameter(torch.zeros(num_labels))
        self.eps = eps

    def forward(self, logits: Tensor) -> Tensor:
        """Logits (N, k, h, w) with k <= K, standardised over k."""
        count = logits.shape[1]
        logits = logits - logits.mean(1, keepdim=True)
        if count > 1:
            logits = logits / (logits.var(1, keepdim=True) + self.eps).sqrt()
        gamma, beta = self.gamma[:count], self.beta[:count]
        return gamma[:, None, None] * logits + beta[:, None, None]


@SEM_SEG_HEADS_REGISTRY.register()
class OracleSegmenterHead(MaskTransformer):
    """The mask transformer that is told the labels of the ground truth: a bound on RankSeg."""

    @configurable
    def __init__(self, *, num_labels: int, **settings):
        """
        Args:
            settings: see `MaskTransformer`.
        """
        super().__init__(num_labels=num_labels, **settings)
        self.mask_norm = PositionNorm(num_labels)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        refuse_ranks(cfg, "is told the labels of the ground truth")
        if not cfg.MODEL.RANKSEG.USE_GT:
            raise UserError(
                "MODEL.RANKSEG.USE_GT is False, and an OracleSegmenterHead needs the labels of the "
                "ground truth: set it True"
            )
        return decoder_settings(cfg, input_shape)

    def forward(self, features: dict[str, Tensor], num_frames: int) -> PixelPrediction:
        """See `PixelHead.forward`; the logits wait for `OracleLogits.seeing`."""
        labels = self.label_tokens(features, num_frames).repeat_interleave(num_frames, dim=0)
        size = features[self.feature].shape[2:]
        logits = OracleLogits(self.decode, self.patches(features), labels, size, self.mask_norm)
        return PixelPrediction(None, logits, num_frames)


@SEM_SEG_HEADS_REGISTRY.register()
class LinearSegmenterHead(PixelHead):
    """One linear classifier of patches: the original Segmenter's other decoder."""

    @configurable
    def __init__(self, *, feature: str, in_channels: int, num_labels: int):
        """
        Args:
            feature: name of the feature map, the backbone's last.
        """
        super().__init__()
        self.feature = feature
        self.head = nn.Linear(in_channels, num_labels)
        init_linear(self)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        num_labels = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        return {**feature_of(cfg, input_shape), "num_labels": num_labels}

    @property
    def label_embeddings(self) -> Tensor:
        """See `PixelHead.label_embeddings`."""
        return self.head.weight

    def forward(self, features: dict[str, Tensor], num_frames: int) -> PixelPrediction:
        """See `PixelHead.forward`."""
        logits = EmbeddedLogits(features[self.feature], self.head.weight, self.head.bias)
        return PixelPrediction(None, logits, num_frames)


def maps_of_tokens(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Scores (N, L, K) of pixels, row by row, as maps (N, K, h, w)."""
    return scores.transpose(1, 2).unflatten(2, size)


def unit_vectors(vectors: Tensor) -> Tensor:
    """Vectors (..., E) divided by their lengths, without the eps of `F.normalize`."""
    return vectors / vectors.norm(dim=-1, keepdim=True)


def init_linear(module: nn.Module) -> None:
    """Linear layers inside a module as ViT starts them."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
