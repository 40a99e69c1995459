"""Every config key this project adds to Detectron2, each with its why.

Keys and defaults of Mask2Former and RankSeg keep their official names, so official YAML files
load unchanged; keys of ours are marked (ours).
"""

import torch
from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.projects.deeplab import add_deeplab_config

from rankseg_m2f.config.node import Config


def get_cfg() -> Config:
    """A fresh config with every key of Detectron2, DeepLab, Mask2Former, RankSeg and ours."""
    plain = get_detectron2_cfg()
    add_rankseg_config(plain)
    cfg = Config(plain)
    # (ours) A machine without a GPU should not need an override to run.
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    return cfg


def add_rankseg_config(cfg: CfgNode) -> None:
    """Add the keys of DeepLab, Mask2Former, RankSeg and ours to a config of Detectron2, in place.

    On a plain ``CfgNode`` Detectron2's own YAML loader reads the files: it runs the code of the
    one official line that has some, and takes no int where the default is a float. `get_cfg`
    makes a config that does neither.
    """
    add_deeplab_config(cfg)
    _add_input(cfg)
    _add_solver(cfg)
    _add_test(cfg)
    _add_mask_former(cfg)
    _add_query_head(cfg)
    _add_swin(cfg)
    _add_vit(cfg)
    _add_rankseg(cfg)
    _add_pixel(cfg)
    # (ours) YAML files that describe your own datasets; see datasets/README.md.
    cfg.DATASETS.DEFINITIONS = []
    # Written by official RankSeg runs; accepted so that their dumped configs load.
    cfg.LOG_OUTPUT = None


def _add_input(cfg: CfgNode) -> None:
    # One of data.mappers.MAPPERS, or "multi_label" (ours) for META_ARCHITECTURE LabelClassifier.
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    cfg.INPUT.COLOR_AUG_SSD = False
    # A random crop is drawn again while one category fills more than this share of it.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    # Training images are padded to at least this side; -1: no padding in the mapper.
    cfg.INPUT.SIZE_DIVISIBILITY = -1
    # Large-scale jitter: resize IMAGE_SIZE by a factor in [MIN_SCALE, MAX_SCALE], then crop.
    # "multi_label": the side of the square.
    cfg.INPUT.IMAGE_SIZE = 1024
    cfg.INPUT.MIN_SCALE = 0.1
    cfg.INPUT.MAX_SCALE = 2.0
    # (ours) What augmentation moves out of the image stays a target with an empty mask, and a
    # label for the multi-label head, where the official mappers leave it: those of panoptic
    # segments and "mask_former_instance". False: only what the image shows is.
    cfg.INPUT.KEEP_UNSEEN_OBJECTS = True
    # Video: frames per training clip and how far from the first they may lie.
    cfg.INPUT.SAMPLING_FRAME_NUM = 2
    cfg.INPUT.SAMPLING_FRAME_RANGE = 20
    cfg.INPUT.SAMPLING_FRAME_SHUFFLE = False
    cfg.INPUT.SAMPLING_INTERVAL = 5
    cfg.INPUT.SAMPLING_RANDOM = True
    # Video: brightness, contrast, saturation, rotation.
    cfg.INPUT.AUGMENTATIONS = []
    # (ours) "multi_label" alone. RandAugment: operations per image (0: none), each of this
    # magnitude in [0, 30]; cutout: a rectangle of this share of each side is covered (0: none).
    cfg.INPUT.RAND_AUGMENT = CfgNode({"NUM_OPS": 2, "MAGNITUDE": 9})
    cfg.INPUT.CUTOUT = 0.5


def _add_solver(cfg: CfgNode) -> None:
    # "ADAMW" or "SGD"; (ours) also "ADAM", whose weight decay is part of the gradient.
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    # Learning-rate factor of ml_head (not of ml_norm, as in the official recipe).
    cfg.SOLVER.MLHEAD_MULTIPLIER = 1.0
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    # (ours) Weight decay of the label embeddings ml_head.cls_emb. The official rule meant to
    # exempt them never matched, so the published recipe decays them; None keeps that.
    cfg.SOLVER.WEIGHT_DECAY_LABEL_EMBED = None
    # (ours) Micro-batches per optimizer step; IMS_PER_BATCH stays the effective batch size.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # (ours) "float16" (with loss scaling) or "bfloat16" (without), used when AMP.ENABLED.
    cfg.SOLVER.AMP.DTYPE = "float16"
    # (ours) Decay per step of a moving average of the weights, which is then what is evaluated and
    # saved as the model; 0: none.
    cfg.SOLVER.EMA_DECAY = 0.0


