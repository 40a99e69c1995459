"""From a video's record to the clip the model takes. Shapes: T frames, N objects, h, w size."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from rankseg_m2f.data.augmentation import MULTI_LABEL
from rankseg_m2f.data.frames import sample_interval_frames, sample_training_frames
from rankseg_m2f.data.mappers import (
    ClipReader,
    as_instances,
    evaluation_settings,
    label_settings,
    reader_settings,
)
from rankseg_m2f.data.targets import aligned, any_targets, void_label
from rankseg_m2f.data.video_augmentation import clip_augmentation
from rankseg_m2f.images import AnnotationError

# Key of a video's record, one entry per frame -> key of an image's record.
_PER_FRAME = {
    "file_names": "file_name",
    "sem_seg_file_names": "sem_seg_file_name",
    "annotations": "annotations",
}
_OF_ALL_FRAMES = ("height", "width", "label_offset")


class ClipMapper(ClipReader):
    """Reads, augments alike and packs frames of a video and their ground truth."""

    def __init__(self, *, choose_frames: Callable[[int], Iterable[int]] = range, **settings):
        """
        Args:
            choose_frames: from a video's length to the T frames of it to take; all by default.
            settings: see `ClipReader`.
        """
        super().__init__(**settings)
        self.choose_frames = choose_frames

    def __call__(self, record: dict) -> dict:
        """
        Returns:
            `file_names` (T), `video_id`, `clip` if the record has it, `height`, `width` (of the
            files), `length` T, `image`: T (3, h, w) uint8 and, with ground truth, `instances`: T
            Instances of the same N objects with gt_classes (N,) int64, gt_masks (N, h, w) bool
            and gt_ids (N,) int64, -1 where the object is not visible. Objects that no frame shows
            are left out. Ids are of annotations, or labels where there are label maps. Also what
            `scores_of` gives: of the whole record, not of the frames taken.

        Raises:
            ImageReadError: a file is missing or broken.
            AnnotationError: sizes disagree or a label is out of range, naming the file; no frames.
        """
        if not record["file_names"]:
            raise AnnotationError(f"video {record['video_id']!r} has no frames")
        chosen = frame_records(record, self.choose_frames(len(record["file_names"])))
        clip = self.read(chosen)
        result = {key: record[key] for key in ("video_id", "clip") if key in record}
        result |= {
            "file_names": [frame["file_name"] for frame in chosen],
            "height": clip.size[0],
            "width": clip.size[1],
            "length": len(chosen),
            "image": clip.frames,
            **self.scores_of(record),
        }
        if clip.truths is not None:
            result["instances"] = []
            for shown in aligned(clip.truths):
                instances = as_instances(shown)
                instances.gt_ids = torch.tensor(shown.ids, dtype=torch.int64)
                result["instances"].append(instances)
        return result


def frame_records(record: dict, frames: Iterable[int]) -> list[dict]:
    """Records of single frames of a video, as those of images."""
    shared = {key: record[key] for key in _OF_ALL_FRAMES if key in record}
    return [
        {one: record[many][i] for many, one in _PER_FRAME.items() if many in record} | shared
        for i in frames
    ]


def build_video_mapper(cfg: CfgNode, is_train: bool, dataset: str | None = None) -> ClipMapper:
    """The mapper for videos of any kind of annotation.

    INPUT.DATASET_MAPPER_NAME tells classifiers from segmentors and plays no other part: a record
    says what it has. At evaluation all frames are taken, and ground truth is read for the oracle
    alone.

    Args:
        dataset: to be read; None: those of DATASETS.TRAIN or DATASETS.TEST.

    Raises:
        UserError: an unknown augmentation, or datasets whose ignore labels differ.
    """
    if not is_train:
        return ClipMapper(**evaluation_settings(cfg, dataset))
    names = cfg.DATASETS.TRAIN if dataset is None else (dataset,)
    settings = reader_settings(cfg, names)
    if cfg.INPUT.DATASET_MAPPER_NAME == MULTI_LABEL:
        return ClipMapper(choose_frames=_frame_sampler(cfg), **label_settings(cfg), **settings)
    # Tracks make no label map.
    label_maps = all(MetadataCatalog.get(name).get("stuff_classes") for name in names)
    return ClipMapper(
        choose_frames=_frame_sampler(cfg),
        augmentations=clip_augmentation(
            cfg, void_label(settings["num_labels"]), constrain_area=label_maps
        ),
        read_truth=any_targets,
        min_side=cfg.INPUT.SIZE_DIVISIBILITY,
        **settings,
    )


def _frame_sampler(cfg: CfgNode) -> Callable[[int], list[int]]:
    node = cfg.INPUT
    shared = {
        "num_frames": node.SAMPLING_FRAME_NUM,
        "shuffle": node.SAMPLING_FRAME_SHUFFLE,
    }
    if node.SAMPLING_RANDOM:
        return partial(sample_training_frames, frame_range=node.SAMPLING_FRAME_RANGE, **shared)
    return partial(sample_interval_frames, interval=node.SAMPLING_INTERVAL, **shared)
