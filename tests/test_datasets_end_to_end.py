"""Every known dataset from its raw download to a score: prepared, registered, checked, loaded."""

import pytest
import raw_trees
from detectron2.data import DatasetCatalog, MetadataCatalog
from perfect import evaluate_perfectly, imperfections
from test_prepare import DATASETS, prepare

from rankseg_m2f.config import get_cfg
from rankseg_m2f.data.check import check_dataset
from rankseg_m2f.data.datasets.official import official_definitions, register_official
from rankseg_m2f.data.mappers import build_mapper
from rankseg_m2f.data.video_mappers import build_video_mapper

# Labels to be learned of each dataset: things as objects or as pixels, without groups.
LABELS = {
    "ade20k_sem_seg_{}": ["bed", "person", "wall"],
    "ade20k_panoptic_{}": ["bed", "wall"],
    "ade20k_instance_{}": ["bed"],
    "ade20k_full_sem_seg_{}": ["sky", "wall"],
    "coco_2017_{}": ["person"],
    "coco_2017_{}_panoptic": ["person", "rug-merged"],
    "coco_2017_{}_panoptic_with_sem_seg": ["person", "rug-merged"],
    "coco_2017_{}_sem_seg": ["person", "rug-merged"],
    "coco_2017_{}_stuff_10k_sem_seg": ["banner", "person", "wood"],
    "coco_lvis_sem_seg_{}": ["almond", "blanket", "wood", "zucchini"],
    "pascal_context_59_sem_seg_{}": ["aeroplane", "wood"],
    "pascal_context_60_sem_seg_{}": ["aeroplane", "background", "wood"],
    "cityscapes_fine_sem_seg_{}": ["car", "person", "road"],
    "cityscapes_fine_panoptic_{}": ["car", "road"],
    "cityscapes_fine_instance_seg_{}": ["car"],
    "mapillary_vistas_sem_seg_{}": ["Bird", "Car", "Sky"],
    "mapillary_vistas_panoptic_{}": ["Bird", "Car", "Sky"],
    "vspw_{}": ["train", "wall"],
    "ytvis_2019_{}": ["giant_panda"],
    "ytvis_2021_{}": ["bear"],
    "ovis_{}": ["Bird"],
}
# What the raw trees have, as the challenges: videos without annotations, and no test videos.
BLIND = ("ovis_val", "ovis_test")
ABSENT = ("ytvis_2019_test", "ytvis_2021_test")


CASES = [
    (name, labels)
    for form, labels in LABELS.items()
    for split in ("train", "test" if "stuff_10k" in form else "val")
    if (name := form.format(split)) not in BLIND
]


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """Names that the scripts call ready, registered below one root."""
    root = tmp_path_factory.mktemp("datasets")
    for dataset in DATASETS:
        getattr(raw_trees, dataset)(root)
    ready = [name for dataset in DATASETS for name in prepare(dataset, root)]
    register_official(root)
    return ready


def test_scripts_make_all_that_is_registered(registered):
    names = {name for definition, _ in official_definitions() for name in definition.names}
    assert len(registered) == len(set(registered))
    assert names == {*registered, *ABSENT}
    assert {*registered} == {*BLIND, *(name for name, _ in CASES)}


@pytest.mark.parametrize(("name", "labels"), CASES)
def test_a_check_finds_nothing(registered, name, labels):
    report = check_dataset(name, jobs=1)
    assert report.problems == []
    assert report.remarks == []
    found = {report.label_names[i] for i in report.label_counts.nonzero()[0]}
    assert found >= set(labels)


@pytest.mark.parametrize("name", BLIND)
def test_videos_without_annotations_are_no_problem(registered, name):
    report = check_dataset(name, jobs=1)
    assert report.problems == []
    path = MetadataCatalog.get(name).json_file
    assert report.remarks == [f"{path}: no annotations at all, as a test set has none"]


@pytest.mark.parametrize(("name", "labels"), CASES)
def test_its_mapper_gives_the_labels_of_those_names(registered, name, labels):
    record = DatasetCatalog.get(name)[0]
    metadata = MetadataCatalog.get(name)
    cfg = get_cfg()
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = metadata.num_classes
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (24,), 400
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.CROP.ENABLED = "none", False
    cfg.INPUT.DATASET_MAPPER_NAME = f"mask_former_{_kind(record)}"
    build = build_video_mapper if "file_names" in record else build_mapper
    mapped = build(cfg, is_train=True, dataset=name)(record)
    truths = mapped["instances"]
    frames = truths if isinstance(truths, list) else [truths]
    found = {metadata.label_names[k] for frame in frames for k in frame.gt_classes.tolist()}
    assert sorted(found) == labels


def _kind(record):
    keys = {"pan_seg_file_name": "panoptic", "sem_seg_file_name": "semantic"}
    return next((kind for key, kind in keys.items() if key in record), "instance")


@pytest.mark.parametrize("name", [name for name, _ in CASES if not name.endswith("_train")])
def test_a_perfect_prediction_scores_100(registered, name, tmp_path):
    results = evaluate_perfectly(name, tmp_path)
    assert len(results) >= 2
    assert imperfections(results) == {}
