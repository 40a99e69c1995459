"""Registration, mappers, loader and dataset checks, on tiny datasets made here."""

import json
import logging
import random
import re
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets_made import COLOURS, IGNORE, NAMES, quarters, write_dataset
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from PIL import Image

from rankseg_m2f.annotations.findings import AnnotationSource
from rankseg_m2f.config import get_cfg
from rankseg_m2f.data.check import check_dataset
from rankseg_m2f.data.datasets.definitions import KINDS, register_definitions
from rankseg_m2f.data.loader import build_test_loader, build_train_loader, load_records
from rankseg_m2f.data.mappers import MAPPERS, build_mapper
from rankseg_m2f.data.targets import ObjectList, transform_ids
from rankseg_m2f.errors import UserError
from rankseg_m2f.images import ImageReadError

KIND_OF = {
    "mask_former_semantic": "semantic_folder",
    "mask_former_panoptic": "coco_panoptic",
    "mask_former_instance": "coco_instances",
    "coco_instance_lsj": "coco_instances",
    "coco_panoptic_lsj": "coco_panoptic",
}
MAPS = [
    quarters(40, 60, [0, 1, 2, 3]),
    quarters(60, 40, [0, 0, 1, 2]),
    quarters(48, 48, [IGNORE, 1, 3, IGNORE]),
    quarters(32, 64, [0, 2, 2, 3]),
]


@pytest.fixture
def made(tmp_path):
    """Writes and registers datasets of each kind under fresh names."""

    def make(maps=MAPS):
        name = uuid.uuid4().hex[:8]
        for kind, arguments in write_dataset(tmp_path / name, maps).items():
            KINDS[kind](f"{kind}_{name}", **arguments)
        return lambda kind: f"{kind}_{name}"

    return make


def config(dataset: str, mapper: str, **overrides):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (dataset,)
    cfg.INPUT.DATASET_MAPPER_NAME = mapper
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2 if KIND_OF[mapper] == "coco_instances" else 4
    cfg.INPUT.IMAGE_SIZE = 64
    cfg.INPUT.MIN_SIZE_TRAIN = (40, 72)
    cfg.INPUT.MIN_SIZE_TEST = 40
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = (32, 32)
    cfg.INPUT.COLOR_AUG_SSD = False
    cfg.INPUT.FORMAT = "RGB"
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = 0
    for key, value in overrides.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def test_ids_take_the_pixels_that_the_picture_takes():
    ids = np.arange(16).reshape(4, 4) + 300
    half = transform_ids(ids, T.ResizeTransform(4, 4, 2, 2))
    assert half.tolist() == ids[1::2, 1::2].tolist()
    padded = transform_ids(ids, T.PadTransform(0, 0, 1, 0, seg_pad_value=255))
    assert (padded[:, 4] == -1).all() and (padded[:, :4] == ids).all()


@pytest.mark.parametrize("mapper", MAPPERS)
def test_masks_cover_the_colour_of_their_label(made, mapper):
    dataset = made()(KIND_OF[mapper])
    cfg = config(dataset, mapper, INPUT__SIZE_DIVISIBILITY=64)
    apply = build_mapper(cfg, is_train=True)
    first_thing = 2 if KIND_OF[mapper] == "coco_instances" else 0
    covered = 0
    random.seed(0), np.random.seed(0)
    for record in DatasetCatalog.get(dataset) * 5:
        sample = apply(record)
        image, instances = sample["image"], sample["instances"]
        assert image.dtype == torch.uint8 and instances.gt_masks.dtype == torch.bool
        assert image.shape[1:] == instances.gt_masks.shape[1:] == instances.image_size
        assert image.shape[1] >= 64 and image.shape[2] >= 64
        assert not set(sample) & {"annotations", "segments_info", "sem_seg_file_name"}
        for label, mask in zip(instances.gt_classes.tolist(), instances.gt_masks, strict=True):
            colour = torch.tensor(COLOURS[label + first_thing])
            far = (image[:, mask].T.long() - colour).abs().amax(1)
            # Bilinear resizing mixes colours at the borders of quarters, and only there.
            if mask.sum() > 300:
                assert (far < 60).float().mean() > 0.85
                covered += 1
    assert covered > 10


@pytest.mark.parametrize("mapper", MAPPERS)
@pytest.mark.parametrize("keep", [True, False])
def test_what_a_crop_leaves_out_stays_a_target_where_it_officially_does(made, mapper, keep):
    dataset = made()(KIND_OF[mapper])
    cfg = config(dataset, mapper, INPUT__KEEP_UNSEEN_OBJECTS=keep)
    cfg.INPUT.CROP.SIZE = [8, 8]
    cfg.INPUT.MIN_SCALE = cfg.INPUT.MAX_SCALE = 4.0
    cropped = build_mapper(cfg, is_train=True)
    cfg.INPUT.CROP.ENABLED = False
    cfg.INPUT.MIN_SCALE = cfg.INPUT.MAX_SCALE = 0.9
    whole = build_mapper(cfg, is_train=True)
    unseen = 0
    random.seed(0), np.random.seed(0)
    for record in DatasetCatalog.get(dataset) * 3:
        complete, part = whole(record)["instances"], cropped(record)["instances"]
        seen = part.gt_masks.any(dim=(1, 2))
        assert complete.gt_masks.any(dim=(1, 2)).all()
        if keep and mapper not in ("mask_former_semantic", "coco_instance_lsj"):
            assert sorted(part.gt_classes.tolist()) == sorted(complete.gt_classes.tolist())
            unseen += int((~seen).sum())
        else:
            assert seen.all()
            unseen += len(complete) - len(part)
    assert unseen


def test_large_scale_jitter_pads_no_object(made):
    """Padding of masks is 255 in Detectron2; it must not become object."""
    dataset = made()("coco_instances")
    cfg = config(dataset, "coco_instance_lsj", INPUT__MIN_SCALE=0.3, INPUT__MAX_SCALE=0.3)
    for record in DatasetCatalog.get(dataset):
        sample = build_mapper(cfg, is_train=True)(record)
        outside = (sample["image"] == 128).all(0)
        assert outside.float().mean() > 0.8
        assert not sample["instances"].gt_masks[:, outside].any()


def test_polygons_and_rle_agree():
    polygon = [10.0, 5.0, 30.0, 5.0, 30.0, 25.0, 10.0, 25.0]
    from pycocotools import mask as mask_util

    rle = mask_util.merge(mask_util.frPyObjects([polygon], 40, 40))
    transforms = T.TransformList([T.CropTransform(8, 10, 16, 20), T.HFlipTransform(16)])
    found = ObjectList([0, 1], [[polygon], rle]).transformed(transforms, (20, 16))
    assert found.masks.shape == (2, 20, 16)
    assert np.array_equal(found.masks[0], found.masks[1]) and found.masks[0].sum() == 14 * 15


def test_empty_ignored_and_crowded_pictures(made, tmp_path):
    name = made([quarters(32, 32, [IGNORE] * 4), quarters(32, 32, [2, 2, 3, 3])])
    for mapper in ("mask_former_semantic", "mask_former_panoptic"):
        dataset = name(KIND_OF[mapper])
        cfg = config(dataset, mapper, INPUT__CROP__SINGLE_CATEGORY_MAX_AREA=0.75)
        instances = build_mapper(cfg, is_train=True)(DatasetCatalog.get(dataset)[0])["instances"]
        assert len(instances) == 0 and instances.gt_masks.shape == (0, 32, 32)
    dataset = name("coco_panoptic")
    record = DatasetCatalog.get(dataset)[1]
    record["segments_info"][0]["iscrowd"] = 1
    cfg = config(dataset, "mask_former_panoptic", INPUT__CROP__ENABLED=False)
    shown = build_mapper(cfg, is_train=True)(record)["instances"]
    assert shown.gt_classes.tolist() == [3]


