"""The truth about a dataset's images, in whichever form its annotations are.

Shapes: K labels; H, W image size; M labels or segments of one image.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from rankseg_m2f.images import read_label_map, read_panoptic_map

IGNORED = -1


class GroundTruth:
    """Annotations by image file name.

    Attributes:
        name: the dataset's.
        label_names: K names.
        thing_ids: contiguous ids of the countable labels.
        has_maps: False when images have neither label map nor panoptic PNG.
    """

    def __init__(self, name: str, records: Sequence[dict], metadata: Metadata | Mapping):
        """
        Args:
            records: Detectron2 dataset dicts with contiguous label ids.
            metadata: of Detectron2's catalog, or a dict of the same keys.

        Raises:
            ValueError: no records, or no label names.
        """
        names = (metadata.get(k) for k in ("label_names", "stuff_classes", "thing_classes"))
        self.name = name
        self.label_names = next((list(n) for n in names if n), None)
        if self.label_names is None:
            raise ValueError(
                f"dataset {name!r} names no labels: set label_names, stuff_classes or "
                "thing_classes in its metadata"
            )
        if not records:
            raise ValueError(f"dataset {name!r} has no images")
        self.thing_ids = set((metadata.get("thing_dataset_id_to_contiguous_id") or {}).values())
        self.has_maps = bool({"sem_seg_file_name", "pan_seg_file_name"} & set(records[0]))
        self._ignore_label = metadata.get("ignore_label", 255)
        self._records = {record["file_name"]: record for record in records}
        # Several evaluators ask for the same map in turn.
        self.label_map = lru_cache(maxsize=1)(self._label_map)
        self.segments = lru_cache(maxsize=1)(self._segments)

    @classmethod
    def of(cls, name: str) -> "GroundTruth":
        """That of a registered dataset."""
        return cls(name, DatasetCatalog.get(name), MetadataCatalog.get(name))

    @property
    def num_labels(self) -> int:
        """K."""
        return len(self.label_names)

    @property
    def file_names(self) -> list[str]:
        """Those of all images."""
        return list(self._records)

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
        annotations = self._record(file_name).get("annotations", [])
        present = np.unique(np.array([a["category_id"] for a in annotations], dtype=np.int64))
        return present, np.zeros_like(present)

    def _label_map(self, file_name: str) -> np.ndarray:
        """(H, W) int32 label ids, IGNORED where there is none."""
        record = self._record(file_name)
        if "sem_seg_file_name" not in record:
            return self._label_map_of_segments(file_name)
        path = record["sem_seg_file_name"]
        label_map = read_label_map(path).astype(np.int32)
        label_map[label_map == self._ignore_label] = IGNORED
        if label_map.max(initial=IGNORED) >= self.num_labels:
            raise ValueError(
                f"ground truth {path} has label {label_map.max()}, but dataset {self.name!r} has "
                f"{self.num_labels} labels and ignores {self._ignore_label}"
            )
        return label_map

    def _label_map_of_segments(self, file_name: str) -> np.ndarray:
        segment_map, segments = self.segments(file_name)
        ids, index = np.unique(segment_map, return_inverse=True)
        label_of = {s["id"]: s["category_id"] for s in segments}
        labels = np.array([label_of.get(i, IGNORED) for i in ids.tolist()], dtype=np.int32)
        return labels[index].reshape(segment_map.shape)

    def _segments(self, file_name: str) -> tuple[np.ndarray, list[dict]]:
        """(H, W) int32 segment ids, 0 for none; and M dicts with id, category_id, iscrowd."""
        record = self._record(file_name)
        if "pan_seg_file_name" not in record:
            raise ValueError(
                f"dataset {self.name!r} has no panoptic PNG (pan_seg_file_name) for {file_name}"
            )
        return read_panoptic_map(record["pan_seg_file_name"]), record["segments_info"]

    def _record(self, file_name: str) -> dict:
        try:
            return self._records[file_name]
        except KeyError:
            raise ValueError(f"{file_name} is no image of dataset {self.name!r}") from None
