"""One call for multi-scale deformable attention, whichever backend serves it.

Shapes: N images, S value tokens of all levels, M heads, D channels per head, Q queries,
L levels, P points.
"""

from collections.abc import Sequence

from torch import Tensor

from rankseg_m2f.ops.backends import available_backends  # noqa: F401  (part of this interface)
from rankseg_m2f.ops.operator import attend, attend_from_offsets


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]] | Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    backend: str | None = None,
) -> Tensor:
    """Multi-scale deformable attention (Zhu et al., ICLR 2021).

    Samples each head's values bilinearly (zeros outside, ``align_corners=False``) and adds them
    up by weight. Half types are summed in float32; under autocast all is float32. One operator,
    `rankseg_m2f::ms_deform_attn`, for autograd, torch.compile and torch.export.

    Args:
        value: (N, S, M, D) float, levels concatenated, each in row-major order.
        spatial_shapes: L pairs (height, width) with sum of products S. A tensor is accepted, at
            the price of a host synchronisation on a GPU.
        sampling_locations: (N, Q, M, L, P, 2) float, (x, y) with [0, 1] spanning the level.
        attention_weights: (N, Q, M, L, P) float.
        backend: a name of `backends.BACKENDS`; None takes that of the environment variable
            RANKSEG_M2F_MS_DEFORM_ATTN, else the first that serves.

    Returns:
        (N, Q, M * D), as `value`.

    Raises:
        ValueError: shapes or devices that do not fit together, or a backend that is unknown or
            cannot serve.
    """
    shapes = _flat(spatial_shapes)
    _check(value, shapes, sampling_locations, attention_weights)
    return attend(value, shapes, sampling_locations, attention_weights, backend or "")


def ms_deform_attn_from_offsets(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]] | Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    backend: str | None = None,
) -> Tensor:
    """Deformable self-attention from what a layer's two projections give.

    As `ms_deform_attn` where query i is token i of `value`: a point lies at the centre of the
    query's own pixel plus its offset, weights are the softmax of the logits over all L * P points
    of a head. Neither is written to memory or kept for the backward pass. One operator,
    `rankseg_m2f::ms_deform_attn_from_offsets`.

    Args:
        value: (N, S, M, D) float, levels concatenated, each in row-major order.
        spatial_shapes: L pairs (height, width) with sum of products S.
        sampling_offsets: (N, S, M, L, P, 2) float, (x, y) in pixels of the level read.
        attention_logits: (N, S, M, L, P) float.
        backend: as for `ms_deform_attn`.

    Returns:
        (N, S, M * D), as `value`.

    Raises:
        ValueError: shapes or devices that do not fit together, or a backend that is unknown or
            cannot serve.
    """
    shapes = _flat(spatial_shapes)
    _check(value, shapes, sampling_offsets, attention_logits, "sampling_offsets, attention_logits")
    if sampling_offsets.shape[1] != value.shape[1]:
        raise ValueError(
            f"{sampling_offsets.shape[1]} queries are not the {value.shape[1]} tokens of value"
        )
    return attend_from_offsets(value, shapes, sampling_offsets, attention_logits, backend or "")


def _flat(spatial_shapes: Sequence[tuple[int, int]] | Tensor) -> list[int]:
    if isinstance(spatial_shapes, Tensor):
        spatial_shapes = spatial_shapes.tolist()
    return [int(side) for size in spatial_shapes for side in size]


def _check(
    value: Tensor,
    shapes: list[int],
    locations: Tensor,
    weights: Tensor,
    names: str = "sampling_locations, attention_weights",
) -> None:
    first, second = names.split(", ")
    batch, tokens, heads = value.shape[:3]
    queries, levels, points = locations.shape[1], len(shapes) // 2, locations.shape[-2]
    if tokens != sum(h * w for h, w in zip(shapes[::2], shapes[1::2], strict=True)):
        raise ValueError(f"value has {tokens} tokens, spatial_shapes {shapes} another number")
    if locations.shape != (batch, queries, heads, levels, points, 2):
        raise ValueError(
            f"{first} {tuple(locations.shape)} do not fit value "
            f"{tuple(value.shape)} with {levels} levels"
        )
    if weights.shape != locations.shape[:-1]:
        raise ValueError(
            f"{second} {tuple(weights.shape)} do not fit {first} {tuple(locations.shape)}"
        )
    if not value.device == locations.device == weights.device:
        raise ValueError(
            f"tensors on different devices: {value.device}, {locations.device}, {weights.device}"
        )
