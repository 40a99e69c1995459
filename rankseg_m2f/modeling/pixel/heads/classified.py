"""What convolutional heads share: a map of pixel embeddings, and one weight vector per label.

With RankSeg, the last 1x1 convolution becomes a table of label weights, of which those of κ labels
are taken; the multi-label head may use the same table as its label embeddings. Names of parameters
are those of `decode_head` in the official code.

Shapes: N frames, K labels, D channels of pixel embeddings; h, w of their map.
"""

import torch
from torch import Tensor, nn

from rankseg_m2f.modeling.pixel.pixel_head import PixelHead
from rankseg_m2f.structures.pixel_logits import EmbeddedLogits
from rankseg_m2f.structures.predictions import PixelPrediction


class ClassifiedPixels(PixelHead):
    """Pixel embeddings, classified by label weights.

    Args:
        channels: D.
        num_labels: K.
        table: label weights are `cls_emb` and `cls_bias_emb`, as with RankSeg; else those of a
            convolution, `conv_seg`. The same numbers by other names.
        dropout: of whole channels of the pixel embeddings.
    """

    def __init__(
        self, *, channels: int, num_labels: int, table: bool = False, dropout: float = 0.1
    ):
        super().__init__()
        self.table = table
        self.dropout = nn.Dropout2d(dropout)
        if table:
            self.cls_emb = nn.Parameter(torch.empty(1, num_labels, channels))
            self.cls_bias_emb = nn.Parameter(torch.empty(1, num_labels))
            nn.init.trunc_normal_(self.cls_emb, std=0.02)
            nn.init.trunc_normal_(self.cls_bias_emb, std=0.02)
        else:
            self.conv_seg = nn.Conv2d(channels, num_labels, 1)
            nn.init.normal_(self.conv_seg.weight, std=0.01)
            nn.init.zeros_(self.conv_seg.bias)

    @property
    def label_embeddings(self) -> Tensor:
        """See `PixelHead.label_embeddings`."""
        return self.cls_emb[0] if self.table else self.conv_seg.weight.flatten(1)

    def classify(
        self, pixels: Tensor, num_frames: int, presence_logits: Tensor | None = None
    ) -> PixelPrediction:
        """The prediction of pixel embeddings (N, D, h, w)."""
        bias = self.cls_bias_emb[0] if self.table else self.conv_seg.bias
        logits = EmbeddedLogits(self.dropout(pixels), self.label_embeddings, bias)
        return PixelPrediction(presence_logits, logits, num_frames)