def _add_test(cfg: CfgNode) -> None:
    # (ours) A metric of the evaluation, such as "labels/mAP" (with the dataset's name before it if
    # there are several): weights with the highest are kept as model_best.pth. Training ends after
    # PATIENCE evaluations in a row without a new best; 0: at MAX_ITER.
    cfg.TEST.EARLY_STOPPING = CfgNode({"METRIC": "", "PATIENCE": 0})
    # (ours) VSPW's kind of dataset: predicted label maps are kept, for its official scripts, as
    # OUTPUT_DIR/inference/NAME/predictions/VIDEO/FRAME.png with the ids of the dataset's own maps.
    cfg.TEST.DUMP_PREDICTIONS = False
    # (ours) Images are seen through windows of CROP (height, width) pixels, STRIDE apart, whose
    # logits are averaged; without it whole, at the size that INPUT.MIN_SIZE_TEST gives them.
    cfg.TEST.SLIDING = CfgNode({"ENABLED": False, "CROP": (512, 512), "STRIDE": (512, 512)})
    # With RankSeg labels are selected for each "window", as the official code does, so that a
    # label which one of two overlapping windows leaves out rarely wins there; or once for the
    # "image", by the window that shows a label best.
    cfg.TEST.SLIDING.SELECTION = "window"


def _add_mask_former(cfg: CfgNode) -> None:
    node = cfg.MODEL.MASK_FORMER = CfgNode()
    node.DEEP_SUPERVISION = True
    node.NO_OBJECT_WEIGHT = 0.1
    node.CLASS_WEIGHT = 1.0
    node.DICE_WEIGHT = 1.0
    node.MASK_WEIGHT = 20.0
    node.NHEADS = 8
    node.DROPOUT = 0.1
    node.DIM_FEEDFORWARD = 2048
    # StandardTransformerDecoder alone: encoder layers over the map it reads.
    node.ENC_LAYERS = 0
    # Counts the predictions: of the masked-attention decoder one from the learnable queries and one
    # after each layer, of StandardTransformerDecoder one after each layer.
    node.DEC_LAYERS = 6
    node.PRE_NORM = False
    node.HIDDEN_DIM = 256
    node.NUM_OBJECT_QUERIES = 100
    # What the query decoder reads: "multi_scale_pixel_decoder", the only choice of the
    # masked-attention decoder; or one map: "transformer_encoder", the coarsest map as the pixel
    # decoder's encoder leaves it, "pixel_embedding", the mask features, or one of the backbone.
    node.TRANSFORMER_IN_FEATURE = "res5"
    node.ENFORCE_INPUT_PROJ = False
    # MaskFormer's files name no decoder: where TRANSFORMER_IN_FEATURE is one map, this default
    # means "StandardTransformerDecoder".
    node.TRANSFORMER_DECODER_NAME = "MultiScaleMaskedTransformerDecoder"
    # (ours) Mask loss and cost: "points", Mask2Former's cross-entropy at TRAIN_NUM_POINTS points;
    # "focal", MaskFormer's focal loss over all pixels; "": as published with the decoder, since
    # official files of neither have a key for it.
    node.MASK_LOSS = ""
    # Input is padded to a multiple of this; negative: of what the backbone needs.
    node.SIZE_DIVISIBILITY = 32
    # Points per mask in matching and mask losses (PointRend's importance sampling).
    node.TRAIN_NUM_POINTS = 112 * 112
    node.OVERSAMPLE_RATIO = 3.0
    node.IMPORTANCE_SAMPLE_RATIO = 0.75

    node.TEST = CfgNode()
    node.TEST.SEMANTIC_ON = True
    node.TEST.INSTANCE_ON = False
    node.TEST.PANOPTIC_ON = False
    node.TEST.OBJECT_MASK_THRESHOLD = 0.0
    node.TEST.OVERLAP_THRESHOLD = 0.0
    # Resize masks to the output size before, rather than the semantic map after, inference.
    # Always so with RankSeg, its oracle and videos, whose official code does not read this key.
    node.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = False

    # (ours) Tracks given for a video: the ten of the official code, which does not read
    # TEST.DETECTIONS_PER_IMAGE there.
    node.TEST.DETECTIONS_PER_VIDEO = 10
    # (ours) Frames of a video seen at once, and how many of them the next window sees again, to
    # recognise objects; 0: all, as the official code. Memory does not grow with the video then.
    node.TEST.WINDOW = 0
    node.TEST.WINDOW_OVERLAP = 4


