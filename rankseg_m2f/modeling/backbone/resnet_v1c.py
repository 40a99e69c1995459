"""ResNet-v1c with dilated stages, from the parts of Detectron2."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import BottleneckBlock, ResNet
from detectron2.projects.deeplab.resnet import DeepLabStem

from rankseg_m2f.errors import UserError

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@BACKBONE_REGISTRY.register()
def build_resnet_v1c_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """ResNet with a stem of three 3x3 convolutions, strides on the 3x3, dilations by stage.

    Keys read are those of MODEL.RESNETS: DEPTH, STEM_OUT_CHANNELS, RES2_OUT_CHANNELS, NUM_GROUPS,
    WIDTH_PER_GROUP, NORM, OUT_FEATURES, RES4_DILATION, RES5_DILATION; and BACKBONE.FREEZE_AT.
    Unlike Detectron2's DeepLab ResNet, the first block of a dilated stage has half the dilation.

    Raises:
        UserError: a depth that v1c does not have.
    """
    keys = cfg.MODEL.RESNETS
    if keys.DEPTH not in _BLOCKS:
        raise UserError(f"MODEL.RESNETS.DEPTH is {keys.DEPTH}, must be one of {list(_BLOCKS)}")
    stages = []
    channels, width = keys.STEM_OUT_CHANNELS, keys.NUM_GROUPS * keys.WIDTH_PER_GROUP
    out_channels = keys.RES2_OUT_CHANNELS
    dilations = (1, 1, keys.RES4_DILATION, keys.RES5_DILATION)
    for i, (count, dilation) in enumerate(zip(_BLOCKS[keys.DEPTH], dilations, strict=True)):
        stride = 1 if i == 0 or dilation > 1 else 2
        stage = ResNet.make_stage(
            BottleneckBlock,
            count,
            in_channels=channels,
            out_channels=out_channels,
            stride_per_block=[stride] + [1] * (count - 1),
            dilation_per_block=[max(dilation // 2, 1)] + [dilation] * (count - 1),
            bottleneck_channels=width,
            num_groups=keys.NUM_GROUPS,
            norm=keys.NORM,
            stride_in_1x1=False,
        )
        stages.append(stage)
        channels, out_channels, width = out_channels, out_channels * 2, width * 2
    stem = DeepLabStem(input_shape.channels, keys.STEM_OUT_CHANNELS, keys.NORM)
    model = ResNet(stem, stages, out_features=keys.OUT_FEATURES)
    return model.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
