"""The original Segmenter, whose ViT is timm's; its decoder has the inner names of mmseg's head."""

from rankseg_m2f.weights.names.rules import Source, same
from rankseg_m2f.weights.names.timm_vit import BLOCK, CLASSIFIERS, EMBEDDINGS

ORIGINAL_SEGMENTER = Source(
    name="original Segmenter",
    mark=r"encoder\.patch_embed\.proj\.weight",
    rules=(*EMBEDDINGS, *BLOCK, *same("norm.*")),
    prefixes=("encoder.",),
    # The pretrained ViT's classifier is kept in their files.
    unused=CLASSIFIERS,
    outside=((r"decoder\.(.+)", r"decode_head.\1"),),
)
