"""Official configurations of pixel segmentors as our heads, and official names of intermediates."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from rankseg_m2f.modeling.pixel.heads.classified import FCNHead
from rankseg_m2f.modeling.pixel.heads.deeplab import ASPPHead
from rankseg_m2f.modeling.pixel.heads.enc import EncHead, EncSegmenterHead
from rankseg_m2f.modeling.pixel.heads.pixel_head import PixelHead
from rankseg_m2f.modeling.pixel.heads.sampled import SampledSegmenterHead
from rankseg_m2f.modeling.pixel.heads.segmenter import (
    LabelHeadSegmenterHead,
    LinearSegmenterHead,
    OracleSegmenterHead,
    RankedSegmenterHead,
    SegmenterHead,
)
from rankseg_m2f.modeling.pixel.heads.uper import UPerHead
from rankseg_m2f.rankseg.loss import asymmetric_loss, binary_loss
from rankseg_m2f.rankseg.map_head import MapLabelHead, PooledMapHead
from rankseg_m2f.rankseg.query2label import Query2Label
from rankseg_m2f.rankseg.temperature import RankTemperature

MAPS = ("res2", "res3", "res4", "res5")


@dataclass
class Heads:
    """The heads of a segmentor, and what its losses need.

    Attributes:
        auxiliary_head: None without one.
        kappa: κ, where labels are ranked.
        label_loss: weighted, of presence logits and presence.
        gates: presence gates channels (EncNet), and selects nothing.
        oracle: the decoder sees the labels of the ground truth alone.
    """

    decode_head: PixelHead
    auxiliary_head: PixelHead | None = None
    kappa: int = 0
    label_loss: Callable[[Tensor, Tensor], Tensor] | None = None
    gates: bool = False
    oracle: bool = False

    @property
    def modules(self) -> dict[str, nn.Module]:
        """By the first word of the official names."""
        heads = {"decode_head": self.decode_head, "auxiliary_head": self.auxiliary_head}
        return {name: head for name, head in heads.items() if head is not None}


def build_heads(config: dict) -> Heads:
    """Our heads of an official configuration (MMSegmentation's, or the original Segmenter's)."""
    if "decode_head" not in config:
        return _original_segmenter(config)
    node = config["decode_head"]
    kind = node["type"].replace("RankSeg", "MLSeg")
    heads = BUILDERS[kind](node)
    if "auxiliary_head" in config:
        node = config["auxiliary_head"]
        heads.auxiliary_head = FCNHead(
            node["num_classes"], MAPS[node["in_index"]], node["in_channels"], node["channels"]
        )
    return heads


def _original_segmenter(config: dict) -> Heads:
    labels, width = config["n_cls"], config["d_model"]
    if config["decoder"]["name"] == "linear":
        return Heads(LinearSegmenterHead(labels, "last", width))
    settings = {"width": width, "heads": max(1, width // 64) if width > 64 else config["n_heads"]}
    depth = config["decoder"]["n_layers"]
    return Heads(SegmenterHead(labels, "last", width, depth=depth, **settings))


def _decoder(node: dict) -> dict:
    """Arguments of `MaskTransformer`."""
    return {
        "num_labels": node["n_cls"],
        "in_feature": "last",
        "in_channels": node["d_encoder"],
        "width": node["d_model"],
        "depth": node["n_layers"],
        "heads": node["n_heads"],
        "expansion": node["d_ff"] // node["d_model"],
        "dropout": node["dropout"],
    }


def _label_loss(node: dict | None, weight: float) -> Callable[[Tensor, Tensor], Tensor]:
    loss = binary_loss
    if node is not None and node["type"] == "AsymmetricLoss":
        loss = partial(asymmetric_loss, gamma_neg=node["gamma_neg"], gamma_pos=node["gamma_pos"])
    return lambda presence_logits, presence: weight * loss(presence_logits, presence)


def _temperature(kappa: int, num_labels: int) -> RankTemperature:
    return RankTemperature(min(kappa, num_labels), void=False)


def _segmenter(node: dict) -> Heads:
    return Heads(SegmenterHead(**_decoder(node)))


def _oracle_segmenter(node: dict) -> Heads:
    return Heads(OracleSegmenterHead(**_decoder(node)), oracle=True)


def _sampled_segmenter(node: dict) -> Heads:
    head = SampledSegmenterHead(**_decoder(node), best=node["topk_cls"], score_width=node["d_ess"])
    return Heads(head)


def _enc_segmenter(node: dict) -> Heads:
    head = EncSegmenterHead(**_decoder(node), num_codes=node["num_codes"])
    return Heads(head, label_loss=_label_loss(None, 0.2), gates=True)


def _ranked_segmenter(node: dict) -> Heads:
    head = RankedSegmenterHead(
        **_decoder(node),
        pool=node["downsample"],
        own_embeddings=not node.get("cls_emb_from_backbone", False),
        temperature=_temperature(node["topk_cls"], node["n_cls"]),
    )
    loss = _label_loss(node.get("loss_img"), node["img_loss_weight"])
    return Heads(head, kappa=node["topk_cls"], label_loss=loss)


def _label_head_segmenter(node: dict) -> Heads:
    settings, inner = _decoder(node), node["img_cls_head"]
    shares = inner.get("share_embedding", False)
    if "GlobalPooling" in inner["type"]:
        img_cls_head = PooledMapHead(inner["n_cls"], inner["d_encoder"], node["downsample"])
    else:
        img_cls_head = Query2Label(
            inner["num_class"],
            inner["input_dim"],
            inner["hidden_dim"],
            heads=inner["nhead"],
            hidden=inner["dim_feedforward"],
            depth=inner["num_decoder_layers"],
            pool=inner["size"],
            shared_channels=settings["width"] if shares else None,
        )
    head = LabelHeadSegmenterHead(
        **settings,
        img_cls_head=img_cls_head,
        shares_embeddings=shares,
        temperature=_temperature(node["topk_cls"], node["n_cls"]),
    )
    loss = _label_loss(node.get("loss_img"), node["img_loss_weight"])
    return Heads(head, kappa=node["topk_cls"], label_loss=loss)


def _ranked_settings(node: dict) -> tuple[dict, dict]:
    """Arguments of `ClassifiedPixels`, and of `Heads`."""
    if "mlseg" not in node and "rankseg" not in node:
        return {}, {}
    node = {**node, **(node.get("mlseg") or node["rankseg"])}
    inner = node["head"]
    labels, width, shares = node["num_classes"], inner["hidden_dim"], inner["share_embedding"]
    img_cls_head = MapLabelHead(
        labels,
        inner["d_encoder"],
        width,
        heads=inner["n_heads"],
        expansion=inner["d_ff"] // width,
        dropout=inner["dropout"],
        pool=inner.get("downsample"),
        shared_channels=node["channels"] if shares else None,
    )
    temperature = _temperature(node["topk_cls"], labels)
    return {
        "img_cls_head": img_cls_head,
        "shares_embeddings": shares,
        "temperature": temperature,
    }, {
        "kappa": node["topk_cls"],
        "label_loss": _label_loss(node["loss"], node["img_loss_weight"]),
    }


def _deeplab(node: dict) -> Heads:
    settings, losses = _ranked_settings(node)
    head = ASPPHead(
        node["num_classes"],
        MAPS[node["in_index"]],
        node["in_channels"],
        node["channels"],
        dilations=node["dilations"],
        **settings,
    )
    return Heads(head, **losses)


def _uper(node: dict) -> Heads:
    settings, losses = _ranked_settings(node)
    head = UPerHead(
        node["num_classes"],
        [MAPS[i] for i in node["in_index"]],
        node["in_channels"],
        node["channels"],
        pool_scales=node["pool_scales"],
        **settings,
    )
    return Heads(head, **losses)


def _enc(node: dict) -> Heads:
    head = EncHead(
        node["num_classes"],
        MAPS[node["in_index"][-1]],
        node["in_channels"][-1],
        node["channels"],
        num_codes=node["num_codes"],
    )
    weight = node["loss_se_decode"]["loss_weight"]
    return Heads(head, label_loss=_label_loss(None, weight), gates=True)


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


def _output(_input: Tensor, output: Tensor) -> Tensor:
    return output


def _input_over_ranks(inputs: Tensor, _output: Tensor) -> Tensor:
    """What a norm over ranks is given, maps as tokens (N, L, κ)."""
    return inputs.flatten(2).transpose(1, 2) if inputs.ndim == 4 else inputs


def _output_over_ranks(_input: Tensor, output: Tensor) -> Tensor:
    """What a norm over ranks gives, maps as tokens (N, L, κ)."""
    return output.flatten(2).transpose(1, 2) if output.ndim == 4 else output


def _given(inputs: Tensor, _output: Tensor) -> Tensor:
    return inputs


# Official name of an intermediate: path of our module inside decode_head, and what of its input
# and output that is. Paths that a head lacks are passed over.
INTERMEDIATES = {
    # Of Segmenter's blocks the official record holds the feed-forward layer's share.
    "ml_block": [("blocks.0.mlp", _output), ("img_cls_head.block", _output)],
    "block0": [("blocks.0.mlp", _output)],
    "ml_norm": [("decoder_norm2", _output)],
    "ml_proj": [("img_cls_head.proj_dec", _output)],
    "ml_logits": [("ml_fc", _output), ("img_cls_head.fc", _output), ("img_cls_head", _output)],
    "decoder_norm": [("decoder_norm", _output)],
    "cosine": [("mask_norm", _input_over_ranks)],
    "mask_norm": [("mask_norm", _output_over_ranks)],
    "rank_logits": [("norm", _given)],
    "rank_norm": [("norm", _output)],
    "bottleneck": [("bottleneck", _output)],
    "psp": [("bottleneck", _output)],
    "fpn_bottleneck": [("fpn_bottleneck", _output)],
    "image_pool": [("image_pool", _output)],
    "aspp0": [("aspp_modules.0", _output)],
    "aspp1": [("aspp_modules.1", _output)],
    "input_proj": [("img_cls_head.input_proj", _output)],
    "q2l_dec0": [("img_cls_head.transformer.decoder.layers.0", _output)],
    "q2l_dec1": [("img_cls_head.transformer.decoder.layers.1", _output)],
    "q2l_hs": [("img_cls_head.transformer.decoder", _output)],
    "gap_hidden": [("img_cls_head.1", _output)],
    "enc_proj": [("enc_module.encoding_project", _output)],
    "encoding": [("enc_module.encoding.0", _output)],
    "enc_feat.0": [("enc_module", lambda _input, output: output[0])],
    "enc_feat.1": [("enc_module", lambda _input, output: output[1])],
    "enc.0": [("enc_module", lambda _input, output: output[0])],
    "enc.1": [("enc_module", lambda _input, output: output[1])],
    "se": [("se_layer", _output)],
}


def hooked_modules(head: nn.Module) -> dict[str, tuple[nn.Module, Callable]]:
    """Official names of intermediates: our module, and what to keep of its input and output."""
    modules = dict(head.named_modules())
    hooked = {}
    for name, places in INTERMEDIATES.items():
        for path, kept in places:
            if path in modules:
                hooked.setdefault(name, (modules[path], kept))
    return hooked
