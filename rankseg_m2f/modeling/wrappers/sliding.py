"""Sliding windows: a large image is seen crop by crop, and what is predicted there is averaged.

No more maps are made than of the κ labels that a window selects; where windows with different
selections overlap, their labels are brought together tile by tile.

Shapes: B clips, T frames, K labels, κ labels of a window, U labels of all windows at a place;
h, w window or image; height, width output size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor, nn

from rankseg_m2f.errors import UserError, require_one_of
from rankseg_m2f.modeling.resize_part import resize_part, source_of
from rankseg_m2f.modeling.results import InferenceOptions
from rankseg_m2f.modeling.segmentor import Segmentor
from rankseg_m2f.rankseg.hints import LabelHints
from rankseg_m2f.rankseg.policy import CandidateLabels, RankPolicy
from rankseg_m2f.structures.clip import ClipBatch, Sizes
from rankseg_m2f.structures.predictions import LabelMaps, Prediction, SelectedScores

SELECTIONS = ("window", "image")
# Side of the squares of the output in which labels of different windows are brought together.
_TILE = 128


@dataclass
class Window:
    """A part of a clip, seen as a clip of its own.

    Attributes:
        rows, cols: of the clip's frames.
        prediction: of a batch of one.
        sizes: its own; results are not resized.
    """

    rows: range
    cols: range
    prediction: Prediction
    sizes: Sizes


@dataclass
class WindowsPrediction(Prediction):
    """Predictions of the windows of each clip.

    Attributes:
        clips: B lists.
        num_frames: T.
    """

    clips: list[list[Window]]
    num_frames: int

    def __getitem__(self, clip: int) -> "WindowsPrediction":
        """The prediction of one clip, as a batch of one."""
        return WindowsPrediction(self.presence_of(clip), [self.clips[clip]], self.num_frames)


@dataclass(frozen=True)
class WindowCandidates(CandidateLabels):
    """Candidates of an image whose windows select labels of their own.

    Attributes:
        of_window: presence logits (1, K) of a window, or None, to its candidates.
    """

    of_window: Callable[[Tensor | None], CandidateLabels] | None = None


@dataclass
class View:
    """Averaged scores of one window and frame, before they are resized to the window.

    Attributes:
        scores: (κ, h', w').
        sizes: of the window.
    """

    rows: range
    cols: range
    scores: SelectedScores
    sizes: Sizes

    def part(self, rows: range, cols: range) -> Tensor:
        """(κ, len(rows), len(cols)) of pixels of the image that lie in the window."""
        rows = range(rows.start - self.rows.start, rows.stop - self.rows.start)
        cols = range(cols.start - self.cols.start, cols.stop - self.cols.start)
        return resize_part(self.scores.scores, self.sizes.padded, rows, cols)


class SlidingSegmentor(Segmentor):
    """A segmentor that sees images through windows; semantic results alone.

    `label_scores` and `label_ranking` are those of the image: a label is in an image as surely as
    in the window that shows it best. `sem_seg` of images in which windows select κ < K labels each
    is `LabelMaps`, since no κ labels have scores everywhere.
    """

    gives = frozenset({"semantic"})

    def __init__(
        self,
        model: Segmentor,
        crop: tuple[int, int],
        stride: tuple[int, int],
        selection: str = "window",
    ):
        """
        Args:
            crop: (height, width) of windows; a smaller image is seen whole.
            stride: from one window to the next; the last is moved back into the image.
            selection: labels are selected for each "window", as the official code, or once for
                the "image".

        Raises:
            UserError: values that cannot be.
        """
        nn.Module.__init__(self)
        _check_values(crop, stride, selection)
        self.model = model
        self.crop = tuple(crop)
        self.stride = tuple(stride)
        self.selection = selection
        self.policy = model.policy
        self.inference_options = replace(model.inference_options, panoptic=False, instance=False)
        self.given_scores = model.given_scores
        self.train(model.training)

    @property
    def ml_head(self) -> nn.Module | None:
        """Of the model."""
        return self.model.ml_head

    @property
    def ml_norm(self) -> nn.Module | None:
        """Of the model."""
        return self.model.ml_norm

    @property
    def scores_labels(self) -> bool:
        """See `Segmentor.scores_labels`."""
        return self.model.scores_labels

    @property
    def device(self) -> torch.device:
        """See `ClipModel.device`."""
        return self.model.device

    def clips(self, batched_inputs: list[dict]) -> ClipBatch:
        """See `ClipModel.clips`."""
        return self.model.clips(batched_inputs)

    def predict(self, clips: ClipBatch) -> WindowsPrediction:
        """See `Segmentor.predict`; of all windows."""
        windows = [self._windows(clips, i) for i in range(len(clips.sizes))]
        presence = None
        if windows[0][0].prediction.presence_logits is not None:
            logits = [[w.prediction.presence_logits for w in of_clip] for of_clip in windows]
            presence = torch.cat([torch.cat(x).amax(0, keepdim=True) for x in logits])  # (B, K)
        return WindowsPrediction(presence, windows, clips.num_frames)

    def choose(
        self, presence_logits: Tensor | None, hints: LabelHints, policy: RankPolicy | None = None
    ) -> CandidateLabels:
        """See `Segmentor.choose`."""
        image = super().choose(presence_logits, hints, policy)
        if self.selection == "image" or image.ranked is None:
            return image
        own = partial(self.model.choose, hints=hints, policy=policy)
        return WindowCandidates(**vars(image), of_window=own)

    def semantic_frames(
        self,
        prediction: WindowsPrediction,
        candidates: CandidateLabels,
        sizes: Sizes,
        options: InferenceOptions,
        first: int = 0,
    ) -> Iterator[SelectedScores | LabelMaps]:
        """See `Segmentor.semantic_frames`; label maps where windows select κ < K labels each."""
        all_labels = options.full_sem_seg or len(candidates.ids) == self.num_labels
        if all_labels or not isinstance(candidates, WindowCandidates):
            for frame in self.averaged_frames(prediction, candidates, sizes, options, first):
                yield replace(frame, scores=self.model.scores_of_average(frame.scores))
            return
        for views in self._views(prediction, candidates, options, first):
            yield LabelMaps(_best_labels(views, sizes, self.model.absent_score))

    def averaged_frames(
        self,
        prediction: WindowsPrediction,
        candidates: CandidateLabels,
        sizes: Sizes,
        options: InferenceOptions,
        first: int = 0,
    ) -> Iterator[SelectedScores]:
        """Averages of windows at output size, of all K labels or of those selected for the image.

        Args:
            sizes: of the whole clip.
        """
        height, width = sizes.resized
        for views in self._views(prediction, candidates, options, first):
            ids = views[0].scores.ids
            all_labels = options.full_sem_seg or len(candidates.ids) == self.num_labels
            if all_labels or isinstance(candidates, WindowCandidates):
                ids = torch.arange(self.num_labels, device=ids.device)
            fill = self.model.absent_score
            average = _average(views, range(height), range(width), ids, fill)
            rows, cols = map(range, sizes.output)
            yield SelectedScores(ids, resize_part(average, sizes.output, rows, cols))

    def network(self, clips: ClipBatch) -> Prediction:
        """Not of a wrapper: see `predict`."""
        return self.model.network(clips)

    def targets(self, clips: ClipBatch):
        """See `Segmentor.targets`."""
        return self.model.targets(clips)

    def ranked(self, prediction, ranked, scaled: bool = True):
        """See `Segmentor.ranked`."""
        return self.model.ranked(prediction, ranked, scaled)

    def losses(self, prediction, targets, ranked):
        """See `Segmentor.losses`."""
        return self.model.losses(prediction, targets, ranked)

    def mask_absent(self, prediction, presence: Tensor):
        """See `Segmentor.mask_absent`."""
        return self.model.mask_absent(prediction, presence)

    def _windows(self, clips: ClipBatch, clip: int) -> list[Window]:
        """The windows of one clip, predicted."""
        height, width = clips.sizes[clip]
        return [
            self._window(clips, clip, rows, cols)
            for rows in spans(height, self.crop[0], self.stride[0])
            for cols in spans(width, self.crop[1], self.stride[1])
        ]

    def _window(self, clips: ClipBatch, clip: int, rows: range, cols: range) -> Window:
        number, size = clips.num_frames, (len(rows), len(cols))
        frames = clips.frames[clip * number : (clip + 1) * number]
        frames = frames[:, :, rows.start : rows.stop, cols.start : cols.stop]
        divisor = max(self.model.size_divisibility, 1)
        below, right = (-side % divisor for side in size)
        part = ClipBatch(
            F.pad(frames, (0, right, 0, below)),
            number,
            [size],
            [size],
            # Of the whole clip: an oracle knows which labels the image has.
            clips.instances[clip : clip + 1],
            clips.sem_seg[clip : clip + 1],
            clips.is_video,
            clips.label_scores[clip : clip + 1],
        )
        return Window(rows, cols, self.model.predict(part), part.sizes_of(0))

    def _views(
        self,
        prediction: WindowsPrediction,
        candidates: CandidateLabels,
        options: InferenceOptions,
        first: int,
    ) -> Iterator[list[View]]:
        """For each frame of one clip, the scores of its windows."""
        (windows,) = prediction.clips
        options = replace(options, full_sem_seg=False)
        streams = []
        for window in windows:
            own = candidates
            if isinstance(candidates, WindowCandidates):
                own = candidates.of_window(window.prediction.presence_logits)
            streams.append(
                self.model.averaged_frames(window.prediction, own, window.sizes, options, first)
            )
        for frames in zip(*streams, strict=True):
            yield [
                View(window.rows, window.cols, scores, window.sizes)
                for window, scores in zip(windows, frames, strict=True)
            ]


def spans(length: int, crop: int, stride: int) -> list[range]:
    """Where windows lie along a side: the last ends with it, a short side is one window.

    As mmseg and the original Segmenter place them.
    """
    if length <= crop:
        return [range(length)]
    count = -(-(length - crop) // stride) + 1
    starts = (min(i * stride, length - crop) for i in range(count))
    return [range(start, start + crop) for start in starts]


def _average(views: Sequence[View], rows: range, cols: range, ids: Tensor, fill: float) -> Tensor:
    """(U, len(rows), len(cols)) averages of the labels `ids`; windows lacking one say `fill`."""
    example = views[0].scores.scores
    total = example.new_zeros(len(ids), len(rows), len(cols))
    count = example.new_zeros(len(rows), len(cols))
    for view in views:
        r, c = _common(rows, view.rows), _common(cols, view.cols)
        if not len(r) or not len(c):
            continue
        place = (
            slice(r.start - rows.start, r.stop - rows.start),
            slice(c.start - cols.start, c.stop - cols.start),
        )
        count[place] += 1
        same = view.scores.ids[:, None] == ids  # (κ, U)
        region = total[(slice(None), *place)]
        region[~same.any(0)] += fill
        wanted = same.any(1)
        region[same.int().argmax(1)[wanted]] += view.part(r, c)[wanted]
    return total / count


def _common(a: range, b: range) -> range:
    return range(max(a.start, b.start), min(a.stop, b.stop))


def _best_labels(views: Sequence[View], sizes: Sizes, fill: float) -> Tensor:
    """(height, width) int64 labels with the highest average at output size."""
    labels = views[0].scores.ids.new_empty(sizes.output)
    for rows in _tiles(sizes.output[0]):
        source_rows = source_of(rows, sizes.resized[0], sizes.output[0])
        for cols in _tiles(sizes.output[1]):
            source_cols = source_of(cols, sizes.resized[1], sizes.output[1])
            near = [
                view
                for view in views
                if len(_common(source_rows, view.rows)) and len(_common(source_cols, view.cols))
            ]
            ids = torch.cat([view.scores.ids for view in near]).unique()  # (U,)
            average = _average(near, source_rows, source_cols, ids, fill)
            resized = resize_part(
                average, sizes.output, rows, cols, sizes.resized, (source_rows, source_cols)
            )
            labels[rows.start : rows.stop, cols.start : cols.stop] = ids[resized.argmax(0)]
    return labels


def _tiles(length: int) -> list[range]:
    return [range(i, min(i + _TILE, length)) for i in range(0, length, _TILE)]


def check_sliding(cfg: CfgNode, architecture: type) -> None:
    """Check TEST.SLIDING, before a model is built.

    Raises:
        UserError: values that cannot be, or a model without semantic results.
    """
    node, test = cfg.TEST.SLIDING, cfg.MODEL.MASK_FORMER.TEST
    if not node.ENABLED:
        return
    segments = issubclass(architecture, Segmentor) and "semantic" in architecture.gives
    if not segments or not test.SEMANTIC_ON or test.PANOPTIC_ON or test.INSTANCE_ON:
        raise UserError(
            "TEST.SLIDING.ENABLED is True, and sliding windows give semantic results alone: set it "
            "False, or MODEL.MASK_FORMER.TEST.SEMANTIC_ON True and PANOPTIC_ON and INSTANCE_ON "
            f"False, with a segmentor ({architecture.__name__} is MODEL.META_ARCHITECTURE)"
        )
    _check_values(node.CROP, node.STRIDE, node.SELECTION)


def _check_values(crop: Sequence, stride: Sequence, selection: str) -> None:
    for key, value in (("CROP", crop), ("STRIDE", stride)):
        whole = all(isinstance(side, int) and side >= 1 for side in value)
        if len(value) != 2 or not whole:
            raise UserError(
                f"TEST.SLIDING.{key}={tuple(value)} must be (height, width) in pixels, 1 or more"
            )
    if any(step > side for step, side in zip(stride, crop, strict=True)):
        raise UserError(
            f"TEST.SLIDING.STRIDE={tuple(stride)} must not be larger than CROP={tuple(crop)}: "
            "windows would leave gaps"
        )
    require_one_of("TEST.SLIDING.SELECTION", selection, SELECTIONS)


def with_sliding(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """The model, seeing through the windows of TEST.SLIDING if they are enabled.

    Raises:
        UserError: see `check_sliding`.
    """
    node = cfg.TEST.SLIDING
    if not node.ENABLED:
        return model
    check_sliding(cfg, type(model))
    return SlidingSegmentor(model, node.CROP, node.STRIDE, node.SELECTION)