def _add_query_head(cfg: CfgNode) -> None:
    head = cfg.MODEL.SEM_SEG_HEAD
    head.MASK_DIM = 256
    head.PIXEL_DECODER_NAME = "BasePixelDecoder"
    head.TRANSFORMER_ENC_LAYERS = 0
    head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]
    # Official code ignores these two (it uses NHEADS and 4); so do we, so that its files agree.
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 4
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 8
    # Cosine classifier: L2-normalised query times L2-normalised class weight, no bias.
    head.USE_LAYERNORM = False
    # (ours) First value of a learnable scale on those cosines; 0: none, as the official code. The
    # control for RankSeg: without it a cosine classifier alone cannot become confident.
    head.COSINE_SCALE = 0.0


def _add_swin(cfg: CfgNode) -> None:
    node = cfg.MODEL.SWIN = CfgNode()
    node.PRETRAIN_IMG_SIZE = 224
    node.PATCH_SIZE = 4
    node.EMBED_DIM = 96
    node.DEPTHS = [2, 2, 6, 2]
    node.NUM_HEADS = [3, 6, 12, 24]
    node.WINDOW_SIZE = 7
    node.MLP_RATIO = 4.0
    node.QKV_BIAS = True
    node.QK_SCALE = None
    node.DROP_RATE = 0.0
    node.ATTN_DROP_RATE = 0.0
    node.DROP_PATH_RATE = 0.3
    node.APE = False
    node.PATCH_NORM = True
    node.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # Recompute blocks in the backward pass: less memory, about a third more time.
    node.USE_CHECKPOINT = False


def _add_vit(cfg: CfgNode) -> None:
    # (ours, as all of VIT, BEIT and VIT_ADAPTER) Backbone "ViT"; here ViT-B/16 of Segmenter.
    vit = cfg.MODEL.VIT = CfgNode()
    # Height and width that the position embedding is made for; images may have any size.
    vit.IMG_SIZE = [512, 512]
    vit.PATCH_SIZE = 16
    vit.EMBED_DIM = 768
    vit.DEPTH = 12
    vit.NUM_HEADS = 12
    vit.MLP_RATIO = 4.0
    # First value of a learnable factor on each update, as in DeiT III; None: no factor.
    vit.LAYER_SCALE = None
    # Grows linearly from 0 in the first block to this in the last.
    vit.DROP_PATH_RATE = 0.1
    # mmseg's 1e-6; the original Segmenter's weights were trained with 1e-5.
    vit.NORM_EPS = 1e-6
    vit.FINAL_NORM = True
    # How the position embedding is resized, in a file and at run time: mmseg's "bicubic", or the
    # original Segmenter's "bilinear".
    vit.POSITION_RESIZE = "bicubic"
    # When it is at run time: "tokens", if the number of patches differs, as the official code,
    # which leaves 1024x256 pixels with the embedding of 512x512; or "grid", if height or width do.
    vit.POSITION_TRIGGER = "tokens"
    # Blocks whose maps are given; empty: the last.
    vit.OUT_BLOCKS = []
    # Class embeddings that are tokens of the backbone ("cls_emb" of RankSeg's model zoo): how many,
    # 0 for none, and the block before which they join.
    vit.LABEL_TOKENS = 0
    vit.LABEL_TOKENS_FROM = 11
    # Recompute blocks in the backward pass: less memory, about a third more time.
    vit.USE_CHECKPOINT = False
    _add_beit(cfg)
    _add_vit_adapter(cfg)


