"""YouTube-VIS and OVIS: the json of each split into its place, and a check of every frame."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from preparing.maps import picture_size
from preparing.processes import in_processes
from preparing.script import check_count, inside, link, need
from rankseg_m2f.annotations.coco import read_coco
from rankseg_m2f.annotations.coco_categories import contiguous_labels, sound_categories
from rankseg_m2f.data.categories import read_categories

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


def prepare_tracks(
    base: Path,
    splits: Mapping[str, int],
    source: str,
    jobs: int | None,
    any_size: bool,
    *,
    table: str,
    frames: Sequence[str] = ("JPEGImages",),
) -> list[str]:
    """Put {train,valid,test}.json of a download into `base`, beside the folders of frames.

    Frames stay where they are. A download without "valid" or "test" is fine.

    Args:
        base: folder of the dataset.
        splits: numbers of videos.
        source: what to get, and where.
        table: of the package's `data/categories`, which the json must agree with.
        frames: below a split's folder, where its folders of videos are; the first that exists.

    Returns:
        The splits that are there.

    Raises:
        FileNotFoundError: no json of "train", or missing frames.
        ValueError: a broken json, other categories, or a frame of another size than it says.
    """
    need(base, ["train"], source)
    names = {c["id"]: c["name"] for c in read_categories(table)}
    ready = []
    for split, official in splits.items():
        path = next((p for form in _JSONS if (p := base / form.format(split)).is_file()), None)
        if path is None:
            if split == "train":
                need(base, [f"{split}.json"], source)
            print(f"Note: {base / f'{split}.json'} is not there; {base.name} goes without {split}")
            continue
        content = read_coco(path, "categories", videos=("file_names", "height", "width"))
        check_count(len(content["videos"]), official, f"videos in {path}", any_size)
        # Raises where they disagree.
        contiguous_labels(path, sound_categories(path, content["categories"]), names, names)
        places = [base / split / below for below in frames]
        root = next((place for place in places if place.is_dir()), places[0])
        check = partial(_check_video, root=root, path=path)
        for _ in in_processes(check, content["videos"], jobs, f"{base.name}, {split}", "video"):
            pass
        link(path, base / f"{split}.json")
        ready.append(split)
    return ready


def _check_video(video: dict, *, root: Path, path: Path) -> None:
    names = [inside(name, path) for name in video["file_names"]]
    need(root, names, f"the frames that {path} lists; unpack again")
    said = video["height"], video["width"]
    for name in names:
        size = picture_size(root / name)
        if size != said:
            raise ValueError(f"{root / name}: {size} pixels, {path} says {said}")
