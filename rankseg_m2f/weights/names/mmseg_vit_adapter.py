"""ViT-Adapter, whose names are ours but for the layer scale of its ViT."""

from rankseg_m2f.weights.names import official_beit, timm_vit
from rankseg_m2f.weights.names.rules import Source, rename, same

_EXTRACTORS = ("interactions.#.extractor.", "interactions.#.extra_extractors.#.")

MMSEG_VIT_ADAPTER = Source(
    name="ViT-Adapter",
    mark=r"(?:backbone\.)?spm\.stem\.0\.weight",
    rules=(
        *timm_vit.EMBEDDINGS,
        *timm_vit.BLOCK,
        *official_beit.BLOCK,
        rename("blocks.#.gamma1", "blocks.#.ls1.gamma"),
        rename("blocks.#.gamma2", "blocks.#.ls2.gamma"),
        *same("level_embed", "spm.stem.#.*", "spm.conv#.#.*", "spm.fc#.*", "up.*", "norm#.*"),
        *same(
            "interactions.#.injector.gamma",
            "interactions.#.injector.query_norm.*",
            "interactions.#.injector.feat_norm.*",
            "interactions.#.injector.attn.*.*",
        ),
        *(
            rule
            for part in _EXTRACTORS
            for rule in same(
                part + "query_norm.*",
                part + "feat_norm.*",
                part + "attn.*.*",
                part + "ffn_norm.*",
                part + "ffn.fc#.*",
                part + "ffn.dwconv.dwconv.*",
            )
        ),
    ),
    unused=(official_beit.COMPUTED,),
)
