"""How each Triton kernel is launched, per architecture: a table, so nothing is tuned at run time.

Made from what the compiler gives (benchmarks/kernel_resources.py), not from a clock: a thread
holds as many channels as 128 bits do, where registers then leave half of the warps an SM can hold.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Launch:
    """Numbers in a tile (rows times channels), and warps that hold it."""

    numbers: int
    warps: int = 4

    def rows(self, lanes: int) -> int:
        """Rows of a program where each has that many channels, a power of two."""
        return max(1, self.numbers // lanes)


# Four or eight channels to a thread: 128 bits of float32 or of a half type.
_FOUR, _EIGHT = Launch(512), Launch(1024)
# One: a warp adds 128 bytes at once, for want of wider atomics.
_ONE = Launch(128)

# Architecture -> kernel -> launch; an architecture takes the last row that is not above it.
# "backward" gives all gradients, "points" those of points and weights, "value" that of the value.
TABLE: dict[int, dict[str, Launch]] = {
    0: {
        "forward": _FOUR,
        "forward, half": _EIGHT,
        "from_offsets": _FOUR,
        "from_offsets, half": _EIGHT,
        # No atomics on vectors: together, the two halves would need 106 registers and 32 barriers.
        "points": _FOUR,
        "value": _ONE,
    },
    90: {
        # Eight channels to a thread need 112 registers here, which leaves a quarter of the warps.
        "backward": _FOUR,
    },
    100: {
        # Eight spill with four levels.
        "from_offsets, half": _FOUR,
    },
}


def launch(kernel: str, value: torch.Tensor, architecture: int) -> Launch:
    """The launch of a kernel for values of that type.

    Args:
        kernel: "forward", "from_offsets", "backward", "points" or "value".
        value: of which only the type is read.
        architecture: compute capability times ten.
    """
    names = (f"{kernel}, half", kernel) if value.itemsize == 2 else (kernel,)
    for least in sorted(TABLE, reverse=True):
        for name in names:
            if least <= architecture and name in TABLE[least]:
                return TABLE[least][name]
    raise ValueError(f"no launch of {kernel!r} for architecture {architecture}")


def has_vector_atomics(architecture: int) -> bool:
    """Whether four float32 can be added to memory at once."""
    return architecture >= 90


def architecture_of(device: torch.device) -> int:
    """Compute capability times ten; for Triton's interpreter, on a CPU, a common one."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