@pytest.mark.parametrize("mapper", MAPPERS)
def test_labels_out_of_range_name_the_file(made, mapper):
    dataset = made()(KIND_OF[mapper])
    cfg = config(dataset, mapper, MODEL__SEM_SEG_HEAD__NUM_CLASSES=1)
    with pytest.raises(ValueError, match=r"000\.png: label \d is neither below .*NUM_CLASSES=1"):
        build_mapper(cfg, is_train=True)(DatasetCatalog.get(dataset)[0])


def test_disagreeing_sizes_name_the_file(made):
    dataset = made()("semantic_folder")
    record = DatasetCatalog.get(dataset)[0]
    apply = build_mapper(config(dataset, "mask_former_semantic"), is_train=True)
    with pytest.raises(ValueError, match=r"000\.png: the image has 40 x 60 .* record says 41 x"):
        apply(dict(record, height=41, width=60))
    Image.fromarray(np.zeros((39, 60), dtype=np.uint8)).save(record["sem_seg_file_name"])
    said = f"{re.escape(record['sem_seg_file_name'])} says 39 x 60; tools/check_dataset.py"
    with pytest.raises(ValueError, match=rf"000\.png: .*40 x 60 .*label map {said}"):
        apply(record)


def test_mapper_and_dataset_must_fit(made):
    dataset = made()("semantic_folder")
    record = DatasetCatalog.get(dataset)[0]
    with pytest.raises(ValueError, match=r"no 'pan_seg_file_name'.*DATASET_MAPPER_NAME"):
        build_mapper(config(dataset, "mask_former_panoptic"), is_train=True)(record)
    cfg = config(dataset, "mask_former_semantic")
    cfg.INPUT.DATASET_MAPPER_NAME = "unheard_of"
    with pytest.raises(ValueError, match="unheard_of"):
        build_mapper(cfg, is_train=True)


@pytest.mark.parametrize("kind", sorted(set(KIND_OF.values())))
def test_evaluation_reads_ground_truth_for_the_oracle_alone(made, kind):
    mapper = next(m for m, k in KIND_OF.items() if k == kind)
    dataset = made()(kind)
    cfg = config(dataset, mapper)
    sample = next(iter(build_test_loader(cfg, dataset)))[0]
    assert "instances" not in sample
    assert sample["image"].shape == (3, 40, 60) and (sample["height"], sample["width"]) == (40, 60)
    cfg.MODEL.RANKSEG.USE_GT_EVAL = True
    sample = next(iter(build_test_loader(cfg, dataset)))[0]
    labels = [0, 1] if kind == "coco_instances" else [0, 1, 2, 3]
    assert sorted(sample["instances"].gt_classes.tolist()) == labels


@pytest.mark.parametrize("workers", [0, 2])
def test_stream_can_start_anywhere(made, workers):
    dataset = made()("semantic_folder")
    cfg = config(dataset, "mask_former_semantic", DATALOADER__NUM_WORKERS=workers)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    stream = iter(build_train_loader(cfg, seed=5))
    batches = [next(stream) for _ in range(5)]
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])
    cfg.DATALOADER.NUM_WORKERS = 0
    loader = build_train_loader(cfg, seed=5)
    loader.seek(3)
    for old, new in zip(batches[3:], loader, strict=False):
        for a, b in zip(old, new, strict=True):
            assert a["file_name"] == b["file_name"] and torch.equal(a["image"], b["image"])
            assert torch.equal(a["instances"].gt_masks, b["instances"].gt_masks)
    other = next(iter(build_train_loader(cfg, seed=6)))
    assert not all(map(torch.equal, _images(other), _images(batches[0])))


def _images(batch):
    return [sample["image"] for sample in batch]


def test_batches_do_not_mix_wide_and_tall(made):
    dataset = made()("coco_panoptic")
    cfg = config(dataset, "mask_former_panoptic")
    for batch, _ in zip(build_train_loader(cfg, seed=0), range(12), strict=False):
        assert len({sample["width"] > sample["height"] for sample in batch}) == 1


