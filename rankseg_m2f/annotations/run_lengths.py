"""COCO's run lengths (RLE), decoded and checked in numpy.

pycocotools trusts them: of runs that are too short or garbage it reads beyond its memory, never
ends or crashes. So nothing reaches it that has not been here.

The text holds runs of pixels, column by column, that alternate between outside and inside. A run
is written in characters of 5 bits (code - 48, lowest bits first; bit 32: another one follows; bit
16 of the last: negative); from the fourth run on it is the difference to the run two before.

Shapes: N texts, C characters and R runs of all of them together.
"""

from collections.abc import Sequence

import numpy as np

_FIRST, _BITS, _MORE, _NEGATIVE = 48, 5, 32, 16
# 35 bits: more than any run of an image that can be read needs.
_MAX_CHARACTERS = 7
# Characters decoded at a time, to bound memory.
_BATCH = 1 << 21


def decoded_runs(text: bytes) -> np.ndarray:
    """(R,) int64 runs of one compressed mask.

    Raises:
        ValueError: not COCO's code.
    """
    runs, _, broken = _decode([text])
    if broken[0]:
        raise ValueError("its counts are not COCO's compressed run lengths")
    return runs


def run_totals(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """What compressed masks cover, a few million characters at a time.

    Returns:
        (N,) int64 sum of runs; (N,) bool, whether it is COCO's code and no run is negative.
    """
    totals, sound = [], []
    batch, length = [], 0
    for text in (*texts, None):
        if batch and (text is None or length + len(text) > _BATCH):
            runs, owner, broken = _decode(batch)
            broken[owner[runs < 0]] = True
            total = np.zeros(len(batch), dtype=np.int64)
            np.add.at(total, owner, runs)
            totals.append(total)
            sound.append(~broken)
            batch, length = [], 0
        if text is not None:
            batch.append(text)
            length += len(text)
    empty = np.zeros(0, dtype=np.int64)
    return np.concatenate([empty, *totals]), np.concatenate([empty.astype(bool), *sound])


def _decode(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(R,) runs of all texts in turn, (R,) the text that each is of, (N,) bool: not decodable."""
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    broken = np.zeros(len(texts), dtype=bool)
    codes = np.frombuffer(b"".join(texts), dtype=np.uint8).astype(np.int64) - _FIRST  # (C,)
    if not len(codes):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), broken
    text_of = np.repeat(np.arange(len(texts)), lengths)
    broken[text_of[(codes < 0) | (codes >= 2 * _MORE)]] = True
    ends = (codes & _MORE) == 0
    last = lengths.cumsum()[lengths > 0] - 1
    broken[text_of[last[~ends[last]]]] = True
    # A text that breaks off must not run into the next one.
    ends[last] = True
    stop = np.flatnonzero(ends)
    start = np.append(0, stop[:-1] + 1)
    size = stop - start + 1
    broken[text_of[start[size > _MAX_CHARACTERS]]] = True
    place = np.minimum(np.arange(len(codes)) - np.repeat(start, size), _MAX_CHARACTERS)
    value = np.add.reduceat((codes & (_MORE - 1)) << (_BITS * place), start)
    negative = (codes[stop] & _NEGATIVE) != 0
    value -= np.where(negative, 1 << (_BITS * np.minimum(size, _MAX_CHARACTERS + 1)), 0)
    return _without_differences(value, text_of[start]), text_of[start], broken


def _without_differences(value: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """(R,) runs from what is written: sums along odd ones, and along even ones from 2 on."""
    first = np.searchsorted(owner, owner)
    number = np.arange(len(value)) - first
    chain = 3 * owner + np.where(number == 0, 0, 2 - number % 2)
    order = np.argsort(chain, kind="stable")
    begins = np.flatnonzero(np.diff(chain[order], prepend=-1))
    sums = value[order].cumsum()
    before = np.append(0, sums)[begins]
    sums -= np.repeat(before, np.diff(begins, append=len(value)))
    runs = np.empty_like(value)
    runs[order] = sums
    return runs
