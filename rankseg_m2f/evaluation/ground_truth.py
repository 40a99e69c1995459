"""The truth about a dataset's images or clips, in whichever form its annotations are.

Shapes: K labels; T frames; H, W image size; M labels or segments of one image or clip.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from rankseg_m2f.annotations import record as annotations
from rankseg_m2f.annotations.record import UNLABELLED, decode_labels
from rankseg_m2f.errors import UserError
from rankseg_m2f.images import AnnotationError, read_label_map
from rankseg_m2f.label_scores import image_roots, record_key

IGNORED = UNLABELLED


class GroundTruth:
    """Annotations by image file name.

    Attributes:
        name: the dataset's.
        label_names: K names.
        thing_ids: contiguous ids of the countable labels.
        has_maps: False when images have neither label map nor panoptic PNG.
        has_segments: whether images have a panoptic PNG.
        label_offset: value of label 0 in the label maps.
    """

    unit = "image"

    def __init__(self, name: str, records: Sequence[dict], metadata: Metadata | Mapping):
        """
        Args:
            records: Detectron2 dataset dicts with contiguous label ids.
            metadata: of Detectron2's catalog, or a dict of the same keys. Label maps hold the
                label's id plus `label_offset` (default 0); less than that is ignored, as is
                `ignore_label` (default 255).

        Raises:
            UserError: no records, or no label names.
        """
        names = (metadata.get(k) for k in ("label_names", "stuff_classes", "thing_classes"))
        self.name = name
        self._image_roots = image_roots(metadata)
        self.label_names = next((list(n) for n in names if n), None)
        if self.label_names is None:
            raise UserError(
                f"dataset {name!r} names no labels: set label_names, stuff_classes or "
                "thing_classes in its metadata"
            )
        if not records:
            raise UserError(f"dataset {name!r} has no images")
        self.thing_ids = set((metadata.get("thing_dataset_id_to_contiguous_id") or {}).values())
        maps = {"sem_seg_file_name", "sem_seg_file_names", "pan_seg_file_name"}
        self.has_maps = bool(maps & set(records[0]))
        self.has_segments = "pan_seg_file_name" in records[0]
        self._ignore_label = metadata.get("ignore_label", 255)
        self.label_offset = metadata.get("label_offset", 0)
        self._records = {self.key(record): record for record in records}
        # Several evaluators ask for the same map in turn.
        self.label_map = lru_cache(maxsize=1)(self._label_map)
        self.segments = lru_cache(maxsize=1)(self._segments)

    @classmethod
    def from_dataset(cls, name: str, records: Sequence[dict] | None = None) -> "GroundTruth":
        """That of a registered dataset; a `VideoTruth` where records have `file_names`.

        Args:
            records: the dataset's, where they have been loaded; None: from the catalog.
        """
        records = DatasetCatalog.get(name) if records is None else records
        kind = VideoTruth if records and "file_names" in records[0] else cls
        return kind(name, records, MetadataCatalog.get(name))

    @staticmethod
    def key(record: Mapping) -> str:
        """What tells an image from the others: its file name."""
        return record["file_name"]

    def unit_of(self, key: str) -> str:
        """What an image or clip is drawn with in a resample of independent ones: its own key."""
        return self.portable_key(key)

    @property
    def num_labels(self) -> int:
        """K."""
        return len(self.label_names)

    @property
    def records(self) -> list[dict]:
        """Records of all images or clips, as Detectron2 has them."""
        return list(self._records.values())

    @property
    def file_names(self) -> list[str]:
        """File names of all images."""
        return list(self._records)

    def portable_key(self, key: str) -> str:
        """What tells an image from the others wherever the dataset lies; see `record_key`."""
        return record_key(self._record(key), self._image_roots)

    def size(self, file_name: str) -> tuple[int, int]:
        """(H, W) of an image that has a map."""
        return self.label_map(file_name).shape

    def labels(self, file_name: str) -> tuple[np.ndarray, np.ndarray]:
        """What an image shows, crowds included.

        Returns:
            (M,) int64 label ids, ascending; (M,) int64 pixels of each, zeros without a map.
        """
        if self.has_maps:
            label_map = self.label_map(file_name)
            pixels = np.bincount(label_map[label_map != IGNORED], minlength=self.num_labels)
            present = pixels.nonzero()[0]
            return present, pixels[present]
        objects = self._record(file_name).get("annotations", [])
        present = np.unique(np.array([a["category_id"] for a in objects], dtype=np.int64))
        return present, np.zeros_like(present)

    def _label_map(self, file_name: str) -> np.ndarray:
        """(H, W) int32 label ids, IGNORED where there is none."""
        record = self._record(file_name)
        if "sem_seg_file_name" not in record:
            return annotations.labels_of_segments(*self.segments(file_name))
        # The dataset's offset serves records that have none of their own.
        record = {"label_offset": self.label_offset, **record}
        label_map = annotations.label_map(record, self._ignore_label)
        if label_map.max(initial=IGNORED) >= self.num_labels:
            raise AnnotationError(
                f"ground truth {record['sem_seg_file_name']} has label {label_map.max()}, but "
                f"dataset {self.name!r} has {self.num_labels} labels and ignores "
                f"{self._ignore_label}"
            )
        return label_map

    def _segments(self, file_name: str) -> tuple[np.ndarray, list[dict]]:
        """(H, W) int32 segment ids, 0 for none; and M dicts with id, category_id, iscrowd."""
        record = self._record(file_name)
        if "pan_seg_file_name" not in record:
            raise UserError(
                f"dataset {self.name!r} has no panoptic PNG (pan_seg_file_name) for {file_name}"
            )
        return annotations.segments(record)

    def _record(self, key: str) -> dict:
        try:
            return self._records[key]
        except KeyError:
            raise ValueError(f"{key} is not in dataset {self.name!r}") from None


class VideoTruth(GroundTruth):
    """Annotations by clip: a part of a video where records have `clip`, else a whole one.

    Attributes:
        clips: of each video, the keys of its clips in order.
    """

    unit = "clip"

    def __init__(self, name: str, records: Sequence[dict], metadata: Metadata | Mapping):
        """
        Args:
            records: `video_id` and `file_names` (T paths), with either `sem_seg_file_names` (T
                paths) and `clip`, the clip's number in its video, or `annotations`: per frame the
                objects, with contiguous `category_id`.
            metadata: as for images, but in label maps whatever is no label is ignored.

        Raises:
            UserError: as for images, or two clips share a frame.
        """
        super().__init__(name, records, metadata)
        self.clips: dict[str, list[str]] = {}
        for key in sorted(self._records):
            self.clips.setdefault(str(self._records[key]["video_id"]), []).append(key)
        self._check_frames(records)
        self.maps = lru_cache(maxsize=1)(self._maps)

    @staticmethod
    def key(record: Mapping) -> str:
        """The name of the video, and the number of the clip if the record is one of several."""
        video = str(record["video_id"])
        return f"{video}/{record['clip']:06d}" if "clip" in record else video

    @property
    def longest_clip(self) -> int:
        """Largest T."""
        return max(len(record["file_names"]) for record in self._records.values())

    def video(self, key: str) -> str:
        """Name of the video a clip is of."""
        return str(self._record(key)["video_id"])

    def unit_of(self, key: str) -> str:
        """The video: its clips look alike."""
        return self.video(key)

    def frames(self, key: str) -> list[str]:
        """File names of a clip's frames."""
        return self._record(key)["file_names"]

    def label_maps(self, key: str) -> Iterator[np.ndarray]:
        """(H, W) int32 of each frame: label ids, IGNORED where there is none."""
        for values in self.maps(key):
            label_map = decode_labels(values, self._ignore_label, self.label_offset)
            yield np.where(label_map < self.num_labels, label_map, IGNORED)

    def labels(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """What a clip shows in any frame; as for images."""
        if self.has_maps:
            pixels = np.zeros(self.num_labels, dtype=np.int64)
            for label_map in self.label_maps(key):
                pixels += np.bincount(label_map[label_map != IGNORED], minlength=self.num_labels)
            present = pixels.nonzero()[0]
            return present, pixels[present]
        objects = [o for frame in self._record(key).get("annotations") or [] for o in frame]
        present = np.unique(np.array([o["category_id"] for o in objects], dtype=np.int64))
        return present, np.zeros_like(present)

    def _maps(self, key: str) -> np.ndarray:
        """(T, H, W) values of a clip's label maps as they are in the files."""
        paths = self._record(key)["sem_seg_file_names"]
        maps = [read_label_map(path) for path in paths]
        for path, values in zip(paths, maps, strict=True):
            if values.min(initial=0) < 0:
                raise AnnotationError(f"ground truth {path} has the negative value {values.min()}")
            if values.shape != maps[0].shape:
                raise AnnotationError(
                    f"ground truth {path} is {values.shape}, but {paths[0]} of the same clip is "
                    f"{maps[0].shape}; frames of a video need one size"
                )
        return np.stack(maps)

    def _check_frames(self, records: Sequence[dict]) -> None:
        """Frames in two clips would count twice."""
        seen: dict[str, str] = {}
        for record in records:
            key = self.key(record)
            for path in record["file_names"]:
                if seen.setdefault(path, key) != key:
                    raise UserError(
                        f"dataset {self.name!r}: {path} is in the clips {seen[path]} and {key}"
                    )