def test_batch_must_divide(made):
    dataset = made()("semantic_folder")
    cfg = config(dataset, "mask_former_semantic", SOLVER__ACCUMULATION_STEPS=3)
    with pytest.raises(ValueError, match=r"IMS_PER_BATCH=2 .*ACCUMULATION_STEPS=3"):
        build_train_loader(cfg)


def test_a_broken_picture_is_passed_over_in_training_only(made, caplog):
    dataset = made()("semantic_folder")
    broken = DatasetCatalog.get(dataset)[1]["file_name"]
    with open(broken, "wb") as file:
        file.write(b"gone")
    cfg = config(dataset, "mask_former_semantic")
    with caplog.at_level(logging.WARNING):
        stream = iter(build_train_loader(cfg, seed=0))
        assert all(s["file_name"] != broken for _ in range(4) for s in next(stream))
    assert broken in caplog.text
    with pytest.raises(ImageReadError, match=r"001\.png"):
        list(build_test_loader(cfg, dataset))


def test_wrong_folder_is_not_passed_over(made):
    dataset = made()("coco_panoptic")
    for record in DatasetCatalog.get(dataset):
        open(record["file_name"], "wb").close()
    with pytest.raises(ImageReadError, match=r"4 records in a row .*check_dataset"):
        next(iter(build_train_loader(config(dataset, "mask_former_panoptic"))))


def test_unregistered_dataset_says_what_to_do():
    cfg = config("nowhere_to_be_found", "mask_former_semantic")
    with pytest.raises(UserError, match=r"nowhere_to_be_found.*DATASETS\.DEFINITIONS"):
        build_train_loader(cfg)


def test_images_without_annotations_are_nothing_to_learn_from(made):
    dataset = made()("coco_instances")
    path = Path(MetadataCatalog.get(dataset).json_file)
    content = json.loads(path.read_text())
    del content["annotations"]
    path.write_text(json.dumps(content))
    cfg = config(dataset, "mask_former_instance")
    with pytest.raises(UserError, match=rf"{path}: 4 of 4 records have no annotations, as"):
        build_train_loader(cfg)
    assert all("instances" not in batch[0] for batch in build_test_loader(cfg, dataset))


@pytest.mark.parametrize("kind", sorted(set(KIND_OF.values())))
def test_a_dataset_is_loaded_once(made, monkeypatch, kind):
    dataset = made()(kind)
    mapper = next(m for m, k in KIND_OF.items() if k == kind)
    loads = counted_loads(monkeypatch, dataset)
    build_train_loader(config(dataset, mapper))
    assert len(loads) == 1
    build_test_loader(config(dataset, mapper), dataset)
    assert len(loads) == 2


def counted_loads(monkeypatch, dataset: str) -> list:
    """Grows by one each time the dataset's annotations are read."""
    loads, read = [], AnnotationSource.read

    def counted(source: AnnotationSource):
        loads.extend([1] * (source.name == dataset))
        return read(source)

    monkeypatch.setattr(AnnotationSource, "read", counted)
    return loads


def test_pictures_without_objects_are_left_out_of_training(made, monkeypatch):
    dataset = made()("coco_instances")
    records = DatasetCatalog.get(dataset)
    records[1]["annotations"] = []
    monkeypatch.setitem(DatasetCatalog.data, dataset, lambda: records)
    assert load_records([dataset]) == records
    assert load_records([dataset], filter_empty=True) == [records[0], *records[2:]]
    for record in records:
        record["annotations"] = []
    with pytest.raises(ValueError, match=f"no image of {dataset} has an object"):
        load_records([dataset], filter_empty=True)


