"""Checks of a registered dataset before hours are spent on it."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from rankseg_m2f.annotations import record as annotations
from rankseg_m2f.annotations.coco import IMAGES
from rankseg_m2f.annotations.findings import AnnotationSource, Findings
from rankseg_m2f.annotations.objects import missing_media, objects_of_dataset, spare_media
from rankseg_m2f.annotations.outlines import checked_outlines, rasterised
from rankseg_m2f.annotations.record import (
    UNLABELLED,
    decode_labels,
    has_truth,
    labels_of_segments,
)
from rankseg_m2f.data.loader import is_video, load_records
from rankseg_m2f.data.video_mappers import frame_records
from rankseg_m2f.errors import UserError
from rankseg_m2f.images import ImageReadError, read_image, read_label_map

# Share of the pixels labelled in both maps that may differ: outlines by another hand; and that is
# worth a remark: ADE20K's objects and label maps are annotations of their own, which overlap.
_MAX_DIFFERENCE, _NOTED_DIFFERENCE = 0.25, 0.01
# Ignored pixels of this share, with hardly any label unseen, are a hint that they mean one.
_MANY_IGNORED, _FEW_UNSEEN = 0.02, 0.1


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
        UserError: unregistered, with advice, or a file that cannot be read at all.
    """
    records, findings = _read(name)
    metadata = MetadataCatalog.get(name)
    problems = findings.errors + findings.problems + _check_instances(metadata, records)
    if limit is not None and limit < len(records):
        records = [records[i] for i in np.linspace(0, len(records) - 1, limit).astype(int)]
    names = list(
        metadata.get("label_names")
        or metadata.get("stuff_classes")
        or metadata.get("thing_classes", [])
    )
    counts = np.zeros(len(names), dtype=np.int64)
    report = DatasetReport(name, names, len(records), counts, problems, [*findings.remarks])
    ignore_label = metadata.get("ignore_label", 255)
    seen = _Seen()
    with ThreadPoolExecutor(jobs) as pool:
        results = pool.map(lambda r: _check_record(r, len(names), ignore_label), records)
        if progress is not None:
            results = progress(results, total=len(records))
        for one in results:
            report.label_counts[sorted(one.labels)] += 1
            report.problems += one.problems
            report.remarks += one.remarks
            seen.ignored += one.ignored
            seen.pixels += one.pixels
    source = _source_of(metadata)
    if not records and not findings.errors:
        report.problems.append(f"{source}: dataset {name!r} has no records")
    elif records and not any(map(has_truth, records)):
        report.remarks = findings.remarks
        report.remarks.append(f"{source}: no annotations at all, as a test set has none")
    elif records and not report.label_counts.any():
        report.problems.append(f"{source}: no label in any record that can be read")
    report.remarks += _unseen_labels(report, seen, ignore_label, metadata.get("label_offset", 0))
    return report


def label_difference(first: Sequence[str], second: Sequence[str]) -> str | None:
    """Where two lists of label names differ first, in words; None: nowhere."""
    for number, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return f"label {number} is {a!r} in one and {b!r} in the other"
    if len(first) != len(second):
        return f"one has {len(first)} labels, the other {len(second)}"
    return None


@dataclass
class _Seen:
    """What was found in a record.

    Attributes:
        ignored: pixels of label maps that hold the ignore label, or less than the offset.
        pixels: of label maps.
    """

    labels: set[int] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    ignored: int = 0
    pixels: int = 0


def _read(name: str) -> tuple[list[dict], Findings]:
    """Records of a dataset, and what its source finds if it is one of ours."""
    if name not in DatasetCatalog.list():
        load_records([name])  # raises, and says what to do
    source = DatasetCatalog.data[name]
    if isinstance(source, AnnotationSource):
        return source.read()
    return DatasetCatalog.get(name), Findings()


def _source_of(metadata: Metadata) -> str:
    """The file or folder that a dataset is made of; its name where that is not known."""
    keys = ("panoptic_json", "json_file", "split_file", "sem_seg_root", "image_root")
    found = next((metadata.get(key) for key in keys if metadata.get(key)), metadata.name)
    return found if isinstance(found, str) else ", ".join(map(str, found))


def _check_instances(metadata: Metadata, records: list[dict]) -> list[str]:
    """Problems of the COCO instances beside a panoptic json."""
    if metadata.get("json_file") is None or metadata.get("panoptic_json") is None:
        return []
    findings = Findings()
    try:
        objects = objects_of_dataset(metadata, IMAGES, findings)
    except UserError as error:
        return [str(error)]
    known = {record.get("image_id") for record in records}
    compared = missing_media(objects.media, known), spare_media(objects.media, known)
    return findings.errors + findings.problems + [line for line in compared if line is not None]


def _unseen_labels(
    report: DatasetReport, seen: _Seen, ignore_label: int, label_offset: int
) -> list[str]:
    """A remark where pixels that are ignored may be of the labels that are never seen."""
    unseen = np.flatnonzero(report.label_counts == 0)
    few = max(1, int(_FEW_UNSEEN * len(report.label_names)))
    if not 1 <= len(unseen) <= few or seen.ignored <= _MANY_IGNORED * seen.pixels:
        return []
    first = int(unseen[0])
    below = f", and values below label_offset={label_offset}" if label_offset else ""
    return [
        f"{report.name}: label {first} ({report.label_names[first]}) is never seen, while "
        f"{seen.ignored / seen.pixels:.0%} of the pixels hold ignore_label={ignore_label}{below}: "
        f"if they mean that label, write {first + label_offset} there, or set ignore_label and "
        "label_offset to what the files hold"
    ]


