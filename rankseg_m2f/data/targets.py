"""What a model learns of one image: labels and masks that follow the pixels through augmentation.

Shapes: N objects, H, W image size, h, w size after augmentation.
"""

from dataclasses import dataclass

import numpy as np
from detectron2.data.transforms import Transform
from pycocotools import mask as mask_util

from rankseg_m2f.annotations import record as annotations
from rankseg_m2f.annotations.record import UNLABELLED
from rankseg_m2f.images import AnnotationError

# Transforms fill padding of label maps with 255 in each byte, which is a segment's id, too.
_PADDING = 0xFFFFFF


@dataclass
class SegmentMap:
    """One segment per pixel, as in semantic and panoptic datasets.

    Attributes:
        ids: (H, W) segment ids below 2^24; UNLABELLED for none.
        labels: label of each segment id; pixels of other ids are unlabelled.
        path: of the file that they were read from.
    """

    ids: np.ndarray
    labels: dict[int, int]
    path: str

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.ids.shape

    def transformed(
        self, transforms: Transform, size: tuple[int, int], keep_unseen: bool = False
    ) -> "LabelMasks":
        """Masks after `transforms`.

        Args:
            keep_unseen: segments left without a pixel stay, with empty masks.
        """
        ids = transform_ids(self.ids, transforms)
        chosen = self.labels if keep_unseen else np.unique(ids).tolist()
        kept = [i for i in chosen if i in self.labels]
        masks = ids == np.asarray(kept, dtype=ids.dtype).reshape(-1, 1, 1)
        return LabelMasks([self.labels[i] for i in kept], masks, kept)

    def label_map(self, ignore_label: int) -> np.ndarray:
        """(H, W) labels, `ignore_label` where there is none; uint8 if they fit, else float64,
        the two types Detectron2 resizes without mixing labels."""
        ids, where = np.unique(self.ids, return_inverse=True)
        labels = np.asarray([self.labels.get(i, ignore_label) for i in ids.tolist()])
        dtype = np.uint8 if labels.max(initial=0) <= 255 else np.float64
        return labels.astype(dtype)[where].reshape(self.ids.shape)


@dataclass
class ObjectList:
    """Objects that may overlap, as in instance datasets.

    Attributes:
        labels: N.
        outlines: N COCO segmentations: lists of polygons, or compressed RLE.
        ids: N, by which frames of a video share an object; None: numbers.
    """

    labels: list[int]
    outlines: list[list | dict]
    ids: list[int] | None = None

    def transformed(
        self, transforms: Transform, size: tuple[int, int], keep_unseen: bool = False
    ) -> "LabelMasks":
        """Masks after `transforms`.

        Args:
            size: (h, w).
            keep_unseen: objects left without a pixel stay, with empty masks.
        """
        masks = np.zeros((len(self.labels), *size), dtype=bool)
        for mask, outline in zip(masks, self.outlines, strict=True):
            mask[:] = _rasterised(outline, transforms, size)
        kept = np.flatnonzero(masks.any((1, 2)) | keep_unseen)
        ids = range(len(masks)) if self.ids is None else self.ids
        return LabelMasks([self.labels[i] for i in kept], masks[kept], [ids[i] for i in kept])

    def label_map(self, ignore_label: int) -> None:
        """Objects do not make a label map."""
        return None


@dataclass
class LabelList:
    """Labels without masks, for classifiers.

    Attributes:
        labels: N, each once.
    """

    labels: list[int]

    def transformed(
        self, transforms: Transform, size: tuple[int, int], keep_unseen: bool = False
    ) -> "LabelMasks":
        """The same labels, with masks of no pixel and themselves as ids."""
        return LabelMasks(self.labels, np.zeros((len(self.labels), 0, 0), dtype=bool), self.labels)

    def label_map(self, ignore_label: int) -> None:
        """A list makes no label map."""
        return None


def void_label(num_labels: int) -> int:
    """What unlabelled pixels are in label maps that augmentation looks at; never a label."""
    return 255 if num_labels <= 255 else 65535


@dataclass
class LabelMasks:
    """What an image shows: N labels, (N, h, w) bool masks and N ids (-1: not visible)."""

    labels: list[int]
    masks: np.ndarray
    ids: list[int]


def aligned(frames: list[LabelMasks]) -> list[LabelMasks]:
    """The objects of a clip, all of them in each frame and in the same order, by ascending id.

    A label is taken from the first frame that shows the object. Where an object is not visible,
    its mask is empty and its id -1.

    Args:
        frames: T, of one size; objects of the same id are the same.
    """
    labels = {}
    for shown in frames:
        for i, label in zip(shown.ids, shown.labels, strict=True):
            labels.setdefault(i, label)
    ids = sorted(labels)
    row = {i: number for number, i in enumerate(ids)}
    clip = []
    for shown in frames:
        masks = np.zeros((len(ids), *shown.masks.shape[1:]), dtype=bool)
        masks[[row[i] for i in shown.ids]] = shown.masks
        seen = set(shown.ids)
        clip.append(
            LabelMasks([labels[i] for i in ids], masks, [i if i in seen else -1 for i in ids])
        )
    return clip


