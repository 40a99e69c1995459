"""Registers every model, backbone and head of this project with Detectron2; import it for that."""

import rankseg_m2f.modeling.label_classifier
import rankseg_m2f.modeling.pixel.pixel_segmentor
import rankseg_m2f.modeling.query.mask_former  # noqa: F401
