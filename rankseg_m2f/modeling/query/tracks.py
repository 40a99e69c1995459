"""Objects of a video seen in overlapping windows.

An object is recognised in the next window by the frames both see and by class; class logits are
averaged over windows, so the labels of a track are ranked once, for the whole video.

Shapes: Q queries, M candidates, W frames of a window, K labels; h, w quarter of the padded input.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rankseg_m2f.modeling.query.inference import best_pairs
from rankseg_m2f.modeling.results import crop_and_resize, resize
from rankseg_m2f.modeling.segmentor import Tracks
from rankseg_m2f.rankseg.policy import CandidateLabels
from rankseg_m2f.structures.clip import Sizes
from rankseg_m2f.structures.predictions import DecoderPrediction, QueryPrediction

# Pairs kept as candidates per pair returned: an object weak in one window may win in the video.
_CANDIDATES = 3
# Overlap plus half the class agreement, each in [0, 1], that make two candidates one object: the
# class alone never does.
_SAME_OBJECT = 0.7


@dataclass
class Window:
    """Candidates of one window.

    Attributes:
        logits: (M, K + 1) class logits before ranking.
        scores: (M,) best score after ranking.
        coarse_masks: (M, W, h, w) bool.
        rles: M lists of run lengths, of the frames not seen before.
    """

    logits: Tensor
    scores: Tensor
    coarse_masks: Tensor
    rles: list[list[dict | None]]


@dataclass
class Track:
    """One object so far.

    Attributes:
        logits: (K + 1,) sum of the class logits of the windows it was found in.
        windows: their number.
        score: its best of them.
        coarse_masks: (W, h, w) bool of the last window; empty where it was not found.
        rles: run lengths of all frames so far, None where it was not found.
    """

    logits: Tensor
    windows: int
    score: float
    coarse_masks: Tensor
    rles: list[dict | None] = field(default_factory=list)

    def probabilities(self) -> Tensor:
        """(K + 1,) mean class probabilities before ranking."""
        return (self.logits / self.windows).softmax(-1)


class QueryTracks(Tracks):
    """Tracks of the queries of a mask transformer.

    Args:
        class_scores: `MaskFormer.class_scores`.
        limit: tracks to give.
        encode: see `Segmentor.tracks`.

    Attributes:
        tracks: so far.
        done: frames so far.
    """

    def __init__(
        self,
        class_scores: Callable[[QueryPrediction, CandidateLabels], Tensor],
        limit: int,
        encode: Callable[[np.ndarray], dict | None],
    ):
        self.class_scores = class_scores
        self.limit = limit
        self.encode = encode
        self.tracks: list[Track] = []
        self.done = 0

    def add(
        self, prediction: DecoderPrediction, candidates: CandidateLabels, sizes: Sizes, seen: int
    ) -> None:
        """See `Tracks.add`."""
        self.extend(self.objects(prediction.layers[-1], candidates, sizes, seen), seen)

    def objects(
        self, layer: QueryPrediction, candidates: CandidateLabels, sizes: Sizes, seen: int
    ) -> Window:
        """The objects of one window that may be among the best of the video."""
        scores = self.class_scores(layer, candidates)  # (Q, κ + 1)
        _, query, _ = best_pairs(scores[:, :-1], candidates.ids, _CANDIDATES * self.limit)
        chosen = query.unique()
        logits = layer.mask_logits[0, chosen]  # (M, W, h, w)
        masks = [
            (crop_and_resize(resize(frame.float(), sizes.padded), sizes.resized, sizes.output) > 0)
            .cpu()
            .numpy()
            for frame in logits[:, seen:].unbind(1)
        ]
        return Window(
            layer.class_logits[0, chosen].float(),
            scores[chosen, :-1].amax(1),
            logits > 0,
            [[self.encode(frame[i]) for frame in masks] for i in range(len(chosen))],
        )

    def extend(self, window: Window, seen: int) -> None:
        """Go on by the objects of one window, `seen` of whose frames were in the last one."""
        pairs = match(self.tracks, window, seen)
        new_frames = window.coarse_masks.shape[1] - seen
        for i, track in enumerate(self.tracks):
            if i not in pairs:
                track.rles += [None] * new_frames
                track.coarse_masks = window.coarse_masks.new_zeros(window.coarse_masks.shape[1:])
                continue
            j = pairs[i]
            track.logits = track.logits + window.logits[j]
            track.windows += 1
            track.score = max(track.score, window.scores[j].item())
            track.coarse_masks = window.coarse_masks[j]
            track.rles += window.rles[j]
        taken = set(pairs.values())
        tracks = self.tracks + [
            Track(logits, 1, score, window.coarse_masks[j], [None] * self.done + window.rles[j])
            for j, (logits, score) in enumerate(
                zip(window.logits, window.scores.tolist(), strict=True)
            )
            if j not in taken
        ]
        # The weakest of many are forgotten, or memory would grow with the video.
        tracks.sort(key=lambda track: track.score, reverse=True)
        self.tracks = tracks[: 4 * _CANDIDATES * self.limit]
        self.done += new_frames

    def results(self, candidates: CandidateLabels) -> dict:
        """See `Tracks.results`: the best (track, label) pairs."""
        if not self.tracks:
            return {"pred_scores": [], "pred_labels": [], "pred_masks": []}
        logits = torch.stack([track.logits / track.windows for track in self.tracks])[None]
        scores = self.class_scores(QueryPrediction(logits, logits, None), candidates)
        values, track, labels = best_pairs(scores[:, :-1], candidates.ids, self.limit)
        return {
            "pred_scores": values.tolist(),
            "pred_labels": labels.tolist(),
            "pred_masks": [self.tracks[i].rles for i in track.tolist()],
        }


def match(tracks: list[Track], window: Window, seen: int) -> dict[int, int]:
    """Track number -> candidate number, the most alike first."""
    if not tracks or not seen:
        return {}
    past = torch.stack([track.coarse_masks[-seen:] for track in tracks]).flatten(1).float()
    present = window.coarse_masks[:, :seen].flatten(1).float()
    shared = past @ present.T  # (tracks, M)
    union = past.sum(1, keepdim=True) + present.sum(1) - shared
    classes = torch.stack([track.probabilities() for track in tracks])
    agreement = classes @ window.logits.softmax(-1).T
    likeness = shared / union.clamp(min=1) + agreement / 2
    pairs: dict[int, int] = {}
    for flat in likeness.flatten().argsort(descending=True).tolist():
        i, j = divmod(flat, likeness.shape[1])
        if likeness[i, j] < _SAME_OBJECT:
            break
        if i not in pairs and j not in pairs.values():
            pairs[i] = j
    return pairs
