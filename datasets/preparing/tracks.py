"""YouTube-VIS and OVIS: the json of each split into its place, and a check of every frame."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from preparing.coco import read_json
from preparing.maps import picture_size
from preparing.processes import in_processes
from preparing.script import check_count, inside, link, need, some

# Where downloads have the json of a split.
_JSONS = (
    "{0}.json",
    "{0}/instances.json",
    "annotations_{0}.json",
    "annotations/{0}.json",
    "annotations/annotations_{0}.json",
    "annotations/instances_{0}.json",
    "instances_{0}.json",
    "{0}/{0}.json",
)
# Below a split's folder, where its folders of videos may be.
_FRAMES = ("JPEGImages", ".")


def prepare_tracks(
    base: Path,
    splits: Mapping[str, int],
    source: str,
    jobs: int | None,
    any_size: bool,
    categories: Sequence[dict] | None = None,
) -> list[str]:
    """Put {train,valid,test}.json of a download into `base`, beside the folders of frames.

    Frames stay where they are. A download without "valid" or "test" is fine.

    Args:
        base: folder of the dataset.
        splits: numbers of videos.
        source: what to get, and where.
        categories: what the json must list (`id`, `name`); None: it may list any.

    Returns:
        The splits that are there.

    Raises:
        FileNotFoundError: no json of "train", or missing frames.
        ValueError: a broken json, other categories, or a frame of another size than it says.
    """
    need(base, ["train"], source)
    ready = []
    for split, official in splits.items():
        path = next((p for form in _JSONS if (p := base / form.format(split)).is_file()), None)
        if path is None:
            if split == "train":
                need(base, [f"{split}.json"], source)
            print(f"Note: {base / f'{split}.json'} is not there; {base.name} goes without {split}")
            continue
        content = read_json(path)
        check_count(len(content["videos"]), official, f"videos in {path}", any_size)
        if categories is not None:
            _check_categories(path, content["categories"], categories)
        check = partial(_check_video, roots=[base / split / below for below in _FRAMES], path=path)
        videos = content["videos"]
        for _ in in_processes(check, videos, jobs, f"{base.name}, {split}", "video"):
            pass
        link(path, base / f"{split}.json")
        ready.append(split)
    return ready


def _check_categories(path: Path, found: Sequence[dict], wanted: Sequence[dict]) -> None:
    names = {c["id"]: c["name"] for c in found}
    if different := [c for c in wanted if names.get(c["id"]) != c["name"]]:
        c = different[0]
        raise ValueError(
            f"{path}: category {c['id']} is {names.get(c['id'])!r} and not {c['name']!r}; "
            "it is the json of another year"
        )
    if len(names) != len(wanted):
        raise ValueError(f"{path}: {len(names)} categories instead of {len(wanted)}")


def _check_video(video: dict, *, roots: list[Path], path: Path) -> None:
    names = [inside(name, path) for name in video["file_names"]]
    root = next((r for r in roots if names and (r / names[0]).parent.is_dir()), roots[0])
    if missing := [str(root / name) for name in names if not (root / name).is_file()]:
        raise FileNotFoundError(f"not found, but in {path}: {some(missing)}. Unpack again")
    said = video["height"], video["width"]
    for name in names:
        size = picture_size(root / name)
        if size != said:
            raise ValueError(f"{root / name}: {size} pixels, {path} says {said}")
