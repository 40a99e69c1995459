"""One call for multi-scale deformable attention, whichever backend serves it.

Shapes: N images, S value tokens of all levels, M heads, D channels per head, Lq queries,
L levels, P points.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from rankseg_m2f.ops.reference import ms_deform_attn_torch

# Name -> implementation; the first that can serve the tensors' device is taken.
BACKENDS: dict[str, Callable[..., Tensor]] = {"torch": ms_deform_attn_torch}


def available_backends() -> dict[str, tuple[bool, str]]:
    """Each backend's name -> (usable here, reason)."""
    return {"torch": (True, "pure PyTorch, any device and dtype")}


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]] | Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    backend: str | None = None,
) -> Tensor:
    """Multi-scale deformable attention (Zhu et al., ICLR 2021).

    Samples each head's values bilinearly (zeros outside, ``align_corners=False``) and adds them
    up by weight.

    Args:
        value: (N, S, M, D) float, levels concatenated, each in row-major order.
        spatial_shapes: L pairs (height, width) with sum of products S. A tensor is accepted, at
            the price of a host synchronisation on a GPU.
        sampling_locations: (N, Lq, M, L, P, 2) float, (x, y) with [0, 1] spanning the level.
        attention_weights: (N, Lq, M, L, P) float.
        backend: a key of `BACKENDS`; None takes the first that serves.

    Returns:
        (N, Lq, M * D) float.

    Raises:
        ValueError: shapes or devices that do not fit together, or an unknown backend.
    """
    if isinstance(spatial_shapes, Tensor):
        spatial_shapes = spatial_shapes.tolist()
    spatial_shapes = [(int(h), int(w)) for h, w in spatial_shapes]
    _check(value, spatial_shapes, sampling_locations, attention_weights)
    if backend is None:
        backend = next(iter(BACKENDS))
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is none of {', '.join(BACKENDS)}")
    return BACKENDS[backend](value, spatial_shapes, sampling_locations, attention_weights)


def _check(value: Tensor, shapes: list, locations: Tensor, weights: Tensor) -> None:
    batch, tokens, heads = value.shape[:3]
    queries, levels, points = locations.shape[1], len(shapes), locations.shape[-2]
    if tokens != sum(h * w for h, w in shapes):
        raise ValueError(f"value has {tokens} tokens, spatial_shapes {shapes} another number")
    if locations.shape != (batch, queries, heads, levels, points, 2):
        raise ValueError(
            f"sampling_locations {tuple(locations.shape)} do not fit value "
            f"{tuple(value.shape)} with {levels} levels"
        )
    if weights.shape != locations.shape[:-1]:
        raise ValueError(
            f"attention_weights {tuple(weights.shape)} do not fit sampling_locations "
            f"{tuple(locations.shape)}"
        )
    if not value.device == locations.device == weights.device:
        raise ValueError(
            f"tensors on different devices: {value.device}, {locations.device}, {weights.device}"
        )