def _add_beit(cfg: CfgNode) -> None:
    # Backbone "BEiT"; here BEiT-L of its UPerNet.
    beit = cfg.MODEL.BEIT = CfgNode()
    # Height and width of every image: relative position biases fit no other number of patches.
    beit.IMG_SIZE = [640, 640]
    beit.PATCH_SIZE = 16
    beit.EMBED_DIM = 1024
    beit.DEPTH = 24
    beit.NUM_HEADS = 16
    beit.MLP_RATIO = 4.0
    # First value of the learnable factor on each update.
    beit.INIT_VALUES = 1e-6
    beit.DROP_PATH_RATE = 0.2
    beit.NORM_EPS = 1e-6
    # Norm of the feature pyramid, one of detectron2.layers.get_norm.
    beit.NORM = "SyncBN"
    # The four blocks whose maps, raw, become res2..res5.
    beit.OUT_BLOCKS = [7, 11, 15, 23]
    beit.USE_CHECKPOINT = False


def _add_vit_adapter(cfg: CfgNode) -> None:
    # Backbones "BEiTAdapter" and "ViTAdapter", whose transformers are those of BEIT and VIT; the
    # position embedding of the latter follows the grid.
    adapter = cfg.MODEL.VIT_ADAPTER = CfgNode()
    # Width of the convolutional stem.
    adapter.CONV_CHANNELS = 64
    # First and last block of each of four interactions.
    adapter.INTERACTIONS = [[0, 5], [6, 11], [12, 17], [18, 23]]
    # Extractors after the last interaction's own.
    adapter.EXTRA_EXTRACTORS = 2
    # Hidden width of the pyramid's feed-forward layers over that of the transformer.
    adapter.FFN_RATIO = 0.25
    # Heads and points of deformable attention, and the width of its values over the transformer's.
    adapter.DEFORM_HEADS = 16
    adapter.DEFORM_POINTS = 4
    adapter.DEFORM_RATIO = 0.5
    adapter.NORM = "SyncBN"
    # "ViTAdapter" alone: for each block the side in patches of the windows its attention stays in,
    # 0: the whole image; empty: 0 for all.
    adapter.WINDOWS = []


def _add_rankseg(cfg: CfgNode) -> None:
    node = cfg.MODEL.RANKSEG = CfgNode()
    node.FLAG = False  # adds the multi-label head; False is plain Mask2Former
    # (ours) Form of ξ (Table 6): "encoder", the official transformer encoder layer; "decoder", two
    # decoder layers in which label embeddings query the features; "pooled", average and linear. Of
    # pixel segmentors also the official "separable" (DeepLabv3, UPerNet), "query2label", whose
    # map must be averaged to 16 x 16 (PIXEL.LABEL_POOL), and "gap".
    node.HEAD = "encoder"
    # κ of Eq. 2; larger than K means K (a pure sort).
    node.TOPK = 0
    # (ours) κ at evaluation (Table 4 at a fixed training κ); 0: TOPK.
    node.TOPK_EVAL = 0
    # (ours) Dynamic κ at evaluation, at most the above: only labels of at least this presence
    # probability (0: all), and only the first that hold this share of all probability (1: all).
    node.EVAL_MIN_SCORE = 0.0
    node.EVAL_MASS = 1.0
    node.LOSS_WEIGHT = 0.0
    # (ours) Multi-label loss: "asymmetric", which focuses on hard negatives by GAMMA_NEG (0 for
    # TranDec and GAP of Table 6), or "binary", the mean cross-entropy (EncNet, and the official
    # Segmenter ViT-B on COCO-Stuff).
    node.LABEL_LOSS = "asymmetric"
    node.GAMMA_NEG = 2.0
    node.HIDDEN_DIM = 512
    # The head's label embeddings are the segmentor's class weights, projected when widths differ.
    node.SHARE_EMBEDDING = False
    # Oracle, training and evaluation: only labels present in the ground truth can be predicted.
    node.USE_GT = False
    # (ours) The same at evaluation alone, "GT (eval)" of Fig. 3: as if an input's `label_hints`
    # were the labels of its ground truth. Unlike USE_GT it leaves the LayerNorm over ranks as
    # trained.
    node.USE_GT_EVAL = False
    # (ours) The official oracle spares the auxiliary layers; False repeats that.
    node.USE_GT_AUX = True
    # (ours) False keeps the multi-label loss and drops sort and selection: row "+ MT" of Table 1.
    node.SELECTION = True
    # (ours) "layernorm": the official LayerNorm over ranks; "rank": a plain learnable 1/τ per rank
    # (Eq. 3); "shared": one 1/τ for all ranks (row "+ MT + LS" of Table 1).
    node.TEMPERATURE = "layernorm"
    # (ours) First value of 1/τ for "rank" and "shared"; a cosine classifier needs 10 or more.
    node.TEMPERATURE_INIT = 1.0
    # (ours) With κ < K an untrained head starves the classifier: present labels outside the top κ
    # have no loss. Official runs have κ = K and never meet the question. While training,
    # "official": nothing is done about it; "keep_present": present labels displace the last-ranked
    # ones, whose temperatures can then learn what evaluation does not know; "schedule": κ shrinks
    # from K to TOPK; "all": κ is K, and TOPK at evaluation alone, where a LayerNorm over ranks
    # meets fewer ranks than it was trained with. The last two have K + 1 temperatures.
    # docs/EVIDENCE.md compares them.
    node.TRAIN_SELECTION = "official"
    # (ours) Shares of training between which a scheduled κ shrinks, linearly.
    node.TRAIN_SCHEDULE = (0.0, 0.5)
    # (ours) Decoder layer whose queries feed the head; 0: the learnable queries, which a
    # StandardTransformerDecoder does not have: it starts from zeros.
    node.QUERY_LAYER = 3
    node.DROPOUT = 0.1
    # (ours) Files of label scores, see rankseg_m2f.label_scores: labels are ranked by them in
    # training and at evaluation, and no head is made (the independent single-task scheme, Sec.
    # 3.2). Empty: the joint scheme, the model's own head.
    node.SCORES = []
    # (ours) True: `sem_seg` is the full (K, H, W) map even when κ < K (see SelectedScores).
    node.FULL_SEM_SEG = False


