"""Segmenter (Strudel et al., ICCV 2021): labels are tokens among those of patches.

With RankSeg, κ labels are selected before the decoder, so that it never sees the others. Checkpoint
names are those of `decode_head` in the official code (`decoder` in Segmenter's own).

Shapes: B clips, T frames, N = B * T frames, L patches of a frame, K labels, κ selected labels,
C feature channels, D width of the decoder, E width of scores; h, w of the feature map, h w = L.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rankseg_m2f.modeling.pixel.heads.pixel_head import PixelHead
from rankseg_m2f.rankseg.head import GroupWiseLinear, tokens_of_map
from rankseg_m2f.rankseg.labels import ABSENT_LOGIT
from rankseg_m2f.rankseg.map_head import pooling
from rankseg_m2f.rankseg.temperature import RankTemperature
from rankseg_m2f.rankseg.transformer import Block
from rankseg_m2f.structures.pixel_logits import DenseLogits, PixelLogits


@dataclass
class DecodedLogits(PixelLogits):
    """Scores that a decoder gives once it knows which labels are wanted.

    Attributes:
        decode: (patches (N, L, D), tokens of labels (N, κ, D)) to scores (N, κ, L).
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
        return self.decode(self.patches, labels).unflatten(2, self.size)


class MaskTransformer(PixelHead):
    """The decoder: tokens attend to each other; a score is the cosine of a patch and a label.

    Args:
        num_labels: K.
        in_feature: name of the feature map, the backbone's last.
        in_channels: C.
        width: D.
        depth, heads, expansion, dropout: of its transformer layers.
        score_width: E; None: D.
        own_embeddings: labels have embeddings of their own; otherwise `features["cls_emb"]`
            (N, K, C), which went through the backbone, stand for them.
    """

    def __init__(
        self,
        num_labels: int,
        in_feature: str,
        in_channels: int,
        *,
        width: int,
        depth: int = 2,
        heads: int = 12,
        expansion: int = 4,
        dropout: float = 0.1,
        score_width: int | None = None,
        own_embeddings: bool = True,
    ):
        super().__init__()
        self.num_labels = num_labels
        self.in_feature = in_feature
        self.proj_dec = nn.Linear(in_channels, width)
        self.cls_emb = None
        if own_embeddings:
            self.cls_emb = nn.Parameter(torch.empty(1, num_labels, width))
            nn.init.trunc_normal_(self.cls_emb, std=0.02)
        self.blocks = nn.ModuleList(Block(width, heads, expansion, dropout) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(width)
        score_width = width if score_width is None else score_width
        scale = width**-0.5
        self.proj_patch = nn.Parameter(scale * torch.randn(width, score_width))
        self.proj_classes = nn.Parameter(scale * torch.randn(width, score_width))
        init_linear(self)

    def patches(self, features: Mapping[str, Tensor]) -> Tensor:
        """(N, L, D) tokens of the pixels of the feature map, row by row."""
        return self.proj_dec(tokens_of_map(features[self.in_feature]))

    def label_tokens(self, features: Mapping[str, Tensor], num_frames: int = 1) -> Tensor:
        """(B, K, D) embeddings of labels; those of a clip's frames are averaged."""
        if self.cls_emb is None:
            return features["cls_emb"].unflatten(0, (-1, num_frames)).mean(1)
        clips = len(features[self.in_feature]) // num_frames
        return self.cls_emb.expand(clips, -1, -1)

    def decode(self, patches: Tensor, labels: Tensor, first: int = 0) -> Tensor:
        """Cosines (N, L, κ) of patches (N, L, D) and labels (N, κ, D).

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


class SegmenterHead(MaskTransformer):
    """The plain mask transformer: all labels in their own order, normalised over labels."""

    temperature = None

    def __init__(self, num_labels: int, in_feature: str, in_channels: int, **settings):
        """Arguments of `MaskTransformer`."""
        super().__init__(num_labels, in_feature, in_channels, **settings)
        self.mask_norm = nn.LayerNorm(num_labels)

    def forward(
        self, features: Mapping[str, Tensor], num_frames: int = 1
    ) -> tuple[Tensor | None, PixelLogits]:
        """See `PixelHead.forward`."""
        return None, DenseLogits(self.logits(features, num_frames))

    def logits(self, features: Mapping[str, Tensor], num_frames: int) -> Tensor:
        """(N, K, h, w)."""
        labels = self.label_tokens(features, num_frames).repeat_interleave(num_frames, 0)
        scores = self.mask_norm(self.decode(self.patches(features), labels))  # (N, L, K)
        return scores.transpose(1, 2).unflatten(2, features[self.in_feature].shape[2:])


class RankedMaskTransformer(MaskTransformer):
    """What mask transformers that know which labels are present share.

    Args:
        temperature: of ranked labels; None: all labels keep their own order and are normalised
            over labels, as without RankSeg.
        settings: see `MaskTransformer`.
    """

    def __init__(
        self,
        num_labels: int,
        in_feature: str,
        in_channels: int,
        *,
        temperature: RankTemperature | None,
        **settings,
    ):
        super().__init__(num_labels, in_feature, in_channels, **settings)
        self.ranks_labels = temperature is not None
        self.mask_norm = temperature if self.ranks_labels else nn.LayerNorm(num_labels)

    @property
    def temperature(self) -> RankTemperature | None:
        """See `PixelHead.temperature`."""
        return self.mask_norm if self.ranks_labels else None

    def pixel_logits(
        self, patches: Tensor, labels: Tensor, size: tuple[int, int], num_frames: int
    ) -> PixelLogits:
        """Logits by patches (N, L, D) and tokens of labels (B, K, D)."""
        labels = labels.repeat_interleave(num_frames, 0)
        logits = DecodedLogits(self.decode_maps, patches, labels, size)
        if self.ranks_labels:
            return logits
        return DenseLogits(self.mask_norm(logits.of_all().movedim(1, 3)).movedim(3, 1))

    def decode_maps(self, patches: Tensor, labels: Tensor) -> Tensor:
        """`decode` with scores as `DecodedLogits` wants them."""
        return self.decode(patches, labels).transpose(1, 2)


class RankedSegmenterHead(RankedMaskTransformer):
    """RankSeg's own: the first block tells which labels are present, and refines their tokens.

    Args:
        pool: side of the map that this block reads; None: as it is, and then the decoder goes on
            with the patches as refined by it, too (as for ADE20K-Full and COCO+LVIS).
        depth: blocks in all.
        settings: see `RankedMaskTransformer`.
    """

    def __init__(
        self,
        num_labels: int,
        in_feature: str,
        in_channels: int,
        *,
        width: int,
        depth: int = 3,
        pool: int | None = 8,
        **settings,
    ):
        super().__init__(num_labels, in_feature, in_channels, width=width, depth=depth, **settings)
        self.pool = pooling(pool)
        self.pools = pool is not None
        self.decoder_norm2 = nn.LayerNorm(width)
        self.ml_fc = GroupWiseLinear(num_labels, width)

    def forward(
        self, features: Mapping[str, Tensor], num_frames: int = 1
    ) -> tuple[Tensor | None, PixelLogits]:
        """See `PixelHead.forward`."""
        maps = features[self.in_feature]
        seen = self.proj_dec(tokens_of_map(self.pool(maps), num_frames))  # (B, T s s, D)
        labels = self.label_tokens(features, num_frames)
        tokens = self.blocks[0](torch.cat([seen, labels], dim=1))
        seen, labels = tokens.split([seen.shape[1], self.num_labels], dim=1)
        labels = self.decoder_norm2(labels)  # (B, K, D)
        if self.pools:
            patches = self.patches(features)
        else:
            patches = seen.unflatten(1, (num_frames, -1)).flatten(0, 1)  # (N, L, D)
        logits = self.pixel_logits(patches, labels, maps.shape[2:], num_frames)
        return self.ml_fc(labels), logits

    def decode(self, patches: Tensor, labels: Tensor, first: int = 1) -> Tensor:
        """See `MaskTransformer.decode`; the first block has been gone through."""
        return super().decode(patches, labels, first)


class LabelHeadSegmenterHead(RankedMaskTransformer):
    """A multi-label head beside the decoder, which selects rows of the label embeddings.

    Args:
        img_cls_head: see `MapLabelHead.forward`.
        shares_embeddings: it takes the decoder's label embeddings.
        settings: see `RankedMaskTransformer`.
    """

    def __init__(
        self,
        num_labels: int,
        in_feature: str,
        in_channels: int,
        *,
        img_cls_head: nn.Module,
        shares_embeddings: bool = False,
        **settings,
    ):
        super().__init__(num_labels, in_feature, in_channels, **settings)
        self.img_cls_head = img_cls_head
        self.shares_embeddings = shares_embeddings

    def forward(
        self, features: Mapping[str, Tensor], num_frames: int = 1
    ) -> tuple[Tensor | None, PixelLogits]:
        """See `PixelHead.forward`."""
        maps = features[self.in_feature]
        shared = self.cls_emb[0] if self.shares_embeddings else None
        presence_logits = self.img_cls_head(maps, shared, num_frames)
        labels = self.label_tokens(features, num_frames)
        patches = self.patches(features)
        return presence_logits, self.pixel_logits(patches, labels, maps.shape[2:], num_frames)


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

    def of_present(self, present: Tensor) -> PixelLogits:
        """The same once it is known which labels (N, K) bool are present in each frame.

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


class OracleSegmenterHead(MaskTransformer):
    """The mask transformer that is told the labels of the ground truth: a bound on RankSeg."""

    temperature = None

    def __init__(self, num_labels: int, in_feature: str, in_channels: int, **settings):
        """Arguments of `MaskTransformer`."""
        super().__init__(num_labels, in_feature, in_channels, **settings)
        self.mask_norm = PositionNorm(num_labels)

    def forward(
        self, features: Mapping[str, Tensor], num_frames: int = 1
    ) -> tuple[Tensor | None, PixelLogits]:
        """See `PixelHead.forward`; the logits wait for `OracleLogits.of_present`."""
        labels = self.label_tokens(features, num_frames).repeat_interleave(num_frames, 0)
        size = features[self.in_feature].shape[2:]
        patches = self.patches(features)
        return None, OracleLogits(self._decode_maps, patches, labels, size, self.mask_norm)

    def _decode_maps(self, patches: Tensor, labels: Tensor) -> Tensor:
        return self.decode(patches, labels).transpose(1, 2)


class LinearSegmenterHead(PixelHead):
    """One linear classifier of patches: the original Segmenter's other decoder."""

    temperature = None

    def __init__(self, num_labels: int, in_feature: str, in_channels: int):
        super().__init__()
        self.num_labels = num_labels
        self.in_feature = in_feature
        self.head = nn.Linear(in_channels, num_labels)
        init_linear(self)

    def forward(
        self, features: Mapping[str, Tensor], num_frames: int = 1
    ) -> tuple[Tensor | None, PixelLogits]:
        """See `PixelHead.forward`."""
        maps = features[self.in_feature]
        scores = self.head(tokens_of_map(maps))  # (N, L, K)
        return None, DenseLogits(scores.transpose(1, 2).unflatten(2, maps.shape[2:]))


def unit_vectors(vectors: Tensor) -> Tensor:
    """Vectors (..., E) divided by their lengths, without the eps of `F.normalize`."""
    return vectors / vectors.norm(dim=-1, keepdim=True)


def init_linear(module: nn.Module) -> None:
    """Linear layers inside a module as ViT starts them."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
