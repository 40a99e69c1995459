"""Several folders of datasets in one process: the newer serves, what a user registered stays."""

import shutil
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from datasets_made import quarters, write_dataset
from detectron2.data import DatasetCatalog, MetadataCatalog
from make_scenes import make_scenes

from rankseg_m2f.data.datasets.register import register_semantic_folder
from rankseg_m2f.data.datasets.scenes import register_scenes
from rankseg_m2f.data.datasets.video_scenes import register_video_scenes
from rankseg_m2f.engine.main import load_config

CONFIGS = {
    "scenes_panoptic_train": ROOT / "configs" / "scenes" / "panoptic" / "demo-rankseg.yaml",
    "video_scenes_instance_train": ROOT / "configs/video_scenes/instance/demo-rankseg.yaml",
}
# Found by the functions of scenes, of moving scenes, and of official datasets.
FOUND = (*CONFIGS, "scenes_semantic_val", "scenes_instance_val", "video_scenes_semantic_val")
OFFICIAL = ("ade20k_panoptic_val", "vspw_val")


@pytest.fixture(scope="module")
def other(scenes, tmp_path_factory):
    """A copy of the folder of small scenes."""
    folder = tmp_path_factory.mktemp("other") / "data"
    shutil.copytree(scenes, folder)
    return folder


def load(root: Path, monkeypatch, config: str = "scenes_panoptic_train", *words: str):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    return load_config(str(CONFIGS[config]), list(words))


def places(name: str) -> set[str]:
    """All paths that the metadata and, where it is there, the records of a dataset name."""
    values = list(vars(MetadataCatalog.get(name)).values())
    if name in FOUND:
        values += DatasetCatalog.get(name)[0].values()
    return {v for v in values if isinstance(v, str) and v.startswith("/")}


@pytest.mark.parametrize("config", CONFIGS)
def test_the_newer_root_serves_and_one_line_says_so(scenes, other, monkeypatch, caplog, config):
    for old, new in ((None, scenes), (scenes, other), (other, scenes)):
        caplog.clear()
        load(new, monkeypatch, config)
        load(new, monkeypatch, config)  # and again, which changes nothing
        for name in (*FOUND, *OFFICIAL):
            assert places(name) and all(Path(p).is_relative_to(new) for p in places(name)), name
        said = [record.getMessage() for record in caplog.records]
        expected = [f"Datasets are read below {new} now, not below {old}"] if old else []
        assert [line for line in said if "atasets are read" in line] == expected


def test_what_the_newer_root_lacks_is_not_read_from_the_older(scenes, tmp_path, monkeypatch):
    load(scenes, monkeypatch)
    load(tmp_path, monkeypatch)
    assert not set(FOUND) & set(DatasetCatalog.list())
    load(scenes, monkeypatch)
    assert set(FOUND) <= set(DatasetCatalog.list())


def test_scenes_made_again_serve_and_the_same_keep_their_metadata(tmp_path, monkeypatch):
    small = {"train": 2, "val": 2, "size": 32, "jobs": 1}
    words = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES"]
    make_scenes(tmp_path / "scenes", num_labels=8, **small)
    load(tmp_path, monkeypatch, "scenes_panoptic_train", *words, "8")
    first = MetadataCatalog.get("scenes_panoptic_train")
    load(tmp_path, monkeypatch, "scenes_panoptic_train", *words, "8")
    assert MetadataCatalog.get("scenes_panoptic_train") is first
    make_scenes(tmp_path / "scenes", num_labels=9, force=True, **small)
    load(tmp_path, monkeypatch, "scenes_panoptic_train", *words, "9")
    assert MetadataCatalog.get("scenes_panoptic_train").num_classes == 9


def test_scenes_registered_by_hand_stay_until_they_are_registered_from_elsewhere(
    scenes, other, tmp_path, monkeypatch
):
    name = "scenes_panoptic_train"
    register_scenes(scenes / "scenes")
    load(tmp_path, monkeypatch)
    assert all(Path(p).is_relative_to(scenes) for p in places(name))
    register_scenes(other / "scenes")
    assert all(Path(p).is_relative_to(other) for p in places(name))
    register_video_scenes(scenes / "video_scenes")
    register_video_scenes(other / "video_scenes")
    assert all(Path(p).is_relative_to(other) for p in places("video_scenes_instance_train"))


def test_another_dataset_of_the_name_is_an_error(scenes, tmp_path, monkeypatch):
    arguments = write_dataset(tmp_path / "set", [quarters(16, 20, [0, 1, 2, 3])])["semantic_folder"]
    # Scenes first, then a dataset of the user's; and the other way round.
    load(scenes, monkeypatch)
    for name in ("scenes_semantic_train", "video_scenes_semantic_val"):
        with pytest.raises(ValueError, match=f"'{name}' is registered already with other"):
            register_semantic_folder(name, **arguments)
        definitions = tmp_path / "mine.yaml"
        content = {name: {"kind": "semantic_folder", **arguments}}
        definitions.write_text(yaml.safe_dump(content), encoding="utf-8")
        with pytest.raises(ValueError, match=f"{definitions}.*'{name}' is registered already"):
            load(
                scenes,
                monkeypatch,
                "scenes_panoptic_train",
                "DATASETS.DEFINITIONS",
                f"('{definitions}',)",
            )
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        register_semantic_folder(name, **arguments)
        for _ in range(2):
            with pytest.raises(ValueError, match=f"'{name}' is registered already with other"):
                load(scenes, monkeypatch)
        assert MetadataCatalog.get(name).image_root == arguments["image_root"]
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        load(scenes, monkeypatch)
