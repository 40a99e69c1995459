"""What query decoders share: their registry, the choice among them, and the class head.

A query decoder has three class attributes. `first_layer` is the decoder layer its first prediction
comes after, 0 for the learnable queries. `reads_levels` says whether it reads three maps of the
pixel decoder, or one map that MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE names. `whole_segments` says
how panoptic segments are cut, see `inference.panoptic`; each is evaluated as it was published.

Shapes: K labels, C channels.
"""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from rankseg_m2f.errors import UserError

TRANSFORMER_DECODER_REGISTRY = Registry("TRANSFORMER_DECODER")
MULTI_SCALE = "multi_scale_pixel_decoder"
STANDARD_DECODER = "StandardTransformerDecoder"
_MASKED_DECODER = "MultiScaleMaskedTransformerDecoder"


def decoder_name(cfg: CfgNode) -> str:
    """Name of the query decoder.

    MaskFormer's files name none, only the map it reads, and the default is Mask2Former's decoder,
    which reads several.
    """
    node = cfg.MODEL.MASK_FORMER
    name = node.TRANSFORMER_DECODER_NAME
    unnamed = name == _MASKED_DECODER and node.TRANSFORMER_IN_FEATURE != MULTI_SCALE
    return STANDARD_DECODER if unnamed else name


class CosineClassifier(nn.Module):
    """Cosine between query and class weight: (..., C) to (..., K + 1) in [-1, 1].

    Args:
        scale: first value of a learnable factor on all cosines; 0: none.
    """

    def __init__(self, channels: int, num_classes: int, scale: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, channels))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.scale = nn.Parameter(torch.tensor([scale])) if scale else None

    def forward(self, x: Tensor) -> Tensor:
        cosines = F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1))
        return cosines if self.scale is None else cosines * self.scale


def class_head(channels: int, num_classes: int, cosine: bool, scale: float) -> nn.Module:
    """(..., C) to (..., K + 1) class logits, no-object last."""
    if cosine:
        return CosineClassifier(channels, num_classes + 1, scale)
    return nn.Linear(channels, num_classes + 1)


def decoder_settings(cfg: CfgNode) -> dict:
    """Arguments that all query decoders take.

    Raises:
        UserError: COSINE_SCALE is negative, or scales nothing.
    """
    node, head = cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD
    if head.COSINE_SCALE < 0 or (head.COSINE_SCALE and not head.USE_LAYERNORM):
        raise UserError(
            f"MODEL.SEM_SEG_HEAD.COSINE_SCALE={head.COSINE_SCALE} must be 0 or more, and "
            f"scales the cosine classifier alone: USE_LAYERNORM is {head.USE_LAYERNORM}"
        )
    return {
        "num_classes": head.NUM_CLASSES,
        "hidden_dim": node.HIDDEN_DIM,
        "num_queries": node.NUM_OBJECT_QUERIES,
        "heads": node.NHEADS,
        "feedforward": node.DIM_FEEDFORWARD,
        "dropout": node.DROPOUT,
        "pre_norm": node.PRE_NORM,
        "mask_dim": head.MASK_DIM,
        "enforce_input_project": node.ENFORCE_INPUT_PROJ,
        "cosine": head.USE_LAYERNORM,
        "cosine_scale": head.COSINE_SCALE,
    }
