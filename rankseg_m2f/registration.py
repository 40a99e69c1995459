"""Registers every model, backbone and head of this project with Detectron2; import it for that."""

import rankseg_m2f.modeling.backbone.beit
import rankseg_m2f.modeling.backbone.resnet_v1c
import rankseg_m2f.modeling.backbone.swin
import rankseg_m2f.modeling.backbone.vit
import rankseg_m2f.modeling.backbone.vit_adapter
import rankseg_m2f.modeling.label_classifier
import rankseg_m2f.modeling.pixel.pixel_segmentor
import rankseg_m2f.modeling.query.mask_former  # noqa: F401
