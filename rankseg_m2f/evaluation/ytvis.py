"""Video instance segmentation: AP of tracks by their overlap in space and time.

Shapes: M tracks; T frames; h, w frame size; D predicted and G true tracks of a video and category.
"""

import contextlib
import io
import json
import logging
import os
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from rankseg_m2f.annotations.coco import VIDEOS
from rankseg_m2f.annotations.findings import Findings
from rankseg_m2f.annotations.objects import objects_of_dataset
from rankseg_m2f.annotations.outlines import checked_outlines, to_rle
from rankseg_m2f.errors import UserError
from rankseg_m2f.evaluation.matches import MaskApFromMatches, matches
from rankseg_m2f.evaluation.streaming import merged, percent_of, save_statistics
from rankseg_m2f.files import replacing

logger = logging.getLogger(__name__)
METRICS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)
# Of a track, by its mean area: small is below 128 x 128 pixels, large from 256 x 256 on.
_AREAS = {
    "all": (0, 1e10),
    "small": (0, 128**2),
    "medium": (128**2, 256**2),
    "large": (256**2, 1e10),
}
# Not in the folder itself, where the engine writes a results.json of the metrics.
SUBMISSION = "submission"


class VideoInstanceEvaluator(DatasetEvaluator):
    """Video instance segmentation from `pred_scores`, `pred_labels`, `pred_masks`.

    Results, in percent, over the videos that were processed: {"segm": {METRICS, AP of each
    category as AP-name}}; NaN where there are no such objects. Without annotations, as on test
    sets, predictions are only written: `submission/results.json` in YouTube-VIS form, and
    `submission/results.zip`, which challenge servers take.
    """

    task = "segm"
    reads = "instance"
    metrics = METRICS

    def __init__(self, name: str, output_dir: str | os.PathLike | None = None):
        """
        Args:
            name: of a dataset whose metadata has json_file (YouTube-VIS) and
                thing_dataset_id_to_contiguous_id.
            output_dir: where predictions and `per_image_instance_{name}.npz` are written; None:
                nowhere.

        Raises:
            UserError: json_file cannot be read, or is of other categories; names the file.
        """
        metadata = MetadataCatalog.get(name)
        self.name = name
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.json_file = metadata.json_file
        ids = metadata.thing_dataset_id_to_contiguous_id
        self._dataset_id = {contiguous: dataset for dataset, contiguous in ids.items()}
        findings = Findings()
        objects = objects_of_dataset(metadata, VIDEOS, findings)
        findings.raise_errors()
        self._truth = objects.tracks()
        self.reset()

    def reset(self) -> None:
        """Forget all videos."""
        self._videos: dict[int, list[dict]] = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take in the results of some videos.

        Args:
            inputs: `video_id`, `file_names` (T paths), `height`, `width`.
            outputs: `pred_scores` (M,), `pred_labels` (M,) contiguous ids, `pred_masks`: M times a
                (T, h, w) bool tensor or T COCO RLE dicts, None where the object is not seen.
                Videos without `pred_masks` are skipped.

        Raises:
            ValueError: a label that is no category, or masks of another length or size than the
                video's.
        """
        for given, output in zip(inputs, outputs, strict=True):
            if "pred_masks" in output:
                # By id: a video that two processes have seen counts once.
                self._videos[given["video_id"]] = self._results(given, output)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Metrics over the videos of all processes; {} but on rank 0, and without annotations."""
        gathered = comm.gather(self._videos, dst=0)
        if not comm.is_main_process():
            return {}
        videos = merged(gathered)
        if not videos:
            logger.info("%s: no video has pred_masks, nothing to evaluate", self.name)
            return {}
        results = [result for found in videos.values() for result in found]
        if self.output_dir is not None:
            write_submission(self.output_dir / SUBMISSION, results)
        if not self._truth["annotations"]:
            logger.info("%s has no annotations: no AP", self.json_file)
            return {}
        evaluation = match_tracks(self._truth, results, videos)
        if self.output_dir is not None:
            path = self.output_dir / f"per_image_{MaskApFromMatches.kind}_{self.name}.npz"
            save_statistics(path, matches(evaluation, evaluation.names))
        return OrderedDict({"segm": track_metrics(evaluation)})

    def _results(self, given: dict, output: dict) -> list[dict]:
        """Tracks of one video in YouTube-VIS form."""
        video = given["video_id"]
        results = []
        for score, label, masks in zip(
            output["pred_scores"], output["pred_labels"], output["pred_masks"], strict=True
        ):
            if int(label) not in self._dataset_id:
                raise ValueError(
                    f"a track of label {int(label)} is predicted in video {video}, but dataset "
                    f"{self.name!r} counts only the labels {sorted(self._dataset_id)}"
                )
            frames = _to_rle(masks)
            size = [given["height"], given["width"]]
            other = [rle["size"] for rle in frames if rle is not None and rle["size"] != size]
            if other or len(frames) != len(given["file_names"]):
                found = other[0] if other else size
                raise ValueError(
                    f"video {video} ({given['file_names'][0]} ...): masks of {len(frames)} frames "
                    f"of {found} are predicted, but it has {len(given['file_names'])} of {size}"
                )
            results.append(
                {
                    "video_id": video,
                    "score": float(score),
                    "category_id": self._dataset_id[int(label)],
                    "segmentations": frames,
                }
            )
        return results