def _check_record(record: dict, num_labels: int, ignore_label: int) -> _Seen:
    """What an image or all frames of a video show."""
    seen = _Seen()
    said = record.get("height"), record.get("width")
    frames = [record]
    if is_video(record):
        frames = frame_records(record, range(len(record["file_names"])))
    for frame in frames:
        try:
            size = read_image(frame["file_name"]).shape[:2]
        except ImageReadError as error:
            seen.problems.append(str(error))
            continue
        # What the record does not say, the first frame does.
        said = size if None in said else said
        if said != size:
            seen.problems.append(f"{frame['file_name']}: {size} pixels, the record says {said}")
        _check_annotations(frame, size, num_labels, ignore_label, seen)
    if not (seen.labels or seen.problems):
        seen.remarks.append(f"{frames[0]['file_name']}: nothing is labelled")
    return seen


def _check_annotations(
    record: dict, size: tuple[int, int], num_labels: int, ignore_label: int, seen: _Seen
) -> None:
    """Note what an image of `size` pixels shows."""
    before = len(seen.problems)
    for key, check in _CHECKS.items():
        if key not in record:
            continue
        shown = _Seen()
        try:
            seen.problems += check(record, size, ignore_label, shown)
        except ImageReadError as error:
            seen.problems.append(str(error))
        culprit = record[key] if isinstance(record[key], str) else record["file_name"]
        seen.problems += [
            f"{culprit}: label {k} of {key} is not below {num_labels}"
            for k in sorted(shown.labels)
            if not 0 <= k < num_labels
        ]
        seen.labels |= {k for k in shown.labels if 0 <= k < num_labels}
        seen.remarks += shown.remarks
        seen.ignored += shown.ignored
        seen.pixels += shown.pixels
    if len(seen.problems) == before and {"sem_seg_file_name", "pan_seg_file_name"} <= record.keys():
        problems, remarks = _check_agreement(record, num_labels, ignore_label)
        seen.problems += problems
        seen.remarks += remarks


def _check_agreement(
    record: dict, num_labels: int, ignore_label: int
) -> tuple[list[str], list[str]]:
    """Problems and remarks: the label map against the panoptic PNG, crowds aside.

    Both have the same size.
    """
    path = record["sem_seg_file_name"]
    drawn = labels_of_segments(*annotations.segments(record), crowds=False)
    mapped = annotations.label_map(record, ignore_label)
    labelled = drawn != UNLABELLED
    both = labelled & (mapped != UNLABELLED)
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


def _check_semantic(record: dict, size: tuple, ignore_label: int, seen: _Seen) -> Iterator[str]:
    path = record["sem_seg_file_name"]
    values = read_label_map(path)
    if values.shape != size:
        yield f"{path}: {values.shape} pixels, its image has {size}"
    if (lowest := values.min(initial=0)) < 0 and lowest != ignore_label:
        seen.remarks.append(f"{path}: the value {lowest} is below every label and is ignored")
    labels = decode_labels(values, ignore_label, record.get("label_offset", 0))
    seen.labels |= set(np.unique(labels).tolist()) - {UNLABELLED}
    seen.ignored += int(np.count_nonzero(labels == UNLABELLED))
    seen.pixels += labels.size


def _check_panoptic(record: dict, size: tuple, ignore_label: int, seen: _Seen) -> Iterator[str]:
    path = record["pan_seg_file_name"]
    ids, segments = annotations.segments(record)
    if ids.shape != size:
        yield f"{path}: {ids.shape} pixels, its image has {size}"
    drawn = set(np.unique(ids).tolist()) - {0}
    listed = {s["id"] for s in segments}
    for i in sorted(drawn - listed):
        yield f"{path}: segment {i} is drawn but not in the json"
    for i in sorted(listed - drawn):
        yield f"{path}: segment {i} is in the json but has no pixel"
    seen.labels |= {s["category_id"] for s in segments if not s.get("iscrowd", 0)}


def _check_objects(record: dict, size: tuple, ignore_label: int, seen: _Seen) -> Iterator[str]:
    objects = record["annotations"]
    said = record.get("height"), record.get("width")
    # Of another size, which is a problem already, an image that is not there may be huge.
    fits = None in said or said == size
    size = size if None in said else said
    # Also of datasets that others load.
    outlines, reasons = checked_outlines(
        [o.get("segmentation") for o in objects], [size] * len(objects)
    )
    for number, (found, outline) in enumerate(zip(objects, outlines, strict=True)):
        where = f"{record['file_name']}: annotation {found.get('id', f'number {number}')}"
        if reason := reasons.get(number):
            yield f"{where}: {reason[0]}"
        elif not outline:
            yield f"{where} has no segmentation"
        elif fits and not rasterised(outline, size).any():
            yield f"{where} has no pixel in the image"
        if not found.get("iscrowd", 0):
            seen.labels.add(found["category_id"])


_CHECKS = {
    "sem_seg_file_name": _check_semantic,
    "pan_seg_file_name": _check_panoptic,
    "annotations": _check_objects,
}
