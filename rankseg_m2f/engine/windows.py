"""Long videos in overlapping windows; only results (run lengths, label maps) grow with them.

Each window is seen as a clip of its own. Presence logits are averaged over windows, so labels are
ranked once, for the whole video; objects go on from window to window as `Tracks` of the model.

Shapes: W frames of a window, O frames seen again.
"""

import itertools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from rankseg_m2f.errors import UserError
from rankseg_m2f.evaluation.rle import encode
from rankseg_m2f.modeling.results import label_results
from rankseg_m2f.modeling.segmentor import Segmentor
from rankseg_m2f.rankseg.policy import CandidateLabels
from rankseg_m2f.structures.clip import Sizes
from rankseg_m2f.structures.predictions import LabelMaps, Prediction


class WindowedModel(nn.Module):
    """A segmentor for videos of any length; takes and gives what the model does, but for masks.

    `pred_masks` are lists of run lengths (None where an object is not seen).
    """

    def __init__(self, model: Segmentor, window: int, overlap: int):
        """
        Args:
            window: W.
            overlap: O, in [1, W).

        Raises:
            UserError: a model that segments nothing, or an overlap out of its range.
        """
        super().__init__()
        if not isinstance(model, Segmentor) or not model.gives:
            raise UserError(
                "windows of a video need a segmentor (MODEL.META_ARCHITECTURE), and "
                f"{type(model).__name__} is not one"
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
        model, results = self.model, {}
        semantic, tracks = model.inference_options.semantic, model.tracks(encode)
        presence_logits, label_maps = [], []
        for frames, seen in windows(sample["image"], self.window, self.overlap):
            inputs = [{**sample, "image": frames}]
            clips = model.clips(inputs)
            prediction = model.predict(clips)
            (hints,) = model.hints(inputs, clips)
            candidates = model.choose(prediction.presence_logits, hints)
            sizes = clips.sizes_of(0)
            presence_logits.append(prediction.presence_logits)
            if semantic:
                label_maps.append(self.label_maps(prediction, candidates, sizes, seen))
            if tracks is not None:
                tracks.add(prediction, candidates, sizes, seen)
        ranks = presence_logits[0] is not None
        mean = torch.stack(presence_logits).mean(0) if ranks else None  # (1, K)
        candidates = model.choose(mean, hints)
        if semantic:
            results["sem_seg"] = LabelMaps(torch.cat(label_maps))
        if tracks is not None:
            results |= tracks.results(candidates)
            results["image_size"] = sizes.output
        if mean is not None:
            results |= label_results(mean[0], candidates)
        return results

    def label_maps(
        self, prediction: Prediction, candidates: CandidateLabels, sizes: Sizes, seen: int
    ) -> Tensor:
        """(W - seen, height, width) int16 labels of the new frames of one window, on the CPU."""
        # Scores, if MODEL.RANKSEG.FULL_SEM_SEG asks for them, would not fit for a whole video.
        options = self.model.inference_options
        frames = self.model.semantic_frames(prediction, candidates, sizes, options, seen)
        # All that grows with the video: two bytes a pixel.
        return torch.stack([frame.argmax(0) for frame in frames]).to(torch.int16).cpu()


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
