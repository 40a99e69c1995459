"""Google's ViT (.npz of JAX), as AugReg was published."""

import torch
from torch import Tensor

from rankseg_m2f.weights.names.rules import Rule, Source, rename

_LAYER = "Transformer/encoderblock_#/"
_ATTENTION = _LAYER + "MultiHeadDotProductAttention_1/"
_QKV = ("query", "key", "value")


def _convolution(kernel: Tensor) -> Tensor:
    """(height, width, in, out) to (out, in, height, width)."""
    return kernel.permute(3, 2, 0, 1).contiguous()


def _transposed(kernel: Tensor) -> Tensor:
    """(in, out) to (out, in)."""
    return kernel.T.contiguous()


def _qkv_weight(*kernels: Tensor) -> Tensor:
    """Three of (C, heads, C / heads) to (3C, C)."""
    return torch.cat([kernel.flatten(1).T for kernel in kernels])


def _qkv_bias(*biases: Tensor) -> Tensor:
    """Three of (heads, C / heads) to (3C)."""
    return torch.cat([bias.flatten() for bias in biases])


def _output_weight(kernel: Tensor) -> Tensor:
    """(heads, C / heads, C) to (C, C)."""
    return kernel.flatten(0, 1).T.contiguous()


def _read_only(theirs: str, ours: str, join) -> Rule:
    return Rule((theirs,), ours, join, split=None)


GOOGLE_VIT = Source(
    name="Google ViT",
    mark=r"Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel",
    rules=(
        rename("cls", "cls_token"),
        rename("Transformer/posembed_input/pos_embedding", "pos_embed"),
        _read_only("embedding/kernel", "patch_embed.proj.weight", _convolution),
        rename("embedding/bias", "patch_embed.proj.bias"),
        rename("Transformer/encoder_norm/scale", "norm.weight"),
        rename("Transformer/encoder_norm/bias", "norm.bias"),
        rename(_LAYER + "LayerNorm_0/scale", "blocks.#.norm1.weight"),
        rename(_LAYER + "LayerNorm_0/bias", "blocks.#.norm1.bias"),
        rename(_LAYER + "LayerNorm_2/scale", "blocks.#.norm2.weight"),
        rename(_LAYER + "LayerNorm_2/bias", "blocks.#.norm2.bias"),
        Rule(
            tuple(f"{_ATTENTION}{word}/kernel" for word in _QKV),
            "blocks.#.attn.qkv.weight",
            _qkv_weight,
            split=None,
        ),
        Rule(
            tuple(f"{_ATTENTION}{word}/bias" for word in _QKV),
            "blocks.#.attn.qkv.bias",
            _qkv_bias,
            split=None,
        ),
        _read_only(_ATTENTION + "out/kernel", "blocks.#.attn.proj.weight", _output_weight),
        rename(_ATTENTION + "out/bias", "blocks.#.attn.proj.bias"),
        _read_only(_LAYER + "MlpBlock_3/Dense_0/kernel", "blocks.#.mlp.fc1.weight", _transposed),
        rename(_LAYER + "MlpBlock_3/Dense_0/bias", "blocks.#.mlp.fc1.bias"),
        _read_only(_LAYER + "MlpBlock_3/Dense_1/kernel", "blocks.#.mlp.fc2.weight", _transposed),
        rename(_LAYER + "MlpBlock_3/Dense_1/bias", "blocks.#.mlp.fc2.bias"),
    ),
    prefixes=("",),
    unused=(r"head/.+", r"pre_logits/.+"),
)
