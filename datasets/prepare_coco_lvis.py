#!/usr/bin/env python3
"""Prepare COCO+LVIS (1,284 labels): label maps of LVIS objects over COCO stuff.

    python datasets/prepare_coco_lvis.py [--root FOLDER] [--jobs N]

Read:
    coco/{train,val}2017/*.jpg                      cocodataset.org
    coco/annotations/stuff_{train,val}2017.json     stuff_annotations_trainval2017.zip, same site
    lvis/lvis_v1_{train,val}.json                   lvisdataset.org
Written:
    coco_lvis/annotations/{train,val}/*.png         0 no label, 1 to 1284, in 16 bits

The rule is that of ESSNet (github.com/shipra25jain/ESSNet), which introduced the dataset: of the
objects of an image the first in the json covers the later ones, and stuff is seen where no object
is. Stuff of an LVIS category's name has its label. Two things are ours, since ESSNet's table of
them is a pickle: "other" of COCO's stuff is no label, and each stuff category is mapped once (with
the table read as a chain, blanket would become desk-stuff, and cabinet window-other).
Label maps of ESSNet that lie in coco_lvis/annotations/ already are kept.
"""

from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
from preparing.maps import is_label_map, lookup, picture_size, translate, write_label_map
from preparing.processes import in_processes
from preparing.script import check_count, inside, need, run_script

from rankseg_m2f.annotations.coco import read_coco
from rankseg_m2f.data.categories import read_categories

SOURCE = (
    "2017 images and stuff_annotations_trainval2017.zip of cocodataset.org below coco/, "
    "lvis_v1_{train,val}.json of lvisdataset.org below lvis/"
)
SPLITS = {"train": 100_170, "val": 19_809}
# With 16 bits; these maps have no pixels of it, as 0 says that there is no label.
IGNORE = 65535
OTHER = 183
# What an annotation must say.
OUTLINE = ("image_id", "category_id", "segmentation")


def prepare_coco_lvis(root: Path, *, jobs: int | None = None, any_size: bool = False) -> list[str]:
    """See preparing.script.Prepare."""
    root = Path(root)
    stuff_paths = [root / f"coco/annotations/stuff_{split}2017.json" for split in SPLITS]
    lvis_paths = {split: root / f"lvis/lvis_v1_{split}.json" for split in SPLITS}
    folders = ["coco/train2017", "coco/val2017"]
    needed = [str(p.relative_to(root)) for p in (*stuff_paths, *lvis_paths.values())]
    need(root, folders + needed, SOURCE)
    # The validation images of LVIS are of both folders of COCO.
    stuff = {}
    for path in stuff_paths:
        stuff |= _by_picture(read_coco(path, annotations=OUTLINE))
    for split, official in SPLITS.items():
        path = lvis_paths[split]
        content = read_coco(path, images=("id", "coco_url"), annotations=OUTLINE)
        check_count(len(content["images"]), official, f"images in {path}", any_size)
        objects = _by_picture(content)
        pictures = {image["id"]: _picture(image, path) for image in content["images"]}
        need(root / "coco", pictures.values(), SOURCE)
        # As ESSNet: what nobody labelled is not of the dataset.
        items = [
            (root / "coco" / name, objects.get(i, []), stuff.get(i, []))
            for i, name in pictures.items()
            if i in objects or i in stuff
        ]
        convert = partial(_convert, target=root / "coco_lvis" / "annotations" / split)
        for _ in in_processes(convert, items, jobs, f"COCO+LVIS, {split}", "map"):
            pass
    return [f"coco_lvis_sem_seg_{split}" for split in SPLITS]


def _by_picture(content: dict) -> dict[int, list[tuple[int, list | dict]]]:
    """Category and outline of the annotations of each image, in the order of the json."""
    found = defaultdict(list)
    for annotation in content["annotations"]:
        outline = annotation["category_id"], annotation["segmentation"]
        found[annotation["image_id"]].append(outline)
    return dict(found)


def _picture(image: dict, path: Path) -> str:
    """Folder and name of an image of LVIS: its json has them in the address only."""
    return inside("/".join(image["coco_url"].split("/")[-2:]), path)


def _convert(item: tuple[Path, list, list], *, target: Path) -> None:
    picture, objects, stuff = item
    size = picture_size(picture)
    path = target / f"{picture.stem}.png"
    number = len(read_categories("coco_lvis_1284"))
    if is_label_map(path, size, np.arange(number + 1)):
        return
    try:
        labels, behind = draw(objects, size), draw(stuff, size)
    except (TypeError, ValueError, LookupError) as error:
        raise ValueError(f"{picture}: an annotation has no sound outline ({error})") from error
    if labels.max(initial=0) > number:
        raise ValueError(f"{picture}: LVIS category {labels.max()} is above {number}")
    behind = translate(behind, stuff_values(), picture)
    write_label_map(path, np.where(labels == 0, behind, labels), IGNORE)


def stuff_values() -> np.ndarray:
    """Value in our label maps of COCO's stuff ids 92 to 182, by name; "other" has none."""
    values = {c["name"]: i for i, c in enumerate(read_categories("coco_lvis_1284"), start=1)}
    stuff = [c for c in read_categories("coco_stuff_171") if not c["isthing"]]
    return lookup({0: 0, OTHER: 0, **{c["id"]: values[c["name"]] for c in stuff}})


def draw(annotations: list[tuple[int, list | dict]], size: tuple[int, int]) -> np.ndarray:
    """(H, W) int32 category ids, 0 where there is none; the first annotation is in front."""
    # Lazy, as in the package.
    from pycocotools import mask as mask_util

    ids = np.zeros(size, dtype=np.int32)
    for category, outline in annotations:
        if isinstance(outline, list):
            outline = mask_util.merge(mask_util.frPyObjects(outline, *size))
        elif isinstance(outline["counts"], list):
            outline = mask_util.frPyObjects(outline, *size)
        ids[(ids == 0) & (mask_util.decode(outline) > 0)] = category
    return ids


if __name__ == "__main__":
    run_script(prepare_coco_lvis, __doc__, "coco_lvis/semantic/mask2former-R50-rankseg")
