"""Jsons in COCO's form: their lists, and the images or videos they list.

Shapes: T frames of a video; an image is a video of one frame.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import normpath
from typing import Any

from rankseg_m2f.annotations.fields import as_id, as_int, name_fault, shown
from rankseg_m2f.annotations.findings import Findings
from rankseg_m2f.errors import UserError
from rankseg_m2f.files import read_json
from rankseg_m2f.images import ImageReadError, image_size

# More pixels than Pillow opens: a size of the json that cannot be right.
_MAX_PIXELS = 1 << 28
_PREVIEW = 3


@dataclass(frozen=True)
class Kind:
    """What a json lists.

    Attributes:
        name: of one.
        plural: key of the list.
        owner: key of an annotation that says which one it is of.
        frames: key of the file name or names.
    """

    name: str
    plural: str
    owner: str
    frames: str


IMAGES = Kind("image", "images", "image_id", "file_name")
VIDEOS = Kind("video", "videos", "video_id", "file_names")


@dataclass
class Media:
    """An image or a video.

    Attributes:
        id: of the json.
        files: T names, as in the json.
        size: (H, W); None where the json does not say it.
        objects: T lists, see `objects.read_objects`.
        tracks: of a video, the same by object, with T `segmentations`; None where not visible.
    """

    id: int | str
    files: list[str]
    size: tuple[int, int] | None
    objects: list[list[dict]] = field(default_factory=list)
    tracks: list[dict] = field(default_factory=list)


@dataclass
class MediaList:
    """All images or videos of a json.

    Attributes:
        path: of the json.
        known: by id.
        dropped: ids of entries that are left out, whose annotations are therefore, too.
    """

    path: Path
    kind: Kind
    known: dict[int | str, Media] = field(default_factory=dict)
    dropped: set[int | str] = field(default_factory=set)

    def drop(self, number: int | str) -> None:
        """Leave one out."""
        self.known.pop(number, None)
        self.dropped.add(number)


def read_coco(path: Path, *lists: str, **entries: Sequence[str]) -> dict:
    """A COCO json.

    Args:
        lists: keys under which it must have lists.
        entries: the same, with the keys that each entry of the list must have.

    Raises:
        MissingFileError: no such file.
        UserError: not JSON, or such a key is missing, naming the file.
    """
    content = read_json(path)
    for key in (*lists, *entries):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{path} is not a COCO json: it has no list of {key!r}")
    for key, wanted in entries.items():
        for number, entry in enumerate(content[key]):
            lacks = [k for k in wanted if k not in entry] if isinstance(entry, dict) else wanted
            if lacks:
                raise UserError(f"{path}: number {number} of {key!r} lacks {lacks[0]!r}")
    return content


def read_media(path: Path, kind: Kind, entries: list, findings: Findings) -> MediaList:
    """The images or videos of a json; those that are there twice only once."""
    found = MediaList(path, kind)
    taken: dict[str, int | str] = {}
    if not entries:
        findings.errors.append(f"{path} lists no {kind.plural}")
    for number, entry in enumerate(entries):
        media = _media(path, kind, number, entry, findings)
        if media is None:
            continue
        if media.id in found.known or media.id in found.dropped:
            known = found.known.get(media.id)
            if known is not None and known.files != media.files:
                findings.errors.append(
                    f"{path} has several {kind.plural} of id {shown(media.id)}: "
                    f"{known.files[0]} and {media.files[0]}"
                )
            else:
                findings.problems.append(
                    f"{path} has several {kind.plural} of id {shown(media.id)} ({media.files[0]}): "
                    "the first counts"
                )
            continue
        places = [normpath(file) for file in media.files]
        twice = next((place for place in places if place in taken), None)
        if twice is not None:
            findings.problems.append(
                f"{path}: {twice} is listed under two ids, {shown(taken[twice])} and "
                f"{shown(media.id)}: the second and its annotations are left out"
            )
            found.dropped.add(media.id)
            continue
        taken.update(dict.fromkeys(places, media.id))
        found.known[media.id] = media
    _check_ids(found, findings)
    if len(found.dropped) > len(found.known):
        findings.errors.append(
            f"{path} lists most {kind.plural} more than once: {len(found.dropped)} entries are of "
            f"files that other entries have, of {len(entries)}; list each once, with all its "
            "objects"
        )
    return found


def resolve_sizes(
    found: MediaList, locate: Callable[[Media], Path | None], findings: Findings
) -> None:
    """Sizes that the json does not say from the files' headers; without any, leave the media out.

    None left is an error.

    Args:
        locate: the file of the first frame; None: not known.
    """
    for media in [media for media in found.known.values() if media.size is None]:
        path = locate(media)
        try:
            media.size = None if path is None else image_size(path)
            reason = "it is not known where its file is"
        except ImageReadError as error:
            reason = str(error)
        if media.size is None:
            findings.problems.append(
                f"{found.path}: {found.kind.name} {shown(media.id)} says no height and width, and "
                f"they cannot be read from its file ({reason}): it is left out"
            )
            found.drop(media.id)
    if found.dropped and not found.known:
        findings.errors.append(
            f"{found.path}: none of its {len(found.dropped)} {found.kind.plural} can be used"
        )


def report_unlisted(
    found: MediaList, owners: list[tuple[int, Any]], total: int, findings: Findings
) -> None:
    """Annotations of images or videos that the json does not list.

    Args:
        owners: number of each such annotation, and what it says.
        total: all annotations.
    """
    if not owners:
        return
    kind = found.kind
    lacking = [number for number, owner in owners if owner is None]
    forms = {str(number): number for number in found.known}
    other = next((o for _, o in owners if str(o) in forms), None)
    reason = ""
    if other is not None:
        reason = (
            f": {kind.owner} is {_form(other)} there and the {kind.name}'s id is "
            f"{_form(forms[str(other)])} in {kind.plural!r}; write both in one way"
        )
    elif lacking:
        reason = f": number {lacking[0]} of 'annotations' lacks {kind.owner!r}"
    names = [*dict.fromkeys(shown(o) for _, o in owners if o is not None)]
    said = f" ({kind.owner} {', '.join(names[:_PREVIEW])})" if names else ""
    if len(owners) == total:
        line = f"{found.path}: none of the {total} annotations is of a listed {kind.name}{said}"
    else:
        line = (
            f"{found.path}: {len(owners)} of {total} annotations are of an unknown "
            f"{kind.name}{said}, which the json does not list"
        )
    level = findings.errors if 2 * len(owners) > total else findings.problems
    level.append(line + reason)


def check_entries(path: Path, key: str, entries: list, findings: Findings) -> list[dict]:
    """The entries that are objects; the others are errors."""
    if not {*map(type, entries)} <= {dict}:
        findings.errors += [
            f"{path}: number {number} of {key!r} is {shown(entry)}, not an object"
            for number, entry in enumerate(entries)
            if not isinstance(entry, dict)
        ]
        entries = [entry for entry in entries if isinstance(entry, dict)]
    return entries


def _media(path: Path, kind: Kind, number: int, entry: Any, findings: Findings) -> Media | None:
    """An entry; None if it cannot be used, which is an error."""
    article = "an" if kind is IMAGES else "a"
    reason, files = None, []
    if not isinstance(entry, dict):
        reason = f"number {number} of {kind.plural!r} is {shown(entry)}, not an object"
    elif "id" not in entry:
        reason = f"{article} {kind.name} lacks 'id' (number {number} of {kind.plural!r})"
    elif as_id(entry["id"]) is None:
        reason = f"{article} {kind.name} has the id {shown(entry['id'])}, number {number}"
    else:
        where = f"{kind.name} {shown(as_id(entry['id']))}".replace("'", "")
        files, reason = _files(entry, kind, where)
    if reason:
        findings.errors.append(f"{path}: {reason}")
        return None
    said = [entry.get(key) for key in ("height", "width")]
    size = [as_int(side) for side in said]
    sound = None not in size and min(size) > 0 and size[0] * size[1] <= _MAX_PIXELS
    # Null and 0 are how exporters say that they do not know.
    odd = [x for x in said if x is not None and (as_int(x) is None or as_int(x) < 0)]
    if odd or (not sound and None not in size and 0 not in size):
        findings.problems.append(
            f"{path}: {where} ({files[0]}) has the height {shown(said[0])} and the width "
            f"{shown(said[1])}: its size is read from its file"
        )
    return Media(as_id(entry["id"]), files, tuple(size) if sound else None)


def _files(entry: Mapping, kind: Kind, where: str) -> tuple[list[str], str | None]:
    """Names of frames, or why there are none."""
    if kind.frames not in entry:
        return [], f"{where} lacks {kind.frames!r}"
    files = entry[kind.frames]
    files = [files] if kind is IMAGES else files
    if not isinstance(files, list) or not files:
        return [], f"{where} has no frames: its {kind.frames!r} is {shown(files)}"
    for name in files:
        if fault := name_fault(name):
            return [], f"{where} has the {kind.frames!r} {fault}"
    length = entry.get("length")
    if kind is VIDEOS and length is not None and as_int(length) != len(files):
        return [], f"{where} names {len(files)} frames, its length is {shown(length)}"
    return files, None


def _check_ids(found: MediaList, findings: Findings) -> None:
    """Ids of two kinds cannot be put in order, and are a mistake of whatever wrote them."""
    kinds = {type(number): number for number in found.known}
    if len(kinds) > 1:
        findings.errors.append(
            f"{found.path}: ids of {found.kind.plural} are text as well as numbers, such as "
            f"{' and '.join(shown(number) for number in kinds.values())}; write all in one way"
        )


def _form(value: Any) -> str:
    return f"text {shown(value)}" if isinstance(value, str) else f"the number {value}"
