"""Names that other code gave our parameters, as a table."""

import re
from collections.abc import Collection

from torch import Tensor

from rankseg_m2f.weights.huggingface import from_huggingface, is_huggingface

# MaskFormer had no pixel decoder of its own: all but the predictor was the head's.
_OLD_PIXEL_DECODER = (
    r"sem_seg_head\.(?!pixel_decoder\.|predictor\.)(.+)",
    r"sem_seg_head.pixel_decoder.\1",
)
# (their pattern, our name). Rules whose pattern matches a whole name are applied one after the
# other, until the model knows the name.
RENAMES = [
    # DistributedDataParallel and torch.compile wrap the model, in either order.
    (r"(?:module\.|_orig_mod\.)+(.+)", r"\1"),
    _OLD_PIXEL_DECODER,
    # The first name of the learnable query features.
    (r"sem_seg_head\.predictor\.static_query\.(.+)", r"sem_seg_head.predictor.query_feat.\1"),
    # torchvision's ResNet: the stem has no module,
    (r"conv1\.(.+)", r"stem.conv1.\1"),
    (r"bn1\.(.+)", r"stem.conv1.norm.\1"),
    # stages are counted from 1,
    *[(rf"layer{i}\.(.+)", rf"res{i + 1}.\1") for i in (1, 2, 3, 4)],
    # a norm stands beside its convolution,
    (r"(res\d\.\d+)\.bn(\d)\.(.+)", r"\1.conv\2.norm.\3"),
    # and a shortcut is a list of convolution and norm.
    (r"(res\d\.\d+)\.downsample\.0\.(.+)", r"\1.shortcut.\2"),
    (r"(res\d\.\d+)\.downsample\.1\.(.+)", r"\1.shortcut.norm.\2"),
    # Caffe2's ResNet has an affine map for a norm, and letters for the convolutions of a block.
    (r"conv1_w", "stem.conv1.weight"),
    (r"res_conv1_bn_(\w+)", r"stem.conv1.norm.\1"),
    *[
        rule
        for branch, conv in {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}.items()
        for rule in (
            (rf"(res\d)_(\d+)_branch{branch}_w", rf"\1.\2.{conv}.weight"),
            (rf"(res\d)_(\d+)_branch{branch}_bn_(\w+)", rf"\1.\2.{conv}.norm.\3"),
        )
    ],
    *[
        (rf"((?:stem|res\d)\..+\.norm)\.{theirs}", rf"\1.{ours}")
        for theirs, ours in {
            "s": "weight",
            "b": "bias",
            "rm": "running_mean",
            "riv": "running_var",
        }.items()
    ],
    # Backbones pretrained on ImageNet are no part of a larger model: ResNet,
    (r"((?:stem|res\d)\..+)", r"backbone.\1"),
    # and Swin.
    (r"((?:patch_embed|layers|norm\d)\..+|absolute_pos_embed)", r"backbone.\1"),
]
# timm's Swin since 0.9 halves the resolution at the start of a stage, not at its end.
TIMM_SWIN = [
    (rf"layers\.{i}\.downsample\.(.+)", rf"layers.{i - 1}.downsample.\1") for i in (1, 2, 3)
]
# Tensors that say nothing to a model that does not know them.
UNUSED = [
    # Image statistics come from the config.
    r"pixel_(?:mean|std)",
    # A counter of BatchNorm, which a frozen one lacks.
    r".+\.num_batches_tracked",
    # How many models an average is of.
    r"n_averaged",
    # Caffe2's optimizer, classifier, and the bias its normalised stem does not need.
    r".+_momentum",
    r"fc1000_[wb]|pred_[wb]|conv1_b",
    # Classifiers of ImageNet: ResNet, ResNet as Detectron2 converts it, Swin and its last norm.
    r"fc\.(?:weight|bias)",
    r"stem\.fc\.(?:weight|bias)",
    r"head\.(?:fc\.)?(?:weight|bias)",
    r"norm\.(?:weight|bias)",
    # Swin's masks of shifted windows for one image size.
    r"layers\.\d+\.blocks\.\d+\.attn_mask",
]


def our_names(state: dict[str, Tensor], known: Collection[str]) -> dict[str, Tensor]:
    """Weights of a file under the names of a model.

    Args:
        state: as read.
        known: all names of the model; they are never renamed.

    Returns:
        Names without a rule are kept, so that a load report shows them.
    """
    if is_huggingface(state):
        state = from_huggingface(state)
    rules = RENAMES
    if not any(name.startswith("sem_seg_head.pixel_decoder.") for name in known):
        rules = [rule for rule in rules if rule is not _OLD_PIXEL_DECODER]  # heads of pixels
    if any(re.fullmatch(r"layers\.3\.downsample\..+", name) for name in state):
        rules = TIMM_SWIN + rules
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        new = _rename(name, rules, known)
        if new not in known and any(re.fullmatch(p, n) for p in UNUSED for n in (name, new)):
            continue
        # Two names for one parameter: the second is kept for the report.
        renamed[name if new in renamed else new] = value
    return renamed


def _rename(name: str, rules: list[tuple[str, str]], known: Collection[str]) -> str:
    for pattern, replacement in rules:
        if name in known:
            break
        if match := re.fullmatch(pattern, name):
            name = match.expand(replacement)
    return name
