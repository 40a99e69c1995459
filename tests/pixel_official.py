"""Official configurations of pixel segmentors as models of ours, and where their values are."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from rankseg_m2f.modeling.backbone.vit import LAST
from rankseg_m2f.modeling.pixel.heads.deeplab import ASPPHead
from rankseg_m2f.modeling.pixel.heads.enc import EncHead, EncSegmenterHead
from rankseg_m2f.modeling.pixel.heads.fcn import FCNHead
from rankseg_m2f.modeling.pixel.heads.sampled import SampledSegmenterHead
from rankseg_m2f.modeling.pixel.heads.segmenter import (
    LinearSegmenterHead,
    OracleSegmenterHead,
    RankedSegmenterHead,
    SegmenterHead,
)
from rankseg_m2f.modeling.pixel.heads.uper import UPerHead
from rankseg_m2f.modeling.pixel.pixel_segmentor import PixelSegmentor
from rankseg_m2f.modeling.results import InferenceOptions
from rankseg_m2f.rankseg.loss import asymmetric_loss, binary_loss
from rankseg_m2f.rankseg.pixel_label_head import PooledConvLabelHead, SeparableLabelHead
from rankseg_m2f.rankseg.policy import RankPolicy
from rankseg_m2f.rankseg.query2label import Query2LabelHead
from rankseg_m2f.rankseg.temperature import RankTemperature
from rankseg_m2f.weights.names.pixel_heads import rename_heads

MAPS = ("res2", "res3", "res4", "res5")
SEMANTIC = InferenceOptions(True, False, False, 0.0, 0.0, True, 100, 10, set(), False)


class GivenFeatures(nn.Module):
    """Stands in for a backbone: gives the features it was made with."""

    def __init__(self, features: dict[str, Tensor]):
        super().__init__()
        self.features = features

    def forward(self, _frames: Tensor) -> dict[str, Tensor]:
        return self.features


def build_segmentor(config: dict, backbone: nn.Module, **changes) -> PixelSegmentor:
    """Our model of an official configuration (MMSegmentation's, or the original Segmenter's).

    Args:
        changes: arguments of `PixelSegmentor` to replace.
    """
    original = "decode_head" not in config
    parts = _original_segmenter(config) if original else _parts(config["decode_head"])
    if "auxiliary_head" in config:
        node = config["auxiliary_head"]
        parts["aux_head"] = FCNHead(
            feature=MAPS[node["in_index"]],
            in_channels=node["in_channels"],
            channels=node["channels"],
            num_labels=node["num_classes"],
        )
        parts["aux_weight"] = node["loss_decode"]["loss_weight"]
    settings = {
        "backbone": backbone,
        "label_feature": "res5",
        "loss_mean": "counted" if original else "all",
        "inference_options": SEMANTIC,
        "label_loss_weight": 0.0,
        "pixel_mean": [0.0] * 3,
        "pixel_std": [1.0] * 3,
        # The original Segmenter cuts logits of the padded image; mmseg's are resized to the image.
        "size_divisibility": 16 if original else 1,
    }
    return PixelSegmentor(**settings | parts | changes)


def _parts(node: dict) -> dict:
    kind = node["type"].replace("RankSeg", "MLSeg")
    return BUILDERS[kind](node)


def plain(num_labels: int, **settings) -> RankPolicy:
    """The policy of a model that ranks nothing."""
    return RankPolicy(num_labels, num_labels, selection=False, **settings)


def rank_parts(kappa: int, num_labels: int, loss: dict | None, weight: float) -> dict:
    """Arguments of a model that ranks labels."""
    policy = RankPolicy(num_labels, kappa)
    return {
        "policy": policy,
        "ml_norm": RankTemperature(policy.ranks, void=False),
        "label_criterion": _label_criterion(loss),
        "label_loss_weight": weight,
    }


def _label_criterion(loss: dict | None) -> Callable[[Tensor, Tensor], Tensor]:
    if loss is None or loss["type"] != "AsymmetricLoss":
        return binary_loss
    return partial(asymmetric_loss, gamma_neg=loss["gamma_neg"], gamma_pos=loss["gamma_pos"])


def _original_segmenter(config: dict) -> dict:
    labels, width = config["n_cls"], config["d_model"]
    settings = {"feature": LAST, "in_channels": width, "num_labels": labels}
    if config["decoder"]["name"] == "linear":
        return {"policy": plain(labels), "sem_seg_head": LinearSegmenterHead(**settings)}
    # There a head has 64 channels, but the tiny golden one has as many heads as the encoder.
    heads = config["n_heads"] if width < 64 else None
    head = SegmenterHead(**settings, width=width, depth=config["decoder"]["n_layers"], heads=heads)
    return {"policy": plain(labels), "sem_seg_head": head}


def _decoder(node: dict) -> dict:
    """Arguments of `MaskTransformer`."""
    return {
        "feature": LAST,
        "in_channels": node["d_encoder"],
        "num_labels": node["n_cls"],
        "width": node["d_model"],
        "depth": node["n_layers"],
        "heads": node["n_heads"],
        "expansion": node["d_ff"] // node["d_model"],
        "dropout": node["dropout"],
    }


def _segmenter(node: dict) -> dict:
    return {"policy": plain(node["n_cls"]), "sem_seg_head": SegmenterHead(**_decoder(node))}


def _oracle_segmenter(node: dict) -> dict:
    policy = plain(node["n_cls"], oracle_train=True)
    return {"policy": policy, "sem_seg_head": OracleSegmenterHead(**_decoder(node))}


def _sampled_segmenter(node: dict) -> dict:
    settings = {"best": node["topk_cls"], "score_width": node["d_ess"]}
    head = SampledSegmenterHead(**_decoder(node), **settings)
    return {"policy": plain(node["n_cls"]), "sem_seg_head": head}


def _enc_segmenter(node: dict) -> dict:
    return {
        "policy": plain(node["n_cls"]),
        "sem_seg_head": EncSegmenterHead(**_decoder(node), num_codes=node["num_codes"]),
        "label_criterion": binary_loss,
        "label_loss_weight": 0.2,
    }


def _ranked_segmenter(node: dict) -> dict:
    head = RankedSegmenterHead(
        **_decoder(node),
        pool=node["downsample"] or 0,
        own_embeddings=not node.get("cls_emb_from_backbone", False),
    )
    weight, loss = node["img_loss_weight"], node.get("loss_img")
    return {"sem_seg_head": head, **rank_parts(node["topk_cls"], node["n_cls"], loss, weight)}


def _label_head_segmenter(node: dict) -> dict:
    inner = node["img_cls_head"]
    if "GlobalPooling" in inner["type"]:
        ml_head = PooledConvLabelHead(inner["n_cls"], inner["d_encoder"])
    else:
        ml_head = Query2LabelHead(
            inner["num_class"],
            inner["input_dim"],
            inner["hidden_dim"],
            shared_channels=node["d_model"] if inner["share_embedding"] else None,
            heads=inner["nhead"],
            hidden=inner["dim_feedforward"],
            depth=inner["num_decoder_layers"],
            side=inner["size"],
        )
    return {
        "sem_seg_head": SegmenterHead(**_decoder(node), ranked=True),
        "ml_head": ml_head,
        "label_feature": LAST,
        "label_pool": node["downsample"],
        **rank_parts(node["topk_cls"], node["n_cls"], node["loss_img"], node["img_loss_weight"]),
    }


def _classified(node: dict) -> tuple[dict, dict]:
    """Arguments of `ClassifiedPixels`, and of `PixelSegmentor`."""
    settings = {"channels": node["channels"], "num_labels": node["num_classes"]}
    rank = node.get("mlseg") or node.get("rankseg")
    if rank is None:
        return settings, {"policy": plain(node["num_classes"])}
    inner = rank["head"]
    ml_head = SeparableLabelHead(
        node["num_classes"],
        inner["d_encoder"],
        inner["hidden_dim"],
        inner["dropout"],
        shared_channels=node["channels"] if inner["share_embedding"] else None,
        heads=inner["n_heads"],
    )
    assert inner["d_ff"] == 4 * inner["hidden_dim"]
    return {**settings, "table": True}, {
        "ml_head": ml_head,
        "label_pool": inner.get("downsample") or 0,
        **rank_parts(rank["topk_cls"], node["num_classes"], rank["loss"], rank["img_loss_weight"]),
    }


def _deeplab(node: dict) -> dict:
    settings, parts = _classified(node)
    head = ASPPHead(
        feature=MAPS[node["in_index"]],
        in_channels=node["in_channels"],
        dilations=node["dilations"],
        **settings,
    )
    return {"sem_seg_head": head, **parts}


def _uper(node: dict) -> dict:
    settings, parts = _classified(node)
    head = UPerHead(
        features=[MAPS[i] for i in node["in_index"]],
        in_channels=node["in_channels"],
        pool_scales=node["pool_scales"],
        **settings,
    )
    return {"sem_seg_head": head, **parts}


def _enc(node: dict) -> dict:
    head = EncHead(
        feature=MAPS[node["in_index"][-1]],
        in_channels=node["in_channels"][-1],
        channels=node["channels"],
        num_labels=node["num_classes"],
        num_codes=node["num_codes"],
    )
    return {
        "policy": plain(node["num_classes"]),
        "sem_seg_head": head,
        "label_criterion": binary_loss,
        "label_loss_weight": node["loss_se_decode"]["loss_weight"],
    }


# By names of the official classes; RankSeg's have those of its first release.
BUILDERS = {
    "MaskTransformerHead": _segmenter,
    "MaskTransformerMLSegHead": _ranked_segmenter,
    "MaskTransformerMLSegDecoderHead": _label_head_segmenter,
    "MaskTransformerMLSegGTHead": _oracle_segmenter,
    "MaskTransformerEncHead": _enc_segmenter,
    "MaskTransformerNNCEESSNetHead": _sampled_segmenter,
    "ASPPHead": _deeplab,
    "ASPPMLSegHead": _deeplab,
    "UPerHead": _uper,
    "UPerMLSegHead": _uper,
    "EncHead": _enc,
}


def head_weights(weights: dict[str, object]) -> dict[str, object]:
    """Official weights by our names, without those of the backbone."""
    heads = {
        # The original Segmenter's.
        f"decode_head.{name.removeprefix('decoder.')}" if name.startswith("decoder.") else name: x
        for name, x in weights.items()
        if not name.startswith(("backbone.", "encoder."))
    }
    return rename_heads(heads)


def _output(_input: Tensor, output: Tensor) -> Tensor:
    return output


def _input(given: Tensor, _output: Tensor) -> Tensor:
    return given


def _as_tokens(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2) if maps.ndim == 4 else maps


def _channels_first(_input: Tensor, tokens: Tensor) -> Tensor:
    return tokens.transpose(1, 2)


# Official name of an intermediate: our modules, of which a model has one, and what of a module's
# input and output it is.
INTERMEDIATES = {
    # Of Segmenter's blocks the official record holds what the feed-forward layer adds.
    "ml_block": (("sem_seg_head.blocks.0.mlp", "ml_head.block"), _output),
    "block0": (("sem_seg_head.blocks.0.mlp",), _output),
    "ml_norm": (("sem_seg_head.decoder_norm2",), _output),
    "ml_proj": (("ml_head.proj_dec",), _channels_first),
    "ml_logits": (("sem_seg_head.ml_fc", "ml_head"), _output),
    "decoder_norm": (("sem_seg_head.decoder_norm",), _output),
    "cosine": (("ml_norm", "sem_seg_head.mask_norm"), lambda given, _: _as_tokens(given)),
    "mask_norm": (("ml_norm", "sem_seg_head.mask_norm"), lambda _, output: _as_tokens(output)),
    "rank_logits": (("ml_norm",), _input),
    "rank_norm": (("ml_norm",), _output),
    "bottleneck": (("sem_seg_head.bottleneck",), _output),
    "psp": (("sem_seg_head.bottleneck",), _output),
    "fpn_bottleneck": (("sem_seg_head.fpn_bottleneck",), _output),
    "image_pool": (("sem_seg_head.image_pool",), _output),
    "aspp0": (("sem_seg_head.aspp_modules.0",), _output),
    "aspp1": (("sem_seg_head.aspp_modules.1",), _output),
    "input_proj": (("ml_head.input_proj",), _output),
    "q2l_dec0": (("ml_head.transformer.decoder.layers.0",), _output),
    "q2l_dec1": (("ml_head.transformer.decoder.layers.1",), _output),
    "q2l_hs": (("ml_head.transformer.decoder",), _output),
    "gap_hidden": (("ml_head.1",), _channels_first),
    "enc_proj": (("sem_seg_head.enc_module.encoding_project",), _output),
    "encoding": (("sem_seg_head.enc_module.encoding.0",), _output),
    "enc_feat.0": (("sem_seg_head.enc_module",), lambda _, output: output[0]),
    "enc_feat.1": (("sem_seg_head.enc_module",), lambda _, output: output[1]),
    "enc.0": (("sem_seg_head.enc_module",), lambda _, output: output[0]),
    "enc.1": (("sem_seg_head.enc_module",), lambda _, output: output[1]),
    "se": (("sem_seg_head.se_layer",), _output),
}


def hooked_modules(model: nn.Module) -> dict[str, tuple[nn.Module, Callable]]:
    """Official names of intermediates: our module, and what to keep of its input and output."""
    modules = dict(model.named_modules())
    return {
        name: (modules[path], kept)
        for name, (paths, kept) in INTERMEDIATES.items()
        for path in paths
        if path in modules
    }
