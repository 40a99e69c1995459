"""Records of folders: images and label maps of the same names, and frames of videos with theirs.

Shapes: T frames.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from rankseg_m2f.annotations.findings import Findings
from rankseg_m2f.annotations.folders import (
    IMAGE_SUFFIXES,
    LABEL_SUFFIXES,
    backslash_advice,
    by_stem,
    existing_folder,
    listed_names,
    listed_once,
    listed_stem,
    paired,
)


def load_semantic(
    findings: Findings,
    *,
    name: str,
    image_root: str | Sequence[str],
    label_root: str,
    image_ending: str | None,
    label_ending: str | None,
    split_file: str | None,
    labelled_only: bool,
    label_offset: int,
) -> list[dict]:
    """Records of images and label maps of the same relative names.

    Args: see `register_semantic_folder`.

    Raises:
        MissingFileError: no such folder or list.
        UserError: a list that is not a text.
    """
    several = isinstance(image_root, (list, tuple))
    images, labels = [*map(Path, image_root if several else [image_root])], Path(label_root)
    for folder in (*images, labels):
        existing_folder(folder, name)
    pairs = paired(images, labels, image_ending, label_ending)
    findings.errors += pairs.problems
    stems = sorted(pairs.maps if labelled_only else pairs.photos)
    if split_file is not None:
        names = listed_names(split_file, findings)
        stems = [listed_stem(line, pairs.photos) for line in names]
        stems = listed_once(split_file, stems, findings)
    elif not stems:
        endings = IMAGE_SUFFIXES if image_ending is None else [image_ending]
        findings.errors.append(f"no {', '.join(endings)} in {', '.join(map(str, images))}")
    where = ", ".join(map(str, images))
    missing = [pairs.unpaired(stem, labels, where) for stem in stems]
    if split_file is not None:
        missing = [line if line is None else f"{line} ({split_file} lists it)" for line in missing]
    findings.errors += [line for line in missing if line is not None]
    if missing and None not in missing and label_ending is None and not pairs.maps:
        findings.errors[-1] += (
            f"; there is no {', '.join(LABEL_SUFFIXES)} in {labels} at all (label_ending names "
            "another ending)"
        )
    shared = {"label_offset": label_offset} if label_offset else {}
    return [
        {
            "file_name": str(pairs.photos[stem]),
            "image_id": str(stem),
            "sem_seg_file_name": str(pairs.maps[stem]),
            **shared,
        }
        for stem, line in zip(stems, missing, strict=True)
        if line is None
    ]


def load_frames(
    findings: Findings,
    *,
    folders: dict[str, tuple[Path, Path]],
    clips: Callable[[int], list[range]],
    label_offset: int,
) -> list[dict]:
    """Records of videos given as folders of frames and of label maps, cut into clips.

    Args:
        folders: of frames and of label maps, by video.
        clips: from the number of frames of a video to those of each clip.
    """
    records = []
    for video, (images, labels) in folders.items():
        gone = [folder for folder in (images, labels) if not os.path.isdir(folder)]
        findings.errors += [
            f"{folder} is a file, not a folder"
            if os.path.exists(folder)
            else f"{folder} does not exist{backslash_advice(folder)}"
            for folder in gone
        ]
        photos = {} if images in gone else by_stem([images], IMAGE_SUFFIXES, deep=False)
        stems = [*photos]
        if not gone:
            pairs = paired([images], labels, deep=False)
            findings.errors += pairs.problems
            stems = sorted({*pairs.photos, *pairs.maps}, key=lambda stem: natural(str(stem)))
            missing = [pairs.unpaired(stem, labels, str(images), frame=True) for stem in stems]
            findings.errors += [line for line in missing if line is not None]
            stems = [s for s, line in zip(stems, missing, strict=True) if line is None]
        elif photos:
            findings.errors += [f"{paths[0]} has no label map" for paths in photos.values()]
            continue
        if not stems:
            findings.errors += [
                f"{folder} has no {' or '.join(endings)} files"
                for folder, endings in ((images, IMAGE_SUFFIXES), (labels, LABEL_SUFFIXES))
                if folder not in gone and not by_stem([folder], endings, deep=False)
            ]
        for number, part in enumerate(clips(len(stems)) if stems else []):
            record = {
                "video_id": video,
                "clip": number,
                "file_names": [str(pairs.photos[stems[i]]) for i in part],
                "sem_seg_file_names": [str(pairs.maps[stems[i]]) for i in part],
                "length": len(part),
            }
            records.append(record | ({"label_offset": label_offset} if label_offset else {}))
    return records


def natural(name: str) -> list:
    """Sorts 2 before 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
