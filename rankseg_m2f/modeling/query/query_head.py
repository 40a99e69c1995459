"""Pixel decoder and query decoder under the name official checkpoints know.

Shapes: B clips, T frames; H, W padded input size.
"""

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

# Imported for their registration under the names configs use.
from rankseg_m2f.errors import UserError, require_one_of
from rankseg_m2f.modeling.query import masked_decoder, standard_decoder  # noqa: F401
from rankseg_m2f.modeling.query.decoder_parts import (
    MULTI_SCALE,
    TRANSFORMER_DECODER_REGISTRY,
    decoder_name,
)
from rankseg_m2f.modeling.query.pixel_decoder import fpn, msdeform  # noqa: F401
from rankseg_m2f.structures.predictions import QueryPrediction

_KEY = "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE"
_ENCODED = "transformer_encoder"
_FINEST = "pixel_embedding"
# Value of that key -> field of `PixelFeatures`; all others are maps of the backbone.
_READ = {MULTI_SCALE: "levels", _ENCODED: "encoded", _FINEST: "mask_features"}


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """Backbone features to query predictions."""

    _version = 2

    @configurable
    def __init__(self, *, pixel_decoder: nn.Module, predictor: nn.Module, in_feature: str):
        """
        Args:
            in_feature: what the query decoder reads, see `_READ`; else a map of the backbone.
        """
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.in_feature = in_feature

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        head, in_feature = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE
        pixel_decoder = SEM_SEG_HEADS_REGISTRY.get(head.PIXEL_DECODER_NAME)
        decoder = TRANSFORMER_DECODER_REGISTRY.get(decoder_name(cfg))
        if decoder.reads_levels != (in_feature == MULTI_SCALE):
            wanted = repr(MULTI_SCALE) if decoder.reads_levels else f"one map, not {MULTI_SCALE!r}"
            raise UserError(f"{_KEY}={in_feature!r}: {decoder.__name__} reads {wanted}")
        require_one_of(_KEY, in_feature, [*_READ, *input_shape])
        if in_feature == _ENCODED and not pixel_decoder.encodes:
            raise UserError(
                f"{_KEY}={in_feature!r}: MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME="
                f"{head.PIXEL_DECODER_NAME!r} has no encoder: TransformerEncoderPixelDecoder has"
            )
        widths = {MULTI_SCALE: head.CONVS_DIM, _ENCODED: head.CONVS_DIM, _FINEST: head.MASK_DIM}
        width = widths.get(in_feature) or input_shape[in_feature].channels
        return {
            "pixel_decoder": pixel_decoder(cfg, input_shape),
            "predictor": decoder(cfg, width),
            "in_feature": in_feature,
        }

    def forward(
        self, features: dict[str, Tensor], num_frames: int = 1, every_mask: bool = True
    ) -> list[QueryPrediction]:
        """Predictions of all decoder layers, the last one final.

        Args:
            features: name -> (B * T, C_i, H/s, W/s).
            num_frames: T.
            every_mask: see `MultiScaleMaskedTransformerDecoder.forward`.
        """
        pixels = self.pixel_decoder(features)
        if self.in_feature in _READ:
            read = getattr(pixels, _READ[self.in_feature])
        else:
            read = features[self.in_feature]
        return self.predictor(read, pixels.mask_features, num_frames, every_mask)
