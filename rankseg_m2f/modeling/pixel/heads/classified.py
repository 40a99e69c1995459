"""What convolutional heads share: a map of pixel embeddings, and one weight vector per label.

With RankSeg, the last 1x1 convolution becomes a table of label weights, of which those of κ labels
are taken; the multi-label head may use the same table as its label embeddings. Checkpoint names are
those of `decode_head` in the official code.

Shapes: B clips, T frames, N = B * T frames, K labels, C feature channels, D channels of pixel
embeddings.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from rankseg_m2f.modeling.pixel.heads.conv_module import ConvModule
from rankseg_m2f.modeling.pixel.heads.pixel_head import PixelHead
from rankseg_m2f.rankseg.temperature import RankTemperature
from rankseg_m2f.structures.pixel_logits import EmbeddedLogits, PixelLogits


class ClassifiedPixels(PixelHead):
    """Pixel embeddings, classified by label weights.

    Args:
        num_labels: K.
        in_features: names of the maps the head reads, fine to coarse. The multi-label head reads
            the last.
        channels: D.
        img_cls_head: see `MapLabelHead.forward`; None: plain classification.
        shares_embeddings: it takes the label weights as its label embeddings.
        temperature: of ranked labels; None: labels are not ranked.
        dropout: of whole channels of the pixel embeddings.
    """

    def __init__(
        self,
        num_labels: int,
        in_features: Sequence[str],
        channels: int,
        *,
        img_cls_head: nn.Module | None = None,
        shares_embeddings: bool = False,
        temperature: RankTemperature | None = None,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.num_labels = num_labels
        self.in_features = tuple(in_features)
        self.shares_embeddings = shares_embeddings
        self.drop = nn.Dropout2d(dropout)
        self.norm = temperature
        self.img_cls_head = img_cls_head
        if img_cls_head is None:
            self.conv_seg = nn.Conv2d(channels, num_labels, 1)
            nn.init.normal_(self.conv_seg.weight, std=0.01)
            nn.init.zeros_(self.conv_seg.bias)
        else:
            self.cls_emb = nn.Parameter(torch.empty(1, num_labels, channels))
            self.cls_bias_emb = nn.Parameter(torch.empty(1, num_labels))
            nn.init.trunc_normal_(self.cls_emb, std=0.02)
            nn.init.trunc_normal_(self.cls_bias_emb, std=0.02)

    @property
    def temperature(self) -> RankTemperature | None:
        """See `PixelHead.temperature`."""
        return self.norm

    @abstractmethod
    def embed(self, maps: list[Tensor]) -> Tensor:
        """Pixel embeddings (N, D, h, w) of the maps `in_features`."""

    def label_weights(self) -> tuple[Tensor, Tensor]:
        """(K, D) weights and (K,) biases of labels."""
        if self.img_cls_head is None:
            return self.conv_seg.weight.flatten(1), self.conv_seg.bias
        return self.cls_emb[0], self.cls_bias_emb[0]

    def forward(
        self, features: Mapping[str, Tensor], num_frames: int = 1
    ) -> tuple[Tensor | None, PixelLogits]:
        """See `PixelHead.forward`."""
        maps = [features[name] for name in self.in_features]
        weights, bias = self.label_weights()
        presence_logits = None
        if self.img_cls_head is not None:
            shared = weights if self.shares_embeddings else None
            presence_logits = self.img_cls_head(maps[-1], shared, num_frames)
        return presence_logits, EmbeddedLogits(self.drop(self.embed(maps)), weights, bias)


class FCNHead(ClassifiedPixels):
    """One 3x3 convolution before the classifier: the auxiliary head, of all labels, unranked."""

    def __init__(
        self,
        num_labels: int,
        in_feature: str,
        in_channels: int,
        channels: int = 256,
        *,
        norm: str = "SyncBN",
        dropout: float = 0.1,
    ):
        super().__init__(num_labels, [in_feature], channels, dropout=dropout)
        self.convs = nn.ModuleList([ConvModule(in_channels, channels, 3, norm=norm)])

    def embed(self, maps: list[Tensor]) -> Tensor:
        """See `ClassifiedPixels.embed`."""
        return self.convs[0](maps[0])
