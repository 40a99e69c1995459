"""Which labels are truly there: targets of the multi-label loss, and the oracle.

Shapes: B clips, K labels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def presence_of_labels(
    labels: Sequence[Tensor], num_labels: int, device: torch.device | None = None
) -> Tensor:
    """Presence from the labels of each clip's objects.

    Args:
        labels: B tensors (N,) of integer label ids; ids outside [0, K), such as 255, are ignored.

    Returns:
        (B, K) bool.
    """
    device = labels[0].device if device is None and len(labels) else device
    presence = torch.zeros(len(labels), num_labels + 1, dtype=torch.bool, device=device)
    for row, ids in zip(presence, labels, strict=True):
        ids = ids.long()
        known = (ids >= 0) & (ids < num_labels)
        # Index by values instead of boolean masks: no host synchronisation on a GPU.
        row.index_fill_(0, ids.masked_fill(~known, num_labels), True)
    return presence[:, :num_labels]


def presence_of_map(label_map: Tensor, num_labels: int) -> Tensor:
    """Presence from label maps.

    Args:
        label_map: (B, ...) integer label ids, anything outside [0, K) being ignored.

    Returns:
        (B, K) bool.
    """
    return presence_of_labels(list(label_map.flatten(1)), num_labels, label_map.device)
