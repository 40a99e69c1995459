"""All foreign names we know, and the one door for a file with any of them."""

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from rankseg_m2f.weights.names.google_vit import GOOGLE_VIT
from rankseg_m2f.weights.names.huggingface_vit import HUGGINGFACE_BEIT, HUGGINGFACE_VIT
from rankseg_m2f.weights.names.mmseg_mask2former import MMSEG_MASK2FORMER
from rankseg_m2f.weights.names.mmseg_resnet import MMSEG_RESNET
from rankseg_m2f.weights.names.mmseg_swin import MMSEG_SWIN
from rankseg_m2f.weights.names.mmseg_vit import MMSEG_VIT
from rankseg_m2f.weights.names.mmseg_vit_adapter import MMSEG_VIT_ADAPTER
from rankseg_m2f.weights.names.official_beit import OFFICIAL_BEIT
from rankseg_m2f.weights.names.original_segmenter import ORIGINAL_SEGMENTER
from rankseg_m2f.weights.names.pixel_heads import rename_heads
from rankseg_m2f.weights.names.rules import Source, is_from, to_ours
from rankseg_m2f.weights.names.timm_vit import TIMM_VIT

_WRAPPED = re.compile(r"(?:module\.|_orig_mod\.)+")
# Of backbones. The first whose mark is in a file counts: that of an adapter has the names of its
# BEiT or ViT too.
SOURCES = (
    MMSEG_VIT_ADAPTER,
    MMSEG_VIT,
    MMSEG_SWIN,
    MMSEG_RESNET,
    ORIGINAL_SEGMENTER,
    GOOGLE_VIT,
    HUGGINGFACE_BEIT,
    HUGGINGFACE_VIT,
    OFFICIAL_BEIT,
    TIMM_VIT,
)


def source_of(state: Mapping[str, Tensor]) -> Source | None:
    """The source whose names a file has; None: no backbone names that we know."""
    return next((source for source in SOURCES if is_from(source, state)), None)


def our_names(state: Mapping[str, Tensor], known: Collection[str] = ()) -> dict[str, Tensor]:
    """Tensors of a file under our names; a file of no known source stays as it is.

    Args:
        known: names of a model; a file that has no others stays as it is, too.
    """
    if state.keys() <= set(known):
        return dict(state)
    state = _unwrapped(state)
    source = source_of(state)
    renamed = dict(state) if source is None else to_ours(state, source)
    # ViT-Adapter's files have this head, whose names begin as those of pixel segmentors do.
    if is_from(MMSEG_MASK2FORMER, renamed):
        return to_ours(renamed, MMSEG_MASK2FORMER)
    return rename_heads(renamed, known)


def _unwrapped(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Without the prefix of DistributedDataParallel or torch.compile, where all names have one."""
    if not state or not all(map(_WRAPPED.match, state)):
        return state
    return {_WRAPPED.sub("", name): value for name, value in state.items()}
