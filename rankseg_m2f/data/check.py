"""Checks of a registered dataset before hours are spent on it."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from rankseg_m2f.data.datasets.checks import read_coco
from rankseg_m2f.data.ground_truth import panoptic_truth
from rankseg_m2f.data.loader import is_video, load_records
from rankseg_m2f.data.video_mappers import frame_records
from rankseg_m2f.images import (
    ImageReadError,
    label_ids,
    read_image,
    read_label_map,
    read_panoptic_map,
)

# Share of the pixels labelled in both maps that may differ: outlines by another hand; and that is
# worth a remark: ADE20K's objects and label maps are annotations of their own, which overlap.
_MAX_DIFFERENCE, _NOTED_DIFFERENCE = 0.25, 0.01
_UNLABELLED = -1


@dataclass
class DatasetReport:
    """What was found in a dataset.

    Attributes:
        name: the dataset.
        label_names: K names.
        num_records: records looked at.
        label_counts: (K,) images in which each label occurs.
        problems: one line each, beginning with the file; training on them would fail or mislead.
        remarks: one line each; worth knowing, harmless.
    """

    name: str
    label_names: list[str]
    num_records: int
    label_counts: np.ndarray
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def check_dataset(
    name: str, limit: int | None = None, progress: Callable | None = None, jobs: int = 8
) -> DatasetReport:
    """Read every image and annotation of a registered dataset.

    Args:
        limit: look at this many records, spread evenly.
        progress: wraps the iterator of results, given total=, as tqdm does.
        jobs: threads.

    Raises:
        KeyError: unregistered, with advice.
        ValueError: annotations that cannot be loaded, naming the file.
    """
    if name not in DatasetCatalog.list():
        load_records([name])  # raises, and says what to do
    metadata = MetadataCatalog.get(name)
    records = DatasetCatalog.get(name)
    json_problems = _check_json(metadata.get("json_file"), records)
    if limit is not None and limit < len(records):
        records = [records[i] for i in np.linspace(0, len(records) - 1, limit).astype(int)]
    names = list(
        metadata.get("label_names")
        or metadata.get("stuff_classes")
        or metadata.get("thing_classes", [])
    )
    counts = np.zeros(len(names), dtype=np.int64)
    report = DatasetReport(name, names, len(records), counts, json_problems)
    ignore_label = metadata.get("ignore_label", 255)
    with ThreadPoolExecutor(jobs) as pool:
        results = pool.map(lambda r: _check_record(r, len(names), ignore_label), records)
        if progress is not None:
            results = progress(results, total=len(records))
        for labels, problems, remarks in results:
            report.label_counts[sorted(labels)] += 1
            report.problems += problems
            report.remarks += remarks
    if not records:
        report.problems.append(f"{name}: no records")
    elif not any(_TRUTHS & record.keys() for record in records):
        report.remarks = [f"{name}: no annotations at all, as a test set has none"]
    elif not report.label_counts.any():
        report.problems.append(f"{name}: no label in any record that can be read")
    return report


def label_difference(first: Sequence[str], second: Sequence[str]) -> str | None:
    """Where two lists of label names differ first, in words; None: nowhere."""
    for number, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return f"label {number} is {a!r} in one and {b!r} in the other"
    if len(first) != len(second):
        return f"one has {len(first)} labels, the other {len(second)}"
    return None


def _check_json(path: str | None, records: list[dict]) -> list[str]:
    """What loading the records does not show of the COCO json beside or behind them."""
    if path is None:
        return []
    # YouTube-VIS has the same form with videos for images.
    kind = "video" if records and is_video(records[0]) else "image"
    try:
        content = read_coco(Path(path), f"{kind}s")
    except (ValueError, OSError) as error:
        return [str(error)]
    listed = {entry.get("id") for entry in content[f"{kind}s"]}
    known = {record.get(f"{kind}_id") for record in records}
    problems = [
        f"{path}: {len(ids)} {kind}s are {where}, first id {min(ids, key=str)}"
        for where, ids in (
            ("missing, although the dataset has them", known - listed),
            ("listed, although the dataset lacks them", listed - known),
        )
        if ids
    ]
    if kind == "image" and (bare := [a for a in content.get("annotations") or [] if _bare(a)]):
        problems.append(
            f"{path}: {len(bare)} annotations lack 'area' or 'iscrowd', without which there is no "
            f"AP, first {bare[0].get('id')}"
        )
    return problems + [
        f"{path}: annotation {annotation.get('id')} of {kind} {annotation.get(f'{kind}_id')} has a "
        f"polygon of {size} coordinates: 6 or more, and an even number, make one"
        for annotation in content.get("annotations") or []
        for outline in annotation.get("segmentations") or [annotation.get("segmentation")]
        for size in _polygon_sizes(outline)
        if size < 6 or size % 2
    ]


def _bare(annotation: dict) -> bool:
    """Whether an annotation lacks what pycocotools needs to evaluate."""
    return not {"area", "iscrowd"} <= annotation.keys()


def _polygon_sizes(outline: list | dict | None) -> list[int]:
    """Coordinates of each polygon; none of RLE."""
    polygons = outline if isinstance(outline, list) else []
    return [len(polygon) if isinstance(polygon, list) else 1 for polygon in polygons]


def _check_record(
    record: dict, num_labels: int, ignore_label: int
) -> tuple[set[int], list[str], list[str]]:
    """Labels present in an image or in any frame of a video, problems, remarks."""
    problems, remarks, labels = [], [], set()
    said = record.get("height"), record.get("width")
    frames = [record]
    if is_video(record):
        frames = frame_records(record, range(len(record["file_names"])))
    for frame in frames:
        try:
            size = read_image(frame["file_name"]).shape[:2]
        except ImageReadError as error:
            problems.append(str(error))
            continue
        # What the record does not say, the first frame does.
        said = size if None in said else said
        if said != size:
            problems.append(f"{frame['file_name']}: {size} pixels, the record says {said}")
        found, wrong, noted = _check_annotations(frame, size, num_labels, ignore_label)
        labels |= found
        problems += wrong
        remarks += noted
    if not (labels or problems):
        remarks.append(f"{frames[0]['file_name']}: nothing is labelled")
    return labels, problems, remarks


def _check_annotations(
    record: dict, size: tuple[int, int], num_labels: int, ignore_label: int
) -> tuple[set[int], list[str], list[str]]:
    """Labels present in an image of `size` pixels, problems, remarks."""
    problems, labels = [], set()
    for key, check in _CHECKS.items():
        if key not in record:
            continue
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
    if problems or not {"sem_seg_file_name", "pan_seg_file_name"} <= record.keys():
        return labels, problems, []
    return labels, *_check_agreement(record, num_labels, ignore_label)


def _check_agreement(
    record: dict, num_labels: int, ignore_label: int
) -> tuple[list[str], list[str]]:
    """Problems and remarks: the label map against the panoptic PNG, crowds aside.

    Both have the same size.
    """
    path = record["sem_seg_file_name"]
    # No label of the map can be num_labels.
    drawn = panoptic_truth(record, num_labels, num_labels).label_map(num_labels)
    mapped = read_label_map(path)
    labelled = drawn != num_labels
    both = labelled & (mapped != ignore_label)
    if not both.any():
        none = f"{path}: no pixel has a label that has one in {record['pan_seg_file_name']}"
        return [none] if labelled.any() else [], []
    share = np.count_nonzero(drawn[both] != mapped[both]) / np.count_nonzero(both)
    found = [
        f"{path}: {share:.0%} of the labelled pixels have another label than in "
        f"{record['pan_seg_file_name']}"
    ]
    if share > _MAX_DIFFERENCE:
        return found, []
    return [], found if share > _NOTED_DIFFERENCE else []


def _check_semantic(record: dict, size: tuple, ignore_label: int, found: set) -> Iterator[str]:
    path = record["sem_seg_file_name"]
    ids = read_label_map(path)
    if ids.shape != size:
        yield f"{path}: {ids.shape} pixels, its image has {size}"
    ids = label_ids(ids, ignore_label, record.get("label_offset", 0), unlabelled=_UNLABELLED)
    found |= set(np.unique(ids).tolist()) - {_UNLABELLED}


def _check_panoptic(record: dict, size: tuple, ignore_label: int, found: set) -> Iterator[str]:
    path = record["pan_seg_file_name"]
    ids = read_panoptic_map(path)
    if ids.shape != size:
        yield f"{path}: {ids.shape} pixels, its image has {size}"
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
        elif isinstance(outline, dict) and tuple(said := outline.get("size", ())) != size:
            yield (
                f"{record['file_name']}: the mask of object {number} has {tuple(said)} pixels, its "
                f"image {size}"
            )
        if not annotation.get("iscrowd", 0):
            found.add(annotation["category_id"])


# What a record with ground truth has; "sem_seg_file_names" is of videos.
_TRUTHS = {"sem_seg_file_name", "sem_seg_file_names", "pan_seg_file_name", "annotations"}
_CHECKS = {
    "sem_seg_file_name": _check_semantic,
    "pan_seg_file_name": _check_panoptic,
    "annotations": _check_objects,
}
