"""Checks of a registered dataset before hours are spent on it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from rankseg_m2f.images import ImageReadError, read_image, read_label_map, read_panoptic_map


@dataclass
class DatasetReport:
    """What was found in a dataset.

    Attributes:
        name: the dataset.
        num_records: records looked at.
        label_counts: (K,) pictures in which each label occurs.
        problems: one line each, beginning with the file; training on them would fail or mislead.
        remarks: one line each; worth knowing, harmless.
    """

    name: str
    num_records: int
    label_counts: np.ndarray
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def check_dataset(
    name: str, limit: int | None = None, progress: Callable | None = None, jobs: int = 8
) -> DatasetReport:
    """Read every picture and annotation of a registered dataset.

    Args:
        limit: look at this many records, spread evenly.
        progress: wraps the iterator of results, given total=, as tqdm does.
        jobs: threads.

    Raises:
        KeyError: unregistered.
    """
    if name not in DatasetCatalog.list():
        raise KeyError(f"dataset {name!r} is not registered")
    metadata = MetadataCatalog.get(name)
    records = DatasetCatalog.get(name)
    if limit is not None and limit < len(records):
        records = [records[i] for i in np.linspace(0, len(records) - 1, limit).astype(int)]
    num_labels = len(metadata.get("stuff_classes", metadata.get("thing_classes", [])))
    report = DatasetReport(name, len(records), np.zeros(num_labels, dtype=np.int64))
    if not records:
        report.problems.append(f"{name}: no records")
    ignore_label = metadata.get("ignore_label", 255)
    with ThreadPoolExecutor(jobs) as pool:
        results = pool.map(lambda r: _check_record(r, num_labels, ignore_label), records)
        if progress is not None:
            results = progress(results, total=len(records))
        for labels, problems, remarks in results:
            report.label_counts[sorted(labels)] += 1
            report.problems += problems
            report.remarks += remarks
    return report


def _check_record(
    record: dict, num_labels: int, ignore_label: int
) -> tuple[set[int], list[str], list[str]]:
    """Labels present, problems, remarks."""
    problems, remarks, labels = [], [], set()
    try:
        size = read_image(record["file_name"]).shape[:2]
    except ImageReadError as error:
        return labels, [str(error)], remarks
    said = record.get("height", size[0]), record.get("width", size[1])
    if said != size:
        problems.append(f"{record['file_name']}: {size} pixels, the record says {said}")
    for key, check in _CHECKS.items():
        if key in record:
            found = set()
            try:
                problems += check(record, size, ignore_label, found)
            except ImageReadError as error:
                problems.append(str(error))
            problems += [
                f"{record['file_name']}: label {k} of {key} is not below {num_labels}"
                for k in sorted(found)
                if not 0 <= k < num_labels
            ]
            labels |= {k for k in found if 0 <= k < num_labels}
    if not labels and not problems:
        remarks.append(f"{record['file_name']}: nothing is labelled")
    return labels, problems, remarks


def _check_semantic(record: dict, size: tuple, ignore_label: int, found: set) -> Iterator[str]:
    path = record["sem_seg_file_name"]
    ids = read_label_map(path)
    if ids.shape != size:
        yield f"{path}: {ids.shape} pixels, its picture has {size}"
    found |= set(np.unique(ids).tolist()) - {ignore_label}


def _check_panoptic(record: dict, size: tuple, ignore_label: int, found: set) -> Iterator[str]:
    path = record["pan_seg_file_name"]
    ids = read_panoptic_map(path)
    if ids.shape != size:
        yield f"{path}: {ids.shape} pixels, its picture has {size}"
    drawn = set(np.unique(ids).tolist()) - {0}
    listed = {s["id"] for s in record["segments_info"]}
    for i in sorted(drawn - listed):
        yield f"{path}: segment {i} is drawn but not in the json"
    for i in sorted(listed - drawn):
        yield f"{path}: segment {i} is in the json but has no pixel"
    found |= {s["category_id"] for s in record["segments_info"] if not s.get("iscrowd", 0)}


def _check_objects(record: dict, size: tuple, ignore_label: int, found: set) -> Iterator[str]:
    for number, annotation in enumerate(record["annotations"]):
        outline = annotation.get("segmentation")
        if not outline:
            yield f"{record['file_name']}: object {number} has no segmentation"
        elif isinstance(outline, dict) and tuple(outline["size"]) != size:
            yield (
                f"{record['file_name']}: the mask of object {number} has "
                f"{tuple(outline['size'])} pixels, its picture {size}"
            )
        if not annotation.get("iscrowd", 0):
            found.add(annotation["category_id"])


_CHECKS = {
    "sem_seg_file_name": _check_semantic,
    "pan_seg_file_name": _check_panoptic,
    "annotations": _check_objects,
}
