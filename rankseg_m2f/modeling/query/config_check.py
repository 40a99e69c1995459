"""What a config of queries must fulfil, checked before anything is built."""

from detectron2.config import CfgNode
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY

from rankseg_m2f.errors import UserError, require_one_of
from rankseg_m2f.modeling.query.decoder_parts import TRANSFORMER_DECODER_REGISTRY

# Key of the config -> registry that must know the name.
_PARTS = {
    "MODEL.SEM_SEG_HEAD.NAME": SEM_SEG_HEADS_REGISTRY,
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": SEM_SEG_HEADS_REGISTRY,
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": TRANSFORMER_DECODER_REGISTRY,
}


def check_query_config(cfg: CfgNode) -> None:
    """
    Raises:
        UserError: an unknown part, or widths that attention or its norms cannot divide.
    """
    for key, registry in _PARTS.items():
        require_one_of(key, _lookup(cfg, key), sorted(name for name, _ in registry))
    heads = cfg.MODEL.MASK_FORMER.NHEADS
    for key in ("MODEL.MASK_FORMER.HIDDEN_DIM", "MODEL.SEM_SEG_HEAD.CONVS_DIM"):
        if _lookup(cfg, key) % heads:
            raise UserError(
                f"{key}={_lookup(cfg, key)} must be a multiple of MODEL.MASK_FORMER.NHEADS={heads}"
            )
    head = cfg.MODEL.SEM_SEG_HEAD
    # Its channels are normalised in 32 groups.
    if head.CONVS_DIM % 32 and head.PIXEL_DECODER_NAME == "MSDeformAttnPixelDecoder":
        raise UserError(f"MODEL.SEM_SEG_HEAD.CONVS_DIM={head.CONVS_DIM} must be a multiple of 32")


def _lookup(cfg: CfgNode, key: str) -> str | int:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg
