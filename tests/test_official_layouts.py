"""Datasets in their official places: registered, sound, and worth 100 to their evaluators."""

import json
import logging
import shutil
import sys

import numpy as np
import official_made
import perfect
import pytest
import yaml
from conftest import ROOT
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin
from golden import SHARED
from official_made import H
from perfect import evaluate_perfectly, imperfections

from rankseg_m2f.config import get_cfg
from rankseg_m2f.data.categories import read_categories
from rankseg_m2f.data.check import check_dataset
from rankseg_m2f.data.datasets.definitions import KINDS, register_definitions
from rankseg_m2f.data.datasets.official import official_definitions, register_official
from rankseg_m2f.data.loader import build_train_loader, load_records
from rankseg_m2f.engine import main as engine
from rankseg_m2f.evaluation.build import EVALUATORS

DATA = SHARED.parent / "data"
# Name -> labels, of them countable (None: not said), and a metric of each evaluator.
SEMANTIC, PANOPTIC, OBJECTS, TRACKS = (
    ("sem_seg/mIoU", "labels/coverage"),
    ("panoptic_seg/PQ_th", "panoptic_seg/PQ_st", "sem_seg/mIoU"),
    ("segm/AP", "labels/mAP"),
    ("segm/AP", "labels/mAP"),
)
DATASETS = {
    "ade20k_sem_seg_train": (150, None, SEMANTIC),
    "ade20k_sem_seg_val": (150, None, SEMANTIC),
    "ade20k_panoptic_train": (150, 100, (*PANOPTIC, "segm/AP")),
    "ade20k_panoptic_val": (150, 100, (*PANOPTIC, "segm/AP")),
    "ade20k_instance_train": (100, 100, OBJECTS),
    "ade20k_instance_val": (100, 100, OBJECTS),
    "ade20k_full_sem_seg_train": (847, None, SEMANTIC),
    "ade20k_full_sem_seg_val": (847, None, SEMANTIC),
    "coco_2017_train": (80, 80, OBJECTS),
    "coco_2017_val": (80, 80, OBJECTS),
    "coco_2017_train_panoptic": (133, 80, (*PANOPTIC, "segm/AP")),
    "coco_2017_val_panoptic": (133, 80, (*PANOPTIC, "segm/AP")),
    "coco_2017_train_panoptic_with_sem_seg": (133, 80, (*PANOPTIC, "segm/AP")),
    "coco_2017_val_panoptic_with_sem_seg": (133, 80, (*PANOPTIC, "segm/AP")),
    "coco_2017_train_sem_seg": (133, None, SEMANTIC),
    "coco_2017_val_sem_seg": (133, None, SEMANTIC),
    "coco_2017_train_stuff_10k_sem_seg": (171, None, SEMANTIC),
    "coco_2017_test_stuff_10k_sem_seg": (171, None, SEMANTIC),
    "coco_lvis_sem_seg_train": (1284, None, SEMANTIC),
    "coco_lvis_sem_seg_val": (1284, None, SEMANTIC),
    "pascal_context_59_sem_seg_train": (59, None, SEMANTIC),
    "pascal_context_59_sem_seg_val": (59, None, SEMANTIC),
    "pascal_context_60_sem_seg_train": (60, None, SEMANTIC),
    "pascal_context_60_sem_seg_val": (60, None, SEMANTIC),
    "cityscapes_fine_sem_seg_train": (19, None, SEMANTIC),
    "cityscapes_fine_sem_seg_val": (19, None, SEMANTIC),
    "cityscapes_fine_panoptic_train": (19, 8, (*PANOPTIC, "segm/AP")),
    "cityscapes_fine_panoptic_val": (19, 8, (*PANOPTIC, "segm/AP")),
    "cityscapes_fine_instance_seg_train": (8, 8, OBJECTS),
    "cityscapes_fine_instance_seg_val": (8, 8, OBJECTS),
    "mapillary_vistas_sem_seg_train": (65, None, SEMANTIC),
    "mapillary_vistas_sem_seg_val": (65, None, SEMANTIC),
    "mapillary_vistas_panoptic_train": (65, 37, PANOPTIC),
    "mapillary_vistas_panoptic_val": (65, 37, PANOPTIC),
    "vspw_train": (124, None, ("sem_seg/mIoU", "sem_seg/VC8", "sem_seg/VC16")),
    "vspw_val": (124, None, ("sem_seg/mIoU", "sem_seg/VC8", "sem_seg/VC16")),
    "ytvis_2019_train": (40, 40, TRACKS),
    "ytvis_2019_val": (40, 40, TRACKS),
    "ytvis_2019_test": (40, 40, ()),
    "ytvis_2021_train": (40, 40, TRACKS),
    "ytvis_2021_val": (40, 40, TRACKS),
    "ytvis_2021_test": (40, 40, ()),
    "ovis_train": (25, 25, TRACKS),
    "ovis_val": (25, 25, TRACKS),
    "ovis_test": (25, 25, ()),
}


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    root = tmp_path_factory.mktemp("official")
    official_made.write_official(root)
    return root


@pytest.fixture
def registered(everything):
    assert register_official(everything) == list(DATASETS)
    return everything


def test_names_and_metadata_need_no_files(tmp_path):
    assert register_official(tmp_path) == list(DATASETS)
    for name, (num_labels, num_things, _) in DATASETS.items():
        metadata = MetadataCatalog.get(name)
        assert metadata.num_classes == len(metadata.label_names) == num_labels
        assert metadata.evaluator_type in EVALUATORS
        things = metadata.get("thing_dataset_id_to_contiguous_id")
        assert (None if things is None else len(things)) == num_things
        kinds = ["stuff"] if num_things is None else ["thing"]
        for kind in kinds:
            names, colours = metadata.get(f"{kind}_classes"), metadata.get(f"{kind}_colors")
            assert len(names) == len(colours) == (num_things or num_labels)
    city = MetadataCatalog.get("cityscapes_fine_panoptic_val")
    assert city.thing_dataset_id_to_contiguous_id[24] == 11
    assert city.stuff_dataset_id_to_contiguous_id[7] == 0


@pytest.mark.parametrize("name", DATASETS)
def test_what_is_missing_is_named_with_what_to_do(tmp_path, name):
    register_official(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        load_records([name])
    definition, script = next((x, s) for x, s in official_definitions() if name in x.names)
    message = str(error.value)
    assert message.startswith(f"dataset '{name}' lacks {tmp_path / definition.folder}")
    assert message.endswith(f"run python datasets/{script}") and "\n" not in message


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_is_sound_and_worth_100(registered, name):
    report = check_dataset(name, jobs=1)
    assert report.problems == [] and report.num_records >= 1
    *_, expected = DATASETS[name]
    results = evaluate_perfectly(name)
    assert imperfections(results) == {}
    flat = {f"{task}/{key}": v for task, metrics in results.items() for key, v in metrics.items()}
    assert {key: flat[key] for key in expected} == pytest.approx(dict.fromkeys(expected, 100))


def test_wrong_predictions_are_not_worth_100(registered, monkeypatch, caplog):
    """The test above would see a shifted label, a lost object and a lost label."""
    right = perfect.selected_scores, perfect.objects_of, perfect.perfect_labels
    monkeypatch.setattr(perfect, "selected_scores", lambda m: right[0](np.where(m > 0, m - 1, m)))
    monkeypatch.setattr(
        perfect, "objects_of", lambda name: {k: v[1:] for k, v in right[1](name).items()}
    )
    monkeypatch.setattr(
        perfect,
        "perfect_labels",
        lambda *a: {k: v.roll(1) for k, v in right[2](*a).items()},
    )
    for name, tasks in (
        ("coco_lvis_sem_seg_val", {"sem_seg", "labels"}),
        ("cityscapes_fine_panoptic_val", {"sem_seg", "segm", "labels"}),
        ("vspw_val", {"sem_seg", "labels"}),
        ("ovis_train", {"segm", "labels"}),
    ):
        assert {key.split("/")[0] for key in imperfections(evaluate_perfectly(name))} == tasks
    said = [r.getMessage() for r in caplog.records if "not that of Cityscapes" in r.getMessage()]
    assert len(said) == 1 and "cityscapes_fine_panoptic_val" in said[0]


MAPPERS = {
    "ade20k_sem_seg_train": "mask_former_semantic",
    "ade20k_full_sem_seg_train": "mask_former_semantic",
    "coco_lvis_sem_seg_val": "mask_former_semantic",
    "pascal_context_59_sem_seg_val": "mask_former_semantic",
    "mapillary_vistas_sem_seg_train": "mask_former_semantic",
    "cityscapes_fine_panoptic_train": "mask_former_panoptic",
    "cityscapes_fine_instance_seg_train": "mask_former_instance",
    "coco_2017_train_panoptic": "coco_panoptic_lsj",
    "ade20k_instance_train": "coco_instance_lsj",
    "vspw_train": None,
    "ovis_train": None,
}


@pytest.mark.parametrize("name", MAPPERS)
def test_every_form_trains_on_the_labels_that_are_drawn(registered, name):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (name,)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = DATASETS[name][0]
    cfg.INPUT.DATASET_MAPPER_NAME = MAPPERS[name] or ""
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.IMAGE_SIZE = (H,), 32
    cfg.INPUT.MIN_SCALE = cfg.INPUT.MAX_SCALE = 1.0
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.SIZE = True, (1.0, 1.0)
    cfg.INPUT.CROP.TYPE = "relative"
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = 0
    seen = set()
    stream = iter(build_train_loader(cfg))
    for _ in range(4):
        for sample in next(stream):
            frames = sample["instances"]
            for instances in frames if isinstance(frames, list) else [frames]:
                seen |= set(instances.gt_classes.tolist())
    table = next(x.arguments["table"] for x, _ in official_definitions() if name in x.names)
    drawn = {
        label for scene in official_made.scenes(table) for _, label, crowd in scene if not crowd
    }
    if "instance" in name:
        things = [k for k, c in enumerate(read_categories(table)) if c["isthing"]]
        drawn = {things.index(label) for label in drawn if label in things}
    assert seen == drawn


def test_a_run_without_its_dataset_ends_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    config = ROOT / "configs" / "ade20k" / "panoptic" / "mask2former-R50.yaml"
    monkeypatch.setattr(sys, "argv", ["train_net.py", "--config-file", str(config)])
    with pytest.raises(SystemExit, match=r"^train_net\.py: dataset 'ade20k_panoptic_train' lacks"):
        engine.run()


def test_half_a_dataset_names_what_is_missing(everything, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(everything, root)
    register_official(root)
    for path in (
        "ADEChallengeData2016/annotations_detectron2/validation/1.png",
        "coco/panoptic_val2017/3.png",
        "cityscapes/gtFine/val/aachen/aachen_1_000019_gtFine_labelTrainIds.png",
        "cityscapes/leftImg8bit/train/aachen/aachen_0_000019_leftImg8bit.png",
        "VOCdevkit/VOC2010/JPEGImages/1.jpg",
        "VSPW_480p/data/val1/mask/00000003.png",
        "ytvis_2021/valid/JPEGImages/v2/1.jpg",
    ):
        (root / path).unlink()
    for name, part, script in (
        ("ade20k_sem_seg_val", "images/validation/1.jpg has no label map", "ade20k"),
        ("coco_2017_val_panoptic", "coco/panoptic_val2017/3.png does not exist", "coco"),
        (
            "cityscapes_fine_panoptic_val",
            "1_000019_gtFine_labelTrainIds.png does not",
            "cityscapes",
        ),
        ("cityscapes_fine_panoptic_train", "0_000019_leftImg8bit.png does not", "cityscapes"),
        ("cityscapes_fine_sem_seg_val", "1_000019_leftImg8bit.png has no label", "cityscapes"),
        ("pascal_context_60_sem_seg_train", "incomplete: 1 has no image", "pascal_context"),
        ("vspw_val", "val1/origin/00000003.jpg has no label map", "vspw"),
        ("ytvis_2021_val", "JPEGImages/v2/1.jpg does not exist", "youtube_vis"),
    ):
        with pytest.raises(ValueError, match=rf"{name}.* is incomplete: ") as error:
            load_records([name])
        assert part in str(error.value)
        assert str(error.value).endswith(f"python datasets/prepare_{script}.py")


def test_categories_of_another_dataset_are_refused(everything, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(everything / "ytvis_2021", root / "ytvis_2019")
    register_official(root)
    with pytest.raises(ValueError, match=r"train\.json: category 1 is 'airplane', but .*'person'"):
        load_records(["ytvis_2019_train"])
    path = root / "ytvis_2019" / "valid.json"
    content = json.loads(path.read_text())
    content["categories"] = [{"id": 8, "name": "Dog "}, {"id": 99, "name": "unicorn"}]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"category 99 \(unicorn\) is not among the 40"):
        load_records(["ytvis_2019_val"])
    # Another spelling is no other category.
    content.update(categories=content["categories"][:1], annotations=[])
    path.write_text(json.dumps(content))
    assert len(load_records(["ytvis_2019_val"])) == 2


def test_vspw_names_are_those_of_its_own_json(everything, tmp_path):
    shutil.copytree(everything / "VSPW_480p", tmp_path / "VSPW_480p")
    names = {"others": "0", **{f"label {i}": str(i) for i in range(1, 125)}}
    (tmp_path / "VSPW_480p" / "label_num_dic_final.json").write_text(json.dumps(names))
    register_official(tmp_path)
    assert MetadataCatalog.get("vspw_val").label_names[:2] == ["label 1", "label 2"]


def test_what_the_user_registered_stays(everything, tmp_path, caplog):
    register_official(everything)
    for name in ("ovis_val", "coco_2017_val"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register("ovis_val", lambda: ["mine"])
    # By Detectron2's own function, but from elsewhere.
    builtin.register_coco_instances("coco_2017_val", {}, "mine.json", str(tmp_path))
    caplog.set_level(logging.DEBUG)
    names = register_official(everything)
    assert "ovis_val" not in names and "coco_2017_val" not in names
    assert "coco_2017_val is registered by the user" in caplog.text
    assert DatasetCatalog.get("ovis_val") == ["mine"]
    for name in ("ovis_val", "coco_2017_val"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_detectron2s_own_entry_is_replaced_and_a_definition_replaces_ours(everything, tmp_path):
    name = "cityscapes_fine_sem_seg_val"
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    for key in [k for k in DatasetCatalog.list() if k.startswith("cityscapes_fine_")]:
        DatasetCatalog.remove(key)
        MetadataCatalog.remove(key)
    builtin.register_all_cityscapes(builtin._root)
    assert MetadataCatalog.get(name).get("label_names") is None
    register_official(everything)
    assert len(MetadataCatalog.get(name).label_names) == 19
    first = MetadataCatalog.get(name)
    register_official(everything)
    assert MetadataCatalog.get(name) is first
    register_official(tmp_path)
    assert MetadataCatalog.get(name).image_root.startswith(str(tmp_path))
    KINDS["semantic_folder"](name, image_root="a", label_root="b", classes=["x", "y"])
    assert MetadataCatalog.get(name).label_names == ["x", "y"]
    assert name not in register_official(everything)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_sixteen_bit_label_maps_keep_every_label(registered):
    """The last of 847 labels from TIFF, the last of 1284 from PNG with 0 for none."""
    for name, offset, last in (
        ("ade20k_full_sem_seg_val", 0, 846),
        ("coco_lvis_sem_seg_val", 1, 1283),
    ):
        records = load_records([name])
        assert {r.get("label_offset", 0) for r in records} == {offset}
        assert check_dataset(name).label_counts[last] == 2
        assert np.flatnonzero(check_dataset(name).label_counts)[-1] == last
    assert [r["file_name"].split("/")[-2] for r in records] == ["train2017", "val2017"]


@pytest.mark.shared
@pytest.mark.parametrize(
    "name, records",
    [
        ("coco_2017_val_panoptic_with_sem_seg", 50),
        ("coco_2017_val", 50),
        ("ade20k_sem_seg_train", 2),
        ("ade20k_sem_seg_val", 2),
    ],
)
def test_real_samples_are_sound_under_their_official_names(name, records):
    register_official(DATA)
    assert sound(name) == records
    assert imperfections(evaluate_perfectly(name)) == {}


@pytest.mark.shared
@pytest.mark.parametrize(
    "definition, records",
    [
        (
            {
                "kind": "semantic_folder",
                "image_root": "coco_stuff/images",
                "label_root": "coco_stuff/annotations_171",
                "table": "coco_stuff_171",
            },
            13,
        ),
        ({"kind": "vspw", "root": "camvid_vspw", "split": "val"}, None),
        (
            {
                "kind": "ytvis",
                "image_root": "ytvis_davis/JPEGImages",
                "instances_json": "ytvis_davis/instances.json",
            },
            5,
        ),
    ],
    ids=["coco_stuff", "camvid", "davis"],
)
def test_real_samples_are_sound_by_definition(tmp_path, definition, records):
    name = f"real_{tmp_path.name}"
    places = {k: str(DATA / v) for k, v in definition.items() if "root" in k or "json" in k}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({name: {**definition, **places}}))
    register_definitions([file])
    assert sound(name) == records or records is None
    assert imperfections(evaluate_perfectly(name)) == {}


def sound(name: str) -> int:
    """How many records a dataset has, all of them sound."""
    report = check_dataset(name)
    assert report.problems == []
    return report.num_records
