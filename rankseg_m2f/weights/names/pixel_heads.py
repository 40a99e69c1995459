"""Heads of pixel segmentors in mmseg, RankSeg's release and the original Segmenter."""

import re
from collections.abc import Collection, Mapping

from torch import Tensor

# (their pattern, our name); the first that matches a whole name counts. The original Segmenter's
# `decoder` has been called `decode_head` by then.
HEADS = (
    (r"decode_head\.img_cls_head\.(.+)", r"ml_head.\1"),
    (r"decode_head\.norm\.(.+)", r"ml_norm.\1"),
    (r"auxiliary_head\.(.+)", r"aux_head.\1"),
    (r"decode_head\.(.+)", r"sem_seg_head.\1"),
)
# Segmenter's norm is over ranks where labels are ranked, and over labels elsewhere.
_RANKED_NORM = (r"decode_head\.mask_norm\.(.+)", r"ml_norm.\1")
_SCORES_LABELS = re.compile(r"decode_head\.(?:ml_fc|img_cls_head)\..+")


def rename_heads(state: Mapping[str, Tensor], known: Collection[str] = ()) -> dict[str, Tensor]:
    """Tensors of a file, those of heads under our names; the others keep theirs.

    Args:
        known: names that are never changed.
    """
    rules = HEADS
    if any(map(_SCORES_LABELS.fullmatch, state)):
        rules = (_RANKED_NORM, *HEADS)
    return {
        name if name in known else _renamed(name, rules): value for name, value in state.items()
    }


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, ours in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(ours)
    return name