def write_submission(folder: Path, results: list[dict]) -> None:
    """Write results.json, and results.zip with it inside, as challenge servers want them."""
    content = json.dumps(results)
    with replacing(folder / "results.json") as path:
        path.write_text(content, encoding="utf-8")
    with (
        replacing(folder / "results.zip") as path,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file,
    ):
        file.writestr("results.json", content)


def match_tracks(
    truth: dict, results: Sequence[dict], video_ids: Collection[int] | None = None
) -> "TrackEvaluation":
    """Match tracks to those of the truth, by the official YouTube-VIS rules.

    Args:
        truth: videos, categories and annotations, as in an annotation file.
        results: dicts with video_id, category_id, score, segmentations (T RLE or None).
        video_ids: videos to judge; None: all of `truth`.

    Raises:
        UserError: a video that `truth` does not have, or a true track that does not fit its video.
        ValueError: a predicted one that does not.
    """
    videos = {video["id"]: video for video in truth["videos"]}
    video_ids = sorted(videos if video_ids is None else video_ids)
    unknown = {*video_ids, *(result["video_id"] for result in results)} - set(videos)
    if unknown:
        raise UserError(f"videos {sorted(unknown)} are not in the annotations")
    # pycocotools prints its progress and a table; the engine logs the same numbers.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = TrackEvaluation(
            Tracks(
                videos, truth["categories"], [_checked(t, videos) for t in truth["annotations"]]
            ),
            Tracks(videos, truth["categories"], results),
        )
        evaluation.params.imgIds = video_ids
        evaluation.params.areaRng = [list(limits) for limits in _AREAS.values()]
        evaluation.params.areaRngLbl = list(_AREAS)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def track_metrics(evaluation: "TrackEvaluation") -> dict[str, float]:
    """The official YouTube-VIS metrics.

    Returns:
        METRICS and AP-name of each category, in percent; NaN where there are no such objects.
    """
    stats = {
        metric: 100 * value if value >= 0 else float("nan")
        for metric, value in zip(METRICS, evaluation.stats.tolist(), strict=True)
    }
    # (thresholds, recalls, categories), of any size and by the best 100 tracks; -1 for no object.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    precision = np.where(precision < 0, np.nan, precision)
    for i, name in enumerate(evaluation.names):
        stats[f"AP-{name}"] = percent_of(precision[:, :, i])
    return stats


class Tracks(COCO):
    """Tracks in pycocotools' form: a video for an image, a list of T masks for a mask."""

    def __init__(self, videos: dict[int, dict], categories: list[dict], tracks: Sequence[dict]):
        """
        Args:
            videos: by id; entries of the annotation file.
            categories: those of the annotation file.
            tracks: its annotations, or results. Their area is the mean over the frames that show
                them.
        """
        super().__init__()
        annotations = []
        # From 1: pycocotools takes the id 0 for no match.
        for number, track in enumerate(tracks, start=1):
            masks = _track_masks(track, videos[track["video_id"]])
            areas = [coco_mask.area(rle) for rle in masks if rle is not None]
            visible = [int(area) for area in areas if area]
            annotations.append(
                {
                    "id": number,
                    "image_id": track["video_id"],
                    "category_id": track["category_id"],
                    "score": track.get("score"),
                    "iscrowd": track.get("iscrowd", 0),
                    "area": float(np.mean(visible)) if visible else 0.0,
                    "segmentation": masks,
                }
            )
        self.dataset = {
            "images": [{"id": video} for video in videos],
            "categories": categories,
            "annotations": annotations,
        }
        self.createIndex()

    def annToRLE(self, ann: dict) -> list[dict | None]:  # noqa: N802, pycocotools' name
        """The masks of a track, which are RLE already."""
        return ann["segmentation"]


