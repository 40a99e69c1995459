"""Datasets found in their official places get their official names."""

import json

import numpy as np
import pytest
from datasets_made import quarters, write_dataset
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from rankseg_m2f.data.datasets.ade20k import register_ade20k
from rankseg_m2f.data.datasets.official_video import register_official_videos


@pytest.fixture
def forgotten():
    """Forgets what a test registers."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def picture(path, value=0, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8), value, dtype=np.uint8)).convert(mode).save(path)


def test_youtube_vis_and_vspw(tmp_path, forgotten):
    assert register_official_videos(tmp_path) == []
    for split in ("train", "valid"):
        picture(tmp_path / "ytvis_2019" / split / "JPEGImages" / "a" / "0.jpg")
        content = {
            "videos": [{"id": 1, "width": 8, "height": 6, "length": 1, "file_names": ["a/0.jpg"]}],
            "categories": [{"id": 3, "name": "dog"}],
            "annotations": [],
        }
        (tmp_path / "ytvis_2019" / f"{split}.json").write_text(json.dumps(content))
    vspw = tmp_path / "VSPW_480p"
    picture(vspw / "data" / "v" / "origin" / "0.jpg")
    picture(vspw / "data" / "v" / "mask" / "0.png", value=2, mode="L")
    (vspw / "val.txt").write_text("v\n")
    (vspw / "label_num_dic_final.json").write_text(json.dumps({"others": "0", "a": "1", "b": "2"}))
    names = register_official_videos(tmp_path)
    assert names == ["ytvis_2019_train", "ytvis_2019_val", "vspw_val"]
    assert [len(DatasetCatalog.get(name)) for name in names] == [1, 1, 1]
    assert MetadataCatalog.get("vspw_val").label_names == ["a", "b"]


def test_ade20k_panoptic(tmp_path, forgotten):
    arguments = write_dataset(tmp_path / "made", [quarters(8, 8, [0, 1, 2, 3])])["coco_panoptic"]
    root = tmp_path / "ADEChallengeData2016"
    (root / "images").mkdir(parents=True)
    assert register_ade20k(root) == []
    (root / "images" / "validation").symlink_to(arguments["image_root"])
    (root / "ade20k_panoptic_val").symlink_to(arguments["panoptic_root"])
    (root / "ade20k_panoptic_val.json").symlink_to(arguments["panoptic_json"])
    assert register_ade20k(root) == ["ade20k_panoptic_val"]
    (record,) = DatasetCatalog.get("ade20k_panoptic_val")
    assert record["file_name"].endswith("images/validation/000.png")
    assert "sem_seg_file_name" not in record