def _add_pixel(cfg: CfgNode) -> None:
    # All (ours), of META_ARCHITECTURE PixelSegmentor. Its head is MODEL.SEM_SEG_HEAD.NAME, with
    # IN_FEATURES, CONVS_DIM and NORM there.
    node = cfg.MODEL.PIXEL = CfgNode()
    # Convolutions of an FCNHead; 0: a linear classifier.
    node.NUM_CONVS = 1
    # Of whole channels, before the classifier.
    node.DROPOUT = 0.1
    # Map of the backbone from which an FCN head of so many channels predicts all labels while
    # training, and the weight of that loss; "": none.
    node.AUX_FEATURE = ""
    node.AUX_CHANNELS = 256
    node.AUX_WEIGHT = 0.4
    # Map of the backbone that the multi-label head reads, averaged to a grid of so many cells a
    # side (0: as it is).
    node.LABEL_FEATURE = "res5"
    node.LABEL_POOL = 0
    # Dilations of an ASPPHead (DeepLabv3), sides to which a UPerHead pools its coarsest map, and
    # codewords of EncNet's heads.
    node.DILATIONS = [1, 12, 24, 36]
    node.POOL_SCALES = [1, 2, 3, 6]
    node.NUM_CODES = 32
    # Segmenter's mask transformer: width (0: that of the map it reads), number of blocks, dropout.
    # A RankedSegmenterHead has one block more, 3 as published; it reads the map averaged to
    # LABEL_POOL, 8 as published, or 0 for ADE20K-Full and COCO+LVIS.
    node.DECODER = CfgNode()
    node.DECODER.WIDTH = 0
    node.DECODER.DEPTH = 2
    node.DECODER.DROPOUT = 0.1
    # ESSNet (SampledSegmenterHead): dimensions in which pixels and labels meet (0: all), and how
    # many labels of a pixel are compared.
    node.DECODER.SCORE_WIDTH = 0
    node.DECODER.BEST = 50
    # Cross-entropy is the mean over "all" pixels, ignored ones and those whose label is not
    # selected counting as 0, as in the official code; or over the "counted" ones alone.
    node.LOSS_MEAN = "all"