class TrackEvaluation(COCOeval):
    """pycocotools' matching and averaging over tracks."""

    def __init__(self, truth: Tracks, predicted: Tracks):
        super().__init__(truth, predicted, iouType="segm")

    @property
    def names(self) -> list[str]:
        """Of the categories, in the order in which they are judged."""
        return [category["name"] for category in self.cocoGt.loadCats(self.params.catIds)]

    def computeIoU(self, imgId: int, catId: int) -> np.ndarray | list:  # noqa: N802
        """(D, G) IoU over all frames together, predictions by descending score; [] if none."""
        true, predicted = self._gts[imgId, catId], self._dts[imgId, catId]
        if not true or not predicted:
            return []
        order = np.argsort([-track["score"] for track in predicted], kind="mergesort")
        best = [predicted[i] for i in order[: self.params.maxDets[-1]]]
        return np.array(
            [[track_iou(ours["segmentation"], g["segmentation"]) for g in true] for ours in best]
        )


def track_iou(first: Sequence[dict | None], second: Sequence[dict | None]) -> float:
    """Common pixels of two tracks over those of either, all frames together; 0 without pixels.

    Args:
        first: T COCO RLE dicts, None where the object is not seen.
        second: the same.
    """
    common = either = 0
    for pair in zip(first, second, strict=True):
        masks = [rle for rle in pair if rle is not None]
        area = sum(int(coco_mask.area(rle)) for rle in masks)
        shared = (
            int(coco_mask.area(coco_mask.merge(masks, intersect=True))) if len(masks) > 1 else 0
        )
        common += shared
        either += area - shared
    return common / either if either else 0.0


def _checked(track: dict, videos: dict[int, dict]) -> dict:
    """A true track with a compressed RLE per frame, whichever form the file has."""
    video = videos[track["video_id"]]
    names, masks = video["file_names"], list(track["segmentations"])
    _check_length(track, video)
    size = video["height"], video["width"]
    seen = [i for i, mask in enumerate(masks) if mask]
    kept, reasons = checked_outlines([masks[i] for i in seen], [size] * len(seen))
    for place in sorted(reasons):
        name = names[seen[place]]
        raise UserError(f"a track of video {video['id']}, {name}: {reasons[place][0]}")
    masks = [None] * len(masks)
    for i, outline in zip(seen, kept, strict=True):
        masks[i] = to_rle(outline, size)
    return {**track, "segmentations": masks}


def _track_masks(track: dict, video: dict) -> list[dict | None]:
    """The compressed RLE of each frame; None where not seen."""
    _check_length(track, video)
    size = [video["height"], video["width"]]
    masks = [mask or None for mask in track["segmentations"]]
    for name, mask in zip(video["file_names"], masks, strict=True):
        # pycocotools would find no overlap between masks of different size.
        if mask is not None and list(mask["size"]) != size:
            raise ValueError(f"a mask of {name} is {list(mask['size'])}, but the video is {size}")
    return masks


def _check_length(track: dict, video: dict) -> None:
    names = video["file_names"]
    if len(track["segmentations"]) != len(names):
        raise UserError(
            f"a track of video {video['id']} ({names[0]} ...) has "
            f"{len(track['segmentations'])} frames, the video has {len(names)}"
        )


def _to_rle(masks: Tensor | Sequence[dict | None]) -> list[dict | None]:
    """RLE per frame that json can hold, None where the object is not seen."""
    if isinstance(masks, Tensor):
        stacked = masks.permute(1, 2, 0).cpu().numpy()
        masks = coco_mask.encode(np.asfortranarray(stacked, dtype=np.uint8))
    return [None if rle is None or not coco_mask.area(rle) else _plain(rle) for rle in masks]


def _plain(rle: dict) -> dict:
    counts = rle["counts"]
    counts = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(side) for side in rle["size"]], "counts": counts}
