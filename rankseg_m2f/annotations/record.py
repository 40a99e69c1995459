"""What one record of a dataset shows: labels of pixels, segments, objects, labels of the whole.

The one reader of training, evaluation and check. Records are Detectron2's dataset dicts of images
with contiguous labels; a frame of a video is an image. Shapes: H, W image size; M segments.
"""

from collections.abc import Mapping

import numpy as np

from rankseg_m2f.images import AnnotationError, read_label_map, read_panoptic_map

# The label of pixels that have none, whatever value their file has for it.
UNLABELLED = -1
# Keys of ground truth; "sem_seg_file_names" is of videos.
TRUTHS = {"sem_seg_file_name", "sem_seg_file_names", "pan_seg_file_name", "annotations"}


def has_truth(record: Mapping) -> bool:
    """Whether a record of an image or a video has ground truth; those of test sets have none."""
    return not TRUTHS.isdisjoint(record)


def decode_labels(values: np.ndarray, ignore_label: int, label_offset: int = 0) -> np.ndarray:
    """Labels of a map that holds labels plus `label_offset`, as (H, W) int32.

    Pixels of `ignore_label` or of less than the offset become UNLABELLED.

    Args:
        ignore_label: the value in the file.
    """
    ignored = (values == ignore_label) | (values < label_offset)
    return np.where(ignored, np.int32(UNLABELLED), values.astype(np.int32) - label_offset)


def label_map(record: Mapping, ignore_label: int) -> np.ndarray:
    """(H, W) int32 labels of `sem_seg_file_name`, UNLABELLED where there is none.

    Labels that are too large are the caller's to refuse: who calls knows how many there are.

    Raises:
        ImageReadError: missing, broken or not a label map.
        AnnotationError: the record has none.
    """
    values = read_label_map(_entry(record, "sem_seg_file_name"))
    return decode_labels(values, ignore_label, record.get("label_offset", 0))


def segments(record: Mapping) -> tuple[np.ndarray, list[dict]]:
    """(H, W) int32 segment ids of `pan_seg_file_name`, 0 for none; M `segments_info`.

    Raises:
        ImageReadError: missing, broken or not a panoptic PNG.
        AnnotationError: the record has none.
    """
    path = _entry(record, "pan_seg_file_name")
    return read_panoptic_map(path), record["segments_info"]


def labels_of_segments(ids: np.ndarray, found: list[dict], crowds: bool = True) -> np.ndarray:
    """(H, W) int32 labels of a map of segment ids, UNLABELLED where no segment is listed.

    Args:
        crowds: False: pixels of crowds are unlabelled, too.
    """
    label_of = {s["id"]: s["category_id"] for s in found if crowds or not s.get("iscrowd", 0)}
    unique, where = np.unique(ids, return_inverse=True)
    labels = np.array([label_of.get(i, UNLABELLED) for i in unique.tolist()], dtype=np.int32)
    return labels[where].reshape(ids.shape)


def objects(record: Mapping) -> list[dict]:
    """`annotations` that have an outline.

    Raises:
        AnnotationError: the record has no annotations, not even an empty list.
    """
    return [a for a in _entry(record, "annotations") if a.get("segmentation")]


def listed_labels(record: Mapping) -> set[int] | None:
    """Labels that the record itself lists, crowds included, without reading an image; else None."""
    if "segments_info" in record:
        return {s["category_id"] for s in record["segments_info"]}
    if "sem_seg_file_name" not in record and "annotations" in record:
        return {a["category_id"] for a in record["annotations"]}
    return None


def _entry(record: Mapping, key: str):
    if key not in record:
        raise AnnotationError(
            f"{record['file_name']} has no {key!r}: this dataset does not fit "
            "INPUT.DATASET_MAPPER_NAME"
        )
    return record[key]
