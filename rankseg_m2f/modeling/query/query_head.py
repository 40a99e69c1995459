"""Pixel decoder and query decoder under the name official checkpoints know.

Shapes: B clips, T frames; H, W padded input size.
"""

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

# Imported for their registration under the names configs use.
from rankseg_m2f.errors import UserError
from rankseg_m2f.modeling.query.masked_decoder import TRANSFORMER_DECODER_REGISTRY
from rankseg_m2f.modeling.query.pixel_decoder import fpn, msdeform  # noqa: F401
from rankseg_m2f.structures.predictions import QueryPrediction


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """Backbone features to query predictions."""

    _version = 2

    @configurable
    def __init__(self, *, pixel_decoder: nn.Module, predictor: nn.Module):
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        node = cfg.MODEL.MASK_FORMER
        if node.TRANSFORMER_IN_FEATURE != "multi_scale_pixel_decoder":
            raise UserError(
                f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE={node.TRANSFORMER_IN_FEATURE!r}: the "
                "masked-attention decoder reads 'multi_scale_pixel_decoder'"
            )
        head = cfg.MODEL.SEM_SEG_HEAD
        pixel_decoder = SEM_SEG_HEADS_REGISTRY.get(head.PIXEL_DECODER_NAME)
        decoder = TRANSFORMER_DECODER_REGISTRY.get(node.TRANSFORMER_DECODER_NAME)
        return {
            "pixel_decoder": pixel_decoder(cfg, input_shape),
            "predictor": decoder(cfg, head.CONVS_DIM),
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
        mask_features, maps = self.pixel_decoder(features)
        return self.predictor(maps, mask_features, num_frames, every_mask)
