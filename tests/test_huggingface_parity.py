"""Hugging Face's Mask2Former with the same weights gives the same logits."""

import pytest
import torch
from detectron2.modeling import build_model
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    ResNetConfig,
    SwinConfig,
)

import rankseg_m2f.modeling.mask_former  # noqa: F401  (registration)
from rankseg_m2f.config import get_cfg
from rankseg_m2f.engine.huggingface import from_huggingface, is_huggingface

STAGES = ["stage1", "stage2", "stage3", "stage4"]
BACKBONES = {
    "swin": SwinConfig(
        image_size=64,
        embed_dim=16,
        depths=[2, 1, 2, 1],
        num_heads=[1, 2, 4, 8],
        window_size=4,
        out_features=STAGES,
    ),
    "resnet50": ResNetConfig(
        embedding_size=8,
        hidden_sizes=[16, 32, 64, 128],
        depths=[3, 4, 6, 3],
        layer_type="bottleneck",
        out_features=STAGES,
    ),
}
OURS = {
    "swin": [
        *("MODEL.BACKBONE.NAME", "D2SwinTransformer", "MODEL.SWIN.EMBED_DIM", "16"),
        *("MODEL.SWIN.DEPTHS", "[2, 1, 2, 1]", "MODEL.SWIN.NUM_HEADS", "[1, 2, 4, 8]"),
        *("MODEL.SWIN.WINDOW_SIZE", "4"),
    ],
    "resnet50": [
        *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.STEM_TYPE", "basic"),
        *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"),
        *("MODEL.RESNETS.WIDTH_PER_GROUP", "4", "MODEL.RESNETS.STRIDE_IN_1X1", "False"),
        *("MODEL.RESNETS.OUT_FEATURES", "['res2', 'res3', 'res4', 'res5']"),
    ],
}
HEAD = [
    *("MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", "MaskFormer"),
    *("MODEL.SEM_SEG_HEAD.NAME", "MaskFormerHead", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "7"),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.SEM_SEG_HEAD.MASK_DIM", "24"),
    *("MODEL.SEM_SEG_HEAD.IN_FEATURES", "['res2', 'res3', 'res4', 'res5']"),
    *("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "MSDeformAttnPixelDecoder"),
    *("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "2"),
    *("MODEL.MASK_FORMER.HIDDEN_DIM", "32", "MODEL.MASK_FORMER.NHEADS", "4"),
    *("MODEL.MASK_FORMER.DIM_FEEDFORWARD", "64", "MODEL.MASK_FORMER.DEC_LAYERS", "5"),
    *("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "12", "MODEL.MASK_FORMER.DROPOUT", "0.0"),
    *("MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "multi_scale_pixel_decoder"),
]


def their_model(backbone: str) -> Mask2FormerForUniversalSegmentation:
    config = Mask2FormerConfig(
        backbone_config=BACKBONES[backbone],
        feature_size=32,
        mask_feature_size=24,
        hidden_dim=32,
        encoder_feedforward_dim=1024,
        encoder_layers=2,
        decoder_layers=5,
        num_attention_heads=4,
        dim_feedforward=64,
        num_queries=12,
        num_labels=7,
    )
    model = Mask2FormerForUniversalSegmentation(config).eval()
    # Freshly initialised offsets, biases and norm statistics are too tame to tell models apart.
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and name != "criterion.empty_weight":
                noise = torch.rand(value.shape, generator=generator) * 0.2
                value += noise if "running_var" in name else noise - 0.1
    return model


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_same_weights_same_logits(backbone):
    theirs = their_model(backbone)
    state = theirs.state_dict()
    cfg = get_cfg()
    cfg.merge_from_list([*HEAD, *OURS[backbone]])
    ours = build_model(cfg).eval()
    assert is_huggingface(state) and not is_huggingface(ours.state_dict())
    missing, unexpected = ours.load_state_dict(from_huggingface(state), strict=False)
    assert not unexpected
    assert all("relative_position_index" in key for key in missing)
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected = theirs(pixel_values=images, output_auxiliary_logits=True)
        layers = ours.sem_seg_head(ours.backbone(images), num_frames=1)
    close = {"rtol": 1e-4, "atol": 1e-4}
    masks = layers[-1].mask_logits.squeeze(2)
    torch.testing.assert_close(layers[-1].class_logits, expected.class_queries_logits, **close)
    torch.testing.assert_close(masks, expected.masks_queries_logits, **close)
    assert masks.std() > 0.1 and layers[-1].class_logits.std() > 0.1