def test_definitions_register_with_all_metadata(tmp_path):
    definitions = {}
    for kind, arguments in write_dataset(tmp_path / "set", MAPS).items():
        relative = {
            k: str(v).replace(f"{tmp_path}/", "") if isinstance(v, str) else v
            for k, v in arguments.items()
        }
        definitions[f"{kind}_{tmp_path.name}"] = {"kind": kind, **relative}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(definitions))
    names = register_definitions([file])
    assert register_definitions([file]) == names  # a second time is harmless
    for name in names:
        metadata, records = MetadataCatalog.get(name), DatasetCatalog.get(name)
        assert len(records) == 4 and metadata.evaluator_type and metadata.num_classes
        assert metadata.label_names == (NAMES[2:] if "instances" in name else NAMES)
    panoptic = MetadataCatalog.get(next(n for n in names if "panoptic" in n))
    assert panoptic.thing_dataset_id_to_contiguous_id == {12: 2, 13: 3}
    assert panoptic.stuff_dataset_id_to_contiguous_id == {10: 0, 11: 1, 12: 2, 13: 3}


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: {kind: nonsense}", "mine.yaml: dataset 'a': kind 'nonsense' must be one of"),
        ("a: {kind: semantic_folder, image_root: x, typo: 1}", "'a' of kind .*typo"),
        ("- a", "must map dataset names"),
        ("a: {kind: coco_instances, image_root: x, instances_json: none.json}", "none.json"),
    ],
)
def test_bad_definitions_name_file_and_fault(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        register_definitions([file])
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml"):
        register_definitions([tmp_path / "gone.yaml"])


def test_another_dataset_under_a_taken_name_is_refused(made, tmp_path):
    name = made()("semantic_folder")
    arguments = write_dataset(tmp_path / "other", MAPS)["semantic_folder"]
    with pytest.raises(ValueError, match="registered already with other"):
        KINDS["semantic_folder"](name, **arguments)


def test_a_sound_dataset_passes_the_check(made):
    name = made()
    for kind in ("semantic_folder", "coco_panoptic", "coco_instances"):
        report = check_dataset(name(kind))
        assert report.num_records == 4 and report.problems == []
    assert report.label_counts.tolist() == [3, 3]
    assert check_dataset(name("coco_panoptic")).label_counts.tolist() == [3, 3, 3, 3]


def test_the_check_finds_each_fault(made):
    name = made()
    records = DatasetCatalog.get(name("coco_panoptic"))
    semantic = DatasetCatalog.get(name("semantic_folder"))
    Image.fromarray(np.full((40, 60), 9, dtype=np.uint8)).save(semantic[0]["sem_seg_file_name"])
    Image.fromarray(np.zeros((5, 5), dtype=np.uint8)).save(semantic[1]["sem_seg_file_name"])
    Image.fromarray(np.full((48, 48), IGNORE, dtype=np.uint8)).save(
        semantic[2]["sem_seg_file_name"]
    )
    report = check_dataset(name("semantic_folder"))
    assert "label 9 " in report.problems[0] and "000.png" in report.problems[0]
    assert "(5, 5) pixels" in report.problems[1] and len(report.problems) == 2
    assert "002.png: nothing is labelled" in report.remarks[0]
    ids = np.array(Image.open(records[0]["pan_seg_file_name"]))
    ids[ids == 1] = 77
    Image.fromarray(ids).save(records[0]["pan_seg_file_name"])
    with open(records[3]["file_name"], "wb") as file:
        file.write(b"gone")
    report = check_dataset(name("coco_panoptic"))
    assert [p.split(": ", 1)[1] for p in report.problems] == [
        "segment 77 is drawn but not in the json",
        "segment 1 is in the json but has no pixel",
        "not an image (4 bytes)",
    ]
    assert check_dataset(name("coco_panoptic"), limit=1).num_records == 1


def test_categories_must_exist(tmp_path):
    arguments = write_dataset(tmp_path / "set", MAPS)["coco_panoptic"]
    path = tmp_path / "set" / "panoptic.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"][0]["category_id"] = 99
    path.write_text(json.dumps(content))
    KINDS["coco_panoptic"](f"bad_{tmp_path.name}", **arguments)
    with pytest.raises(ValueError, match=r"000\.png has category 99"):
        DatasetCatalog.get(f"bad_{tmp_path.name}")