def semantic_targets(record: dict, ignore_label: int, num_labels: int) -> SegmentMap:
    """From a label map (`sem_seg_file_name`) of labels plus `label_offset` (default 0).

    Args:
        ignore_label: value of unlabelled pixels in the file; so is what is less than the offset.

    Raises:
        AnnotationError: a label that is not below `num_labels`, naming the file.
    """
    ids = annotations.label_map(record, ignore_label)
    labels = [i for i in np.unique(ids).tolist() if i != UNLABELLED]
    path = record["sem_seg_file_name"]
    _check_labels(labels, num_labels, path)
    return SegmentMap(ids, {i: i for i in labels}, path)


def panoptic_targets(record: dict, ignore_label: int, num_labels: int) -> SegmentMap:
    """From a panoptic PNG (`pan_seg_file_name`) and its `segments_info`; crowds are left out.

    Raises:
        AnnotationError: a label that is not below `num_labels`, naming the file.
    """
    ids, segments = annotations.segments(record)
    labels = {s["id"]: s["category_id"] for s in segments if not s.get("iscrowd", 0)}
    path = record["pan_seg_file_name"]
    _check_labels(labels.values(), num_labels, path)
    return SegmentMap(ids, labels, path)


def instance_targets(record: dict, ignore_label: int, num_labels: int) -> ObjectList:
    """From COCO instance annotations; crowds are left out.

    Raises:
        AnnotationError: a label that is not below `num_labels`, naming the file.
    """
    objects = [a for a in annotations.objects(record) if not a.get("iscrowd", 0)]
    labels = [a["category_id"] for a in objects]
    _check_labels(labels, num_labels, record["file_name"])
    ids = [a.get("id", number) for number, a in enumerate(objects)]
    return ObjectList(labels, [a["segmentation"] for a in objects], ids)


def label_targets(record: dict, ignore_label: int, num_labels: int) -> LabelList:
    """The labels a whole image shows, crowds included as in evaluation; whatever the source.

    No image of annotations is read where the record lists what it shows.

    Raises:
        AnnotationError: a label that is not below `num_labels`, naming the file.
    """
    labels = annotations.listed_labels(record)
    if labels is None:
        labels = semantic_targets(record, ignore_label, num_labels).labels
    _check_labels(labels, num_labels, record["file_name"])
    return LabelList(sorted(labels))


# First the form that says most.
_SOURCES = {
    "pan_seg_file_name": panoptic_targets,
    "sem_seg_file_name": semantic_targets,
    "annotations": instance_targets,
}


def any_targets(record: dict, ignore_label: int, num_labels: int) -> SegmentMap | ObjectList:
    """From whichever annotation the record has.

    Raises:
        AnnotationError: none of them.
    """
    for key, read in _SOURCES.items():
        if key in record:
            return read(record, ignore_label, num_labels)
    raise AnnotationError(f"{record['file_name']} has no ground truth ({', '.join(_SOURCES)})")


def transform_ids(ids: np.ndarray, transforms: Transform) -> np.ndarray:
    """An (H, W) map of ids from -1 (UNLABELLED) to 2^24 - 1 after `transforms`, -1 where they pad.

    Ids travel as the three bytes of a colour: transforms resize bytes by nearest neighbour with
    the same pixel centres as the image, and would shift wider types by half a pixel.
    """
    wide = ids.astype(np.int32)
    white = wide == _PADDING
    stand_in = _unused(wide) if white.any() else _PADDING
    wide = np.where(white, stand_in, wide)
    packed = np.stack([wide & 255, wide >> 8 & 255, wide >> 16 & 255], axis=2).astype(np.uint8)
    moved = np.asarray(transforms.apply_segmentation(packed)).astype(np.int32)
    moved = moved[:, :, 0] + (moved[:, :, 1] << 8) + (moved[:, :, 2] << 16)
    padded, white = moved == _PADDING, moved == stand_in
    return np.where(padded, UNLABELLED, np.where(white, _PADDING, moved))


def _unused(ids: np.ndarray) -> int:
    """The smallest id that a map does not have."""
    used = set(np.unique(ids).tolist())
    return next(i for i in range(len(used) + 1) if i not in used)


def _check_labels(labels, num_labels: int, path: str) -> None:
    wrong = sorted({k for k in labels if not 0 <= k < num_labels})
    if wrong:
        raise AnnotationError(
            f"{path}: label {wrong[0]} is neither below MODEL.SEM_SEG_HEAD.NUM_CLASSES="
            f"{num_labels} nor the ignore label; tools/check_dataset.py lists all such files"
        )


def _rasterised(outline: list | dict, transforms: Transform, size: tuple[int, int]) -> np.ndarray:
    if isinstance(outline, dict):
        # Padding is 255, hence not "> 0".
        return np.asarray(transforms.apply_segmentation(mask_util.decode(outline))) == 1
    # Moving the corners alone suffices, pycocotools clips: apply_polygons would need shapely.
    polygons = [
        transforms.apply_coords(np.asarray(p, dtype=np.float64).reshape(-1, 2)).reshape(-1).tolist()
        for p in outline
    ]
    return mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, *size))).astype(bool)
