"""Long videos in overlapping windows; only results (run lengths, label maps) grow with them.

Each window is seen as a clip of its own. Its objects are recognised in the next window by
the frames both see and by class; class logits and label scores are averaged over windows, so the
labels of a track are ranked once, for the whole video.

Shapes: Q queries, M candidates, W frames of a window, O frames seen again, K labels;
h, w quarter of the padded input.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rankseg_m2f.errors import UserError
from rankseg_m2f.evaluation.rle import encode
from rankseg_m2f.modeling.inference import best_pairs, crop_and_resize, resize
from rankseg_m2f.modeling.mask_former import MaskFormer
from rankseg_m2f.modeling.ranking import label_results
from rankseg_m2f.rankseg.selection import SelectedLabels
from rankseg_m2f.structures.clip import Sizes
from rankseg_m2f.structures.predictions import LabelMaps, QueryPrediction

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


class WindowedModel(nn.Module):
    """A `MaskFormer` for videos of any length; takes and gives what the model does, but for masks.

    `pred_masks` are lists of run lengths (None where an object is not seen).
    """

    def __init__(self, model: MaskFormer, window: int, overlap: int):
        """
        Args:
            window: W.
            overlap: O, in [1, W).

        Raises:
            UserError: a model that segments nothing, or an overlap out of its range.
        """
        super().__init__()
        if not isinstance(model, MaskFormer):
            raise UserError(
                "windows of a video need a segmentor (MODEL.META_ARCHITECTURE), and "
                f"{type(model).__name__} is none"
            )
        if not 1 <= overlap < window:
            raise UserError(
                f"MODEL.MASK_FORMER.TEST.WINDOW_OVERLAP={overlap} must be at least 1 and less than "
                f"WINDOW={window}"
            )
        self.model = model
        self.window = window
        self.overlap = overlap
        self.train(model.training)

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Results of each video; `image` may be any iterable of frames, read once.

        Images go to the model as they are.

        Raises:
            UserError: a video without frames.
        """
        if all(isinstance(x["image"], Tensor) for x in batched_inputs):
            return self.model(batched_inputs)
        return [self.video(x) for x in batched_inputs]

    def video(self, sample: dict) -> dict:
        """Results of one video."""
        options = self.model.inference_options
        results: dict = {}
        found_logits, label_maps, tracks = [], [], []
        done = 0
        for frames, seen in windows(sample["image"], self.window, self.overlap):
            inputs = [{**sample, "image": frames}]
            clips, layers, presence_logits = self.model.decode(inputs)
            (selection,) = self.model.selections(inputs, clips)
            selected = self.model.select_labels(presence_logits, selection)
            sizes = clips.sizes_of(0)
            found_logits.append(presence_logits)
            if options.semantic:
                label_maps.append(self.labels(layers[-1], selected, sizes, seen))
            if options.instance:
                found = self.candidates(layers[-1], selected, sizes, seen)
                tracks = self.continued(tracks, found, seen, done)
            done += len(frames) - seen
        mean = None if presence_logits is None else torch.stack(found_logits).mean(0)
        selected = self.model.select_labels(mean, selection)
        if options.semantic:
            results["sem_seg"] = LabelMaps(torch.cat(label_maps))
        if options.instance:
            results |= self.best(tracks, selected)
            results["image_size"] = sizes.output
        if mean is not None:
            results |= label_results(mean[0], selected)
        return results

    def labels(
        self, layer: QueryPrediction, selected: SelectedLabels, sizes: Sizes, seen: int
    ) -> Tensor:
        """(W - seen, height, width) int16 labels of the new frames of one window, on the CPU."""
        scores = self.model.class_scores(layer, selected)
        maker = self.model.result_maker()
        # Scores, if MODEL.RANKSEG.FULL_SEM_SEG asks for them, would not fit for a whole video.
        labels = [
            maker.semantic_frame(scores[:, :-1], selected.ids, logits, sizes).argmax(0)
            for logits in layer.mask_logits[0, :, seen:].unbind(1)
        ]
        # All that grows with the video: two bytes a pixel.
        return torch.stack(labels).to(torch.int16).cpu()

    def candidates(
        self, layer: QueryPrediction, selected: SelectedLabels, sizes: Sizes, seen: int
    ) -> Window:
        """The objects of one window that may be among the best of the video."""
        scores = self.model.class_scores(layer, selected)
        limit = _CANDIDATES * self.model.inference_options.max_tracks
        _, query, _ = best_pairs(scores[:, :-1], selected.ids, limit)
        chosen = query.unique()
        logits = layer.mask_logits[0, chosen]
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
            [[encode(frame[i]) for frame in masks] for i in range(len(chosen))],
        )

    def continued(self, tracks: list[Track], found: Window, seen: int, done: int) -> list[Track]:
        """Tracks after one more window; `seen` of its frames were in the last, `done` before."""
        pairs = match(tracks, found, seen)
        new_frames = found.coarse_masks.shape[1] - seen
        for i, track in enumerate(tracks):
            if i not in pairs:
                track.rles += [None] * new_frames
                track.coarse_masks = found.coarse_masks.new_zeros(found.coarse_masks.shape[1:])
                continue
            j = pairs[i]
            track.logits = track.logits + found.logits[j]
            track.windows += 1
            track.score = max(track.score, found.scores[j].item())
            track.coarse_masks = found.coarse_masks[j]
            track.rles += found.rles[j]
        taken = set(pairs.values())
        tracks = tracks + [
            Track(logits, 1, score, found.coarse_masks[j], [None] * done + found.rles[j])
            for j, (logits, score) in enumerate(
                zip(found.logits, found.scores.tolist(), strict=True)
            )
            if j not in taken
        ]
        # The weakest of many are forgotten, or memory would grow with the video.
        tracks.sort(key=lambda track: track.score, reverse=True)
        return tracks[: 4 * _CANDIDATES * self.model.inference_options.max_tracks]

    def best(self, tracks: list[Track], selected: SelectedLabels) -> dict:
        """The best (track, label) pairs among the labels selected for the whole video."""
        if not tracks:
            return {"pred_scores": [], "pred_labels": [], "pred_masks": []}
        logits = torch.stack([track.logits / track.windows for track in tracks])[None]
        scores = self.model.class_scores(QueryPrediction(logits, logits, None), selected)
        limit = self.model.inference_options.max_tracks
        values, track, labels = best_pairs(scores[:, :-1], selected.ids, limit)
        return {
            "pred_scores": values.tolist(),
            "pred_labels": labels.tolist(),
            "pred_masks": [tracks[i].rles for i in track.tolist()],
        }


