"""Objects of images (COCO instances) and of videos (YouTube-VIS): one reader, an image being a
video of one frame.

Shapes: T frames, N annotations, M masks of all of them.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from rankseg_m2f.annotations.coco import (
    IMAGES,
    Kind,
    Media,
    MediaList,
    check_entries,
    read_coco,
    read_media,
    report_unlisted,
    resolve_sizes,
)
from rankseg_m2f.annotations.coco_categories import contiguous_labels, namesakes, sound_categories
from rankseg_m2f.annotations.fields import as_flag, as_number, shown
from rankseg_m2f.annotations.findings import Findings
from rankseg_m2f.annotations.folders import missing_files
from rankseg_m2f.annotations.outlines import checked_outlines


@dataclass
class ObjectFile:
    """What a json of objects holds.

    Attributes:
        categories: with `id` and `name`, no two alike.
        labels: contiguous, by category id.
        media: images or videos, with their objects.
        annotated: False of a test set, which has no list of annotations.
    """

    path: Path
    categories: list[dict]
    labels: dict[int, int]
    media: MediaList
    annotated: bool

    def tracks(self) -> dict:
        """`videos`, `categories` and `annotations` of videos in the form of their json."""
        category_of = {label: category for category, label in self.labels.items()}
        return {
            "videos": [
                {"id": v.id, "file_names": v.files, "height": v.size[0], "width": v.size[1]}
                for v in self.media.known.values()
            ],
            "categories": [c for c in self.categories if c["id"] in self.labels],
            "annotations": [
                {**track, "video_id": v.id, "category_id": category_of[track["category_id"]]}
                for v in self.media.known.values()
                for track in v.tracks
            ],
        }


def read_objects(
    path: Path,
    kind: Kind,
    root: Path | None,
    names: Mapping[int, str],
    labels: Mapping[int, int],
    findings: Findings,
    by_name: bool = False,
) -> ObjectFile:
    """Objects of each frame as Detectron2's annotations: `id` (of the json; of tracks an integer of
    their own), `category_id` (contiguous), `iscrowd` 0 or 1, `segmentation` (see
    `checked_outlines`), and, where the json has sound ones, `bbox` with `bbox_mode`, and `area`.

    Args:
        root: of the files, for sizes that the json does not say; None: not known.
        names, labels, by_name: of the dataset, see `contiguous_labels`.

    Raises:
        UserError: not such a json, or other categories than the dataset's.
    """
    content = read_coco(path, kind.plural, "categories")
    categories = sound_categories(path, content["categories"])
    findings.remarks += [f"{path}: {remark}" for remark in namesakes(categories)]
    labels = contiguous_labels(path, categories, names, labels, by_name)
    media = read_media(path, kind, content[kind.plural], findings)
    resolve_sizes(media, lambda m: None if root is None else root / m.files[0], findings)
    for one in media.known.values():
        one.objects = [[] for _ in one.files]
    annotations = content.get("annotations")
    if annotations is not None and not isinstance(annotations, list):
        findings.errors.append(f"{path}: 'annotations' is {shown(annotations)}, not a list")
        annotations = []
    if annotations:
        _ObjectReader(media, labels, findings).read(annotations)
    return ObjectFile(path, categories, labels, media, annotations is not None)


def load_objects(
    findings: Findings, *, path: Path, root: Path, kind: Kind, names: dict[int, str]
) -> list[dict]:
    """Records of a json of objects.

    Images are in the order of their ids, as Detectron2 has them, videos in that of the json. All
    frames of videos must exist. Videos of a json without annotations have none; images have an
    empty list.

    Args:
        root: of the files.
        names: of the labels, by category id and in the order of the labels.

    Raises:
        UserError: not such a json, or other categories than the dataset's.
    """
    labels = {category: label for label, category in enumerate(names)}
    found = read_objects(path, kind, root, names, labels, findings)
    media = [*found.media.known.values()]
    if kind is IMAGES:
        # Ids of two kinds are an error by now, and have no order.
        media.sort(key=lambda one: (isinstance(one.id, str), one.id))
        return [
            {
                "file_name": str(root / one.files[0]),
                "height": one.size[0],
                "width": one.size[1],
                "image_id": one.id,
                "annotations": one.objects[0],
            }
            for one in media
        ]
    records = [
        {
            "video_id": one.id,
            "file_names": [str(root / file) for file in one.files],
            "height": one.size[0],
            "width": one.size[1],
            "length": len(one.files),
            **({"annotations": one.objects} if found.annotated else {}),
        }
        for one in media
    ]
    findings.errors += missing_files(f for record in records for f in record["file_names"])
    return records


@dataclass
class _Entry:
    """An annotation on its way."""

    media: Media
    values: dict
    boxes: list
    annotation: dict


@dataclass
class _ObjectReader:
    """Reads annotations in one pass and checks all their outlines at once."""

    media: MediaList
    labels: Mapping[int, int]
    findings: Findings
    entries: list[_Entry] = field(default_factory=list)
    outlines: list = field(default_factory=list)
    sizes: list = field(default_factory=list)
    # (number of the entry, frame) of each outline.
    places: list = field(default_factory=list)
    bare: list[str] = field(default_factory=list)

    def read(self, annotations: list) -> None:
        """Put every object among those of its frames."""
        path, kind = self.media.path, self.media.kind
        annotations = check_entries(path, "annotations", annotations, self.findings)
        annotations, anew = _once(path, annotations, kind, self.findings)
        unlisted = []
        for number, annotation in enumerate(annotations):
            owner = annotation.get(kind.owner)
            usable = type(owner) in (int, str, float)
            media = self.media.known.get(owner) if usable else None
            if media is not None:
                self._take(annotation, media, number + 1 if anew else annotation.get("id"))
            elif not usable or owner not in self.media.dropped:
                unlisted.append((number, owner))
        report_unlisted(self.media, unlisted, len(annotations), self.findings)
        kept, reasons = checked_outlines(self.outlines, self.sizes)
        self._report(reasons, kept)
        for (number, frame), outline in zip(self.places, kept, strict=True):
            if outline is not None:
                self._add(self.entries[number], frame, outline)
        if kind is not IMAGES:
            self._add_tracks(kept)

    def _take(self, annotation: dict, media: Media, number: Any) -> None:
        """Look at everything but the outlines."""
        kind, findings = self.media.kind, self.findings
        category = annotation.get("category_id")
        label = self.labels.get(category) if type(category) in (int, float) else None
        if label is None:
            findings.errors.append(f"{self._where(annotation)} {self._unknown(category)}")
            return
        values = {"id": number, "category_id": label}
        values["iscrowd"] = crowd = as_flag(annotation.get("iscrowd"))
        if crowd is None:
            findings.problems.append(
                f"{self._where(annotation)} has iscrowd {shown(annotation['iscrowd'])}, which is "
                "neither 0 nor 1: it counts as 0"
            )
            values["iscrowd"] = 0
        if annotation.get("ignore") and as_flag(annotation["ignore"]):
            # As COCO's evaluation has it: neither a hit nor a miss.
            values["iscrowd"] = 1
        if kind is IMAGES:
            outlines, boxes = [annotation.get("segmentation")], [annotation.get("bbox")]
            area = as_number(annotation.get("area"))
            if area is not None and area > 0:
                values["area"] = area
        else:
            outlines, boxes = self._frames(annotation, media)
        shapes = [(t, outline) for t, outline in enumerate(outlines) if outline]
        if not shapes:
            self.bare.append(self._name(annotation))
            return
        for frame, outline in shapes:
            self.outlines.append(outline)
            self.sizes.append(media.size)
            self.places.append((len(self.entries), frame))
        self.entries.append(_Entry(media, values, boxes, annotation))

    def _frames(self, track: dict, media: Media) -> tuple[list, list]:
        """Outlines and boxes of a track, one per frame; none if they do not fit its video."""
        outlines, length = track.get("segmentations"), len(media.files)
        if outlines is None:
            return [], []
        if not isinstance(outlines, list) or len(outlines) != length:
            number = len(outlines) if isinstance(outlines, list) else f"{shown(outlines)} for"
            self.findings.errors.append(
                f"{self._where(track)} has {number} segmentations, {self.media.kind.name} "
                f"{media.id} has {length} frames"
            )
            return [], []
        boxes = track.get("bboxes")
        return outlines, boxes if isinstance(boxes, list) and len(boxes) == length else []

    def _add(self, entry: _Entry, frame: int, outline: list | dict) -> None:
        found = dict(entry.values, segmentation=outline)
        box = entry.boxes[frame] if entry.boxes else None
        if type(box) is list and len(box) == 4 and {*map(type, box)} <= {int, float}:
            found["bbox"], found["bbox_mode"] = box, BoxMode.XYWH_ABS
        entry.media.objects[frame].append(found)

    def _add_tracks(self, kept: list) -> None:
        masks: dict[int, list] = {}
        for (number, frame), outline in zip(self.places, kept, strict=True):
            if outline is not None:
                empty = [None] * len(self.entries[number].media.files)
                masks.setdefault(number, empty)[frame] = outline
        for number, segmentations in masks.items():
            entry = self.entries[number]
            entry.media.tracks.append(dict(entry.values, segmentations=segmentations))

    def _report(self, reasons: dict[int, list[str]], kept: list) -> None:
        """Outlines that cannot be used, objects without any, and nothing but crowds."""
        path, findings = self.media.path, self.findings
        lines = []
        for place in sorted(reasons):
            number, frame = self.places[place]
            where = self._where(self.entries[number].annotation, frame)
            lines += [f"{where}: {reason}" for reason in reasons[place]]
        findings.problems += lines
        broken = sum(outline is None for outline in kept)
        if 2 * broken > len(kept):
            first = next(i for i in sorted(reasons) if kept[i] is None)
            number, frame = self.places[first]
            findings.errors.append(
                f"{path}: {broken} of {len(kept)} outlines cannot be used, the first: "
                f"{self._name(self.entries[number].annotation, frame)}: {reasons[first][0]}"
            )
        total = len(self.entries) + len(self.bare)
        if self.bare:
            findings.problems.append(
                f"{path}: {len(self.bare)} of {total} annotations have no segmentation, perhaps a "
                f"box alone, and are left out; the first: {self.bare[0]}"
            )
        if self.bare and not self.entries:
            findings.errors.append(
                f"{path}: none of the {total} annotations has a segmentation: boxes alone are "
                "nothing to learn masks from"
            )
        if self.entries and all(entry.values["iscrowd"] for entry in self.entries):
            findings.problems.append(
                f"{path}: all {len(self.entries)} annotations are crowds (iscrowd: 1), which are "
                "neither learned nor counted"
            )

    def _where(self, annotation: dict, frame: int | None = None) -> str:
        return f"{self.media.path}: {self._name(annotation, frame)}"

    def _name(self, annotation: dict, frame: int | None = None) -> str:
        """The annotation and its image, or its frame of a video, in words."""
        kind = self.media.kind
        owner = annotation.get(kind.owner)
        media = self.media.known.get(owner)
        file = "" if media is None else media.files[frame or 0]
        name = f"annotation {shown(annotation.get('id'))}".replace("'", "")
        if kind is IMAGES:
            return f"{name} of image {owner} ({file})"
        return name if frame is None else f"{name}, frame {frame} ({file})"

    def _unknown(self, category: Any) -> str:
        if category is None:
            return "lacks 'category_id'"
        twin = next((known for known in self.labels if str(known) == str(category)), None)
        if twin is not None and isinstance(category, str):
            return (
                f"has category_id={category!r}, text, where 'categories' has the number {twin}; "
                "write both in one way"
            )
        return f"has category_id={shown(category)}, which the json does not list"


def objects_of_dataset(metadata: Mapping, kind: Kind, findings: Findings) -> ObjectFile:
    """What `json_file` of a registered dataset holds, by the dataset's labels.

    Args:
        metadata: of Detectron2's catalog. Instances beside a panoptic json may number categories in
            a way of their own, if names alone tell which is which.
    """
    labels = dict(metadata.get("stuff_dataset_id_to_contiguous_id") or {})
    labels |= metadata.get("thing_dataset_id_to_contiguous_id") or {}
    listed = metadata.get("label_names") or []
    names = {number: listed[label] for number, label in labels.items() if label < len(listed)}
    root = metadata.get("image_root")
    return read_objects(
        Path(metadata.get("json_file")),
        kind,
        Path(root) if isinstance(root, str) else None,
        names if len(names) == len(labels) else {},
        labels,
        findings,
        by_name=metadata.get("panoptic_json") is not None,
    )


def missing_media(media: MediaList, known: set) -> str | None:
    """Images or videos of a dataset, of ids `known`, that a json does not list, in words."""
    line = _difference(media, known - {*media.known}, "missing, although the dataset has them")
    if line is not None and {*map(str, known)} <= {*map(str, media.known)}:
        line += "; ids are text in one of two jsons and numbers in the other"
    return line


def spare_media(media: MediaList, known: set) -> str | None:
    """Images or videos that a json lists and a dataset, of ids `known`, does not have, in words."""
    return _difference(media, {*media.known} - known, "listed, although the dataset lacks them")


def _difference(media: MediaList, ids: set, where: str) -> str | None:
    if not ids:
        return None
    first = min(ids, key=str)
    return f"{media.path}: {len(ids)} {media.kind.plural} are {where}, first id {first!r}"


def _once(
    path: Path, annotations: list[dict], kind: Kind, findings: Findings
) -> tuple[list[dict], bool]:
    """Annotations without those that are there twice, and whether they need other ids.

    An image's objects are numbered where they are judged, so only those of tracks matter.
    """
    ids = [a.get("id") for a in annotations]
    odd = [i for i in ids if type(i) not in (int, str)]
    if not odd and len({*ids}) == len(ids):
        return annotations, kind is not IMAGES and not _are_track_ids(ids)
    counted = Counter(i for i in ids if type(i) in (int, str))
    first, kept, shared = {}, [], []
    for annotation, number in zip(annotations, ids, strict=True):
        plain = type(number) in (int, str) and counted[number] > 1
        known = first.setdefault(number, annotation) if plain else annotation
        if known is not annotation and known == annotation:
            findings.problems.append(
                f"{path}: annotation {number} is there more than once: it is taken once"
            )
            continue
        if known is not annotation:
            shared.append(number)
        kept.append(annotation)
    if shared:
        findings.remarks.append(
            f"{path}: {len(shared)} annotations have the id of another one, first id "
            f"{shown(shared[0])}; they are numbered anew"
        )
    if odd:
        findings.remarks.append(
            f"{path}: {len(odd)} annotations have no id, or one such as {shown(odd[0])}; they are "
            "numbered anew"
        )
    return kept, kind is not IMAGES


def _are_track_ids(ids: list) -> bool:
    """Whether ids fit a tensor, in which -1 means that the object is not visible."""
    return all(type(i) is int and 0 <= i < 1 << 62 for i in ids)
