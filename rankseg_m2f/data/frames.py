"""Which frames of a video make a clip, for training and for evaluation."""

import random
from random import Random
from types import ModuleType

from rankseg_m2f.errors import UserError


def sample_training_frames(
    length: int,
    rng: Random | ModuleType = random,
    *,
    num_frames: int,
    frame_range: int,
    shuffle: bool,
) -> list[int]:
    """A random frame and others near it, as the official YouTube-VIS recipe draws them.

    Frames are distinct while the neighbourhood has enough of them; beyond that they repeat as
    evenly as possible. The official code may repeat frames, which differs for more than two only.

    Args:
        length: frames of the video, at least 1.
        rng: what to draw from.
        num_frames: wanted, at least 1.
        frame_range: how far from the first drawn one the others may lie.
        shuffle: False: in order of time.

    Returns:
        `num_frames` indices in [0, length).

    Raises:
        UserError: a number is out of range.
    """
    _check(length, num_frames)
    if frame_range < 0:
        raise UserError(f"INPUT.SAMPLING_FRAME_RANGE={frame_range} must not be negative")
    reference = rng.randrange(length)
    near = range(max(0, reference - frame_range), min(length, reference + frame_range + 1))
    others = [i for i in near if i != reference]
    rounds, rest = divmod(num_frames, len(near))
    if rounds:
        frames = [*near] * rounds + rng.sample(near, rest)
    else:
        frames = [reference, *rng.sample(others, num_frames - 1)]
    return _ordered(frames, rng, shuffle)


def sample_interval_frames(
    length: int,
    rng: Random | ModuleType = random,
    *,
    num_frames: int,
    interval: int,
    shuffle: bool,
) -> list[int]:
    """Frames `interval` apart from a random start: the VSPW recipe without SAMPLING_RANDOM.

    In a video too short for that, they lie as far apart as it allows, and repeat if it has fewer
    than `num_frames`.

    Returns:
        `num_frames` indices in [0, length).

    Raises:
        UserError: a number is out of range.
    """
    _check(length, num_frames)
    if interval < 1:
        raise UserError(f"INPUT.SAMPLING_INTERVAL={interval} must be at least 1")
    if length < num_frames:
        frames = [i * length // num_frames for i in range(num_frames)]
    else:
        step = min(interval, (length - 1) // max(1, num_frames - 1))
        start = rng.randrange(length - step * (num_frames - 1))
        frames = [start + i * step for i in range(num_frames)]
    return _ordered(frames, rng, shuffle)


def evaluation_clips(length: int, clip_length: int) -> list[range]:
    """The video cut into neighbouring clips, the last one possibly shorter.

    Args:
        clip_length: frames per clip; 0: the whole video is one.

    Raises:
        UserError: `clip_length` is negative.
    """
    if clip_length < 0:
        raise UserError(f"clip_length={clip_length} must not be negative")
    step = clip_length or max(length, 1)
    return [range(start, min(start + step, length)) for start in range(0, length, step)]


def _check(length: int, num_frames: int) -> None:
    if num_frames < 1:
        raise UserError(f"INPUT.SAMPLING_FRAME_NUM={num_frames} must be at least 1")
    if length < 1:
        raise UserError("a video without frames")


def _ordered(frames: list[int], rng: Random, shuffle: bool) -> list[int]:
    frames = sorted(frames)
    if shuffle:
        rng.shuffle(frames)
    return frames
