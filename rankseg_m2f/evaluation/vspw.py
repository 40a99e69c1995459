"""Video semantic segmentation: mean IoU, and how steady predictions are in time.

Shapes: K labels; T frames of a clip; h, w frame size; V videos; W lengths of window.
"""

import io
import logging
import os
import zlib
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from detectron2.utils import comm
from PIL import Image

from rankseg_m2f.errors import UserError
from rankseg_m2f.evaluation.ground_truth import GroundTruth
from rankseg_m2f.evaluation.semantic import SemanticEvaluator
from rankseg_m2f.evaluation.streaming import (
    Statistics,
    merged,
    sparse_rows,
    sum_by_label,
)
from rankseg_m2f.files import replacing

logger = logging.getLogger(__name__)
_MAPS = ("truth_maps", "predicted_maps")
_DUMP_FOLDER = "predictions"


class VideoSemanticEvaluator(SemanticEvaluator):
    """Semantic segmentation of clips from `sem_seg`: a (K, T, h, w) tensor or `LabelMaps`.

    Results, in percent: mIoU, fwIoU, mACC, pACC, IoU and ACC of each label, over all frames, as
    for images; and video consistency VC8 and VC16, see `consistency`. VC is of whole videos,
    whatever clips they are predicted in; a video of which clips are missing has none. `clip_frames`
    is the number of frames a clip has by the dataset, which the result depends on.

    Label maps are kept until all clips of their video are there, packed to a few kilobytes a frame.
    """

    windows = (8, 16)

    metrics = (*SemanticEvaluator.metrics, "VC8", "VC16")

    def __init__(
        self,
        name: str,
        output_dir: str | os.PathLike | None = None,
        truth: GroundTruth | None = None,
        dump: bool = False,
    ):
        """
        Args:
            name: of the dataset.
            output_dir: where `per_image_semantic_{name}.npz` is written; None: nowhere.
            truth: a `VideoTruth`; None: read from Detectron2's catalog.
            dump: write predictions as `predictions/VIDEO/FRAME.png` with the ids of the dataset's
                own label maps.

        Raises:
            UserError: `dump` without a folder.
        """
        super().__init__(name, output_dir, truth)
        if dump and self.output_dir is None:
            raise UserError(
                "predictions can only be dumped (TEST.DUMP_PREDICTIONS) into a folder: "
                "give output_dir"
            )
        self.dump = dump

    @property
    def protocol(self) -> str:
        """In words, what one prediction sees of a video."""
        if all(len(clips) == 1 for clips in self.truth.clips.values()):
            return "whole videos"
        return f"clips of {self.truth.longest_clip} frames"

    def reset(self) -> None:
        """Forget all clips."""
        super().reset()
        self._steadiness: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take in the results of some clips; `inputs` need `video_id` and `clip`.

        Raises:
            ValueError: see `statistics`; or frames of one video differ in size.
        """
        super().process(inputs, outputs)
        for given in inputs:
            self._settle(self.truth.video(self.truth.key(given)))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Metrics over the clips of all processes: {task: {metric: value}}; {} but on rank 0."""
        self._settled = merged(comm.gather(self._steadiness, dst=0))
        return super().evaluate()

    def statistics(self, key: str, output: dict) -> Statistics:
        """Pixels as for images, and what `pack` makes of the label maps.

        Returns:
            `label` and its pixels, (M,); `truth_maps`, `predicted_maps` uint8 bytes.

        Raises:
            ValueError: another number of frames or another size than the ground truth's, or a
                label outside [0, K).
        """
        predicted = output["sem_seg"].argmax(0).cpu().numpy()
        frames = self.truth.frames(key)
        if len(predicted) != len(frames):
            raise ValueError(
                f"{key}: {len(predicted)} frames are predicted, but the clip has {len(frames)}"
            )
        pixels = [
            self.compare(name, truth, ours)
            for name, truth, ours in zip(frames, self.truth.label_maps(key), predicted, strict=True)
        ]
        if self.dump:
            self._dump(key, predicted)
        return {
            **self._sum(pixels),
            "truth_maps": pack(self.truth.maps(key)),
            "predicted_maps": pack(predicted),
        }

    def collect(self, images: dict[str, Statistics]) -> Statistics:
        """Rows of `image`, `label` and pixels; per video `video` (V,), `vc_sum`, `vc_windows`.

        `vc_sum` and `vc_windows` are (V, W): the sum of the consistencies of a video's windows,
        and their number.
        """
        fields = ("label", *self.fields)
        rows = sparse_rows([{field: clip[field] for field in fields} for clip in images.values()])
        steadiness = dict(self._settled)
        incomplete = []
        for video in sorted({self.truth.video(key) for key in images} - set(steadiness)):
            # Its clips went to several processes, or not all were predicted.
            if all(key in images for key in self.truth.clips[video]):
                steadiness[video] = self._consistency(images, video)
            else:
                incomplete.append(video)
        if incomplete:
            logger.warning(
                "%s: no VC for videos of which clips are missing: %s", self.name, incomplete
            )
        logger.info("%s: protocol: %s", self.name, self.protocol)
        videos = sorted(steadiness)
        shape = (len(videos), len(self.windows))
        return {
            **rows,
            "video": np.array(videos, dtype=str),
            "vc_sum": np.array([steadiness[v][0] for v in videos], dtype=float).reshape(shape),
            "vc_windows": np.array([steadiness[v][1] for v in videos], dtype=int).reshape(shape),
            "clip_frames": np.array(self.truth.longest_clip),
        }

    def summarise(self, arrays: Statistics) -> dict[str, float]:
        """Metrics from sums over clips and videos."""
        results = super().summarise(arrays)
        totals, counts = arrays["vc_sum"].sum(0), arrays["vc_windows"].sum(0)
        for length, total, count in zip(
            self.windows, totals.tolist(), counts.tolist(), strict=True
        ):
            results[f"VC{length}"] = 100 * total / count if count else float("nan")
        return {**results, "clip_frames": float(arrays["clip_frames"])}

    def resamples(self, arrays: Statistics, counts: np.ndarray) -> Iterator[Statistics]:
        """As for all evaluators; a video comes with its own consistency."""
        clip_of = {video: i for i, video in enumerate(arrays["units"].tolist())}
        columns = [clip_of[video] for video in arrays["video"].tolist()]
        for sums, videos in zip(
            super().resamples(arrays, counts), counts[:, columns, None], strict=True
        ):
            weighted = {field: arrays[field] * videos for field in ("vc_sum", "vc_windows")}
            yield {**sums, **weighted, "clip_frames": arrays["clip_frames"]}

    def _settle(self, video: str) -> None:
        """Judge a video all of which is here, and drop its label maps."""
        keys = self.truth.clips[video]
        if video not in self._steadiness and all(key in self._images for key in keys):
            self._steadiness[video] = self._consistency(self._images, video)
        if video in self._steadiness:
            for key in keys:
                for field in _MAPS:
                    self._images[key].pop(field, None)

    def _consistency(
        self, images: dict[str, Statistics], video: str
    ) -> tuple[np.ndarray, np.ndarray]:
        keys = self.truth.clips[video]
        truth, predicted = (_frames(images, keys, field) for field in _MAPS)
        return consistency(truth, predicted, self.windows)

    def _sum(self, pixels: list[Statistics]) -> Statistics:
        """Pixels of each label over all frames."""
        rows, num_labels = sparse_rows(pixels), self.truth.num_labels
        total = {f: sum_by_label(rows, f, num_labels).astype(np.int64) for f in self.fields}
        label = (total["truth"] + total["predicted"]).nonzero()[0]
        return {"label": label, **{field: count[label] for field, count in total.items()}}

    def _dump(self, key: str, predicted: np.ndarray) -> None:
        folder = self.output_dir / _DUMP_FOLDER / self.truth.video(key)
        dtype = np.uint8 if self.truth.num_labels + self.truth.label_offset <= 256 else np.uint16
        for name, label_map in zip(self.truth.frames(key), predicted, strict=True):
            with replacing(folder / f"{Path(name).stem}.png") as path:
                values = (label_map + self.truth.label_offset).astype(dtype)
                Image.fromarray(values).save(path, format="PNG")