def windows(
    frames: Iterable[Tensor], window: int, overlap: int
) -> Iterator[tuple[list[Tensor], int]]:
    """Windows of frames, and how many of each one's first frames the last window had.

    No frames are one empty window, which the model refuses as it does an empty clip.
    """
    stream = iter(frames)
    current, seen = list(itertools.islice(stream, window)), 0
    while True:
        yield current, seen
        following = list(itertools.islice(stream, window - overlap))
        if not following:
            return
        # The last window may be shorter in new frames; it looks back further to be as long.
        kept = current[-(window - len(following)) :]
        current, seen = kept + following, len(kept)


def match(tracks: list[Track], found: Window, seen: int) -> dict[int, int]:
    """Track number -> candidate number, the most alike first."""
    if not tracks or not seen:
        return {}
    past = torch.stack([track.coarse_masks[-seen:] for track in tracks]).flatten(1).float()
    present = found.coarse_masks[:, :seen].flatten(1).float()
    shared = past @ present.T
    union = past.sum(1, keepdim=True) + present.sum(1) - shared
    classes = torch.stack([track.probabilities() for track in tracks])
    agreement = classes @ found.logits.softmax(-1).T
    likeness = shared / union.clamp(min=1) + agreement / 2
    pairs: dict[int, int] = {}
    for flat in likeness.flatten().argsort(descending=True).tolist():
        i, j = divmod(flat, likeness.shape[1])
        if likeness[i, j] < _SAME_OBJECT:
            break
        if i not in pairs and j not in pairs.values():
            pairs[i] = j
    return pairs