def consistency(
    truth: Iterable[np.ndarray], predicted: Iterable[np.ndarray], windows: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Of the pixels whose truth does not change, the share whose prediction does not either.

    Over every window of n frames that starts at 0 .. N - n - 1: the published scripts leave out
    the last one, so a video needs more than n frames. Ids are compared as they are, unknown pixels
    included. Windows in which the truth of every pixel changes do not count.

    Args:
        truth: N label maps (h, w) of one video.
        predicted: as many.
        windows: W lengths n.

    Returns:
        (W,) float64 sum of the shares; (W,) int64 windows summed over.
    """
    total = np.zeros(len(windows))
    count = np.zeros(len(windows), dtype=np.int64)
    longest = max(windows)
    # Frames each pixel has not changed for: one map of the truth, one of the prediction.
    still = np.zeros((2, 1, 1), dtype=np.uint16)
    last: tuple[np.ndarray, ...] = ()
    # The last window is left out, so the last frame is never looked at.
    for index, (maps, _) in enumerate(pairwise(zip(truth, predicted, strict=True))):
        if index == 0:
            still = np.ones((2, *maps[0].shape), dtype=np.uint16)
        else:
            same = np.stack([now == before for now, before in zip(maps, last, strict=True)])
            still = np.where(same, np.minimum(still + 1, longest), 1)
        last = maps
        for i, length in enumerate(windows):
            constant = still[0] >= length
            pixels = np.count_nonzero(constant)
            if pixels:
                total[i] += np.count_nonzero(constant & (still[1] >= length)) / pixels
                count[i] += 1
    return total, count


def pack(maps: np.ndarray) -> np.ndarray:
    """(T, h, w) non-negative integers as few bytes, (n,) uint8: frames hardly change."""
    maps = maps.astype(np.min_scalar_type(int(maps.max())))
    changes = maps.copy()
    changes[1:] ^= maps[:-1]
    file = io.BytesIO()
    np.save(file, changes, allow_pickle=False)
    return np.frombuffer(zlib.compress(file.getbuffer(), 1), dtype=np.uint8)


def unpack(packed: np.ndarray) -> np.ndarray:
    """What `pack` was given."""
    changes = np.load(io.BytesIO(zlib.decompress(packed)), allow_pickle=False)
    return np.bitwise_xor.accumulate(changes, axis=0)


def _frames(images: dict[str, Statistics], keys: list[str], field: str) -> Iterator[np.ndarray]:
    """Label maps of the clips of one video, one after the other.

    Raises:
        ValueError: they differ in size.
    """
    size = None
    for key in keys:
        for label_map in unpack(images[key][field]):
            size = size or label_map.shape
            if label_map.shape != size:
                raise UserError(
                    f"{key}: frames are {label_map.shape}, but {size} in {keys[0]}; frames of a "
                    "video need one size"
                )
            yield label_map
