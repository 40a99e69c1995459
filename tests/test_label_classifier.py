"""Classifiers of labels: their data, their model, and a run of both steps of the scheme."""

import json

import numpy as np
import pytest
import torch
from analyze_model import analyze
from conftest import ROOT
from datasets_made import IGNORE, quarters, write_dataset
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Instances

from rankseg_m2f.config import get_cfg
from rankseg_m2f.data.augmentation import resize_for_test
from rankseg_m2f.data.datasets.definitions import KINDS
from rankseg_m2f.data.label_augmentation import Cutout, RandAugment
from rankseg_m2f.data.mappers import build_mapper
from rankseg_m2f.data.targets import label_targets
from rankseg_m2f.data.video_mappers import build_video_mapper
from rankseg_m2f.engine import main as engine
from rankseg_m2f.engine.optimizer import build_optimizer
from rankseg_m2f.rankseg.head import DecoderLabelHead
from rankseg_m2f.rankseg.selection import Selection

LABELS = ROOT / "configs" / "scenes" / "labels"
K = 40


def config(*overrides):
    """The classifier of the scenes, narrower."""
    cfg = get_cfg()
    cfg.merge_from_file(str(LABELS / "classifier.yaml"))
    small = ["MODEL.DEVICE", "cpu", "MODEL.RANKSEG.HIDDEN_DIM", "32", "INPUT.IMAGE_SIZE", "64"]
    cfg.merge_from_list([*small, *overrides])
    return cfg


def picture(labels, frames=None):
    """A random image, or a clip of as many frames, that shows `labels`."""
    shown = Instances((0, 0), gt_classes=torch.tensor(labels))
    images = [torch.randint(256, (3, 64, 64), dtype=torch.uint8) for _ in range(frames or 1)]
    if frames is None:
        return {"image": images[0], "instances": shown}
    return {"image": images, "instances": [shown] * frames}


# Data


def test_labels_of_every_kind_of_annotation(tmp_path):
    kinds = write_dataset(tmp_path, [quarters(32, 48, [0, 2, 3, IGNORE])])
    expected = {"semantic_folder": [0, 2, 3], "coco_panoptic": [0, 2, 3], "coco_instances": [0, 1]}
    for kind, labels in expected.items():
        name = f"test_labels_{kind}"
        KINDS[kind](name, **kinds[kind])
        record = DatasetCatalog.get(name)[0]
        for objects in (record.get("segments_info"), record.get("annotations")):
            # A crowd is there too.
            for entry in objects or []:
                entry["iscrowd"] = 1
        assert label_targets(record, IGNORE, 4).labels == labels
        with pytest.raises(ValueError, match=rf"000\.png: label {labels[1]} is neither below"):
            label_targets(record, IGNORE, 1)
        DatasetCatalog.remove(name), MetadataCatalog.remove(name)


def test_the_mapper_gives_squares_and_all_labels_without_masks(tmp_path):
    # An image of 32 x 96, whose crop would lose labels and whose cutout covers half of each side.
    kinds = write_dataset(tmp_path, [quarters(32, 96, [0, 1, 2, 3])])
    KINDS["semantic_folder"]("test_squares", **kinds["semantic_folder"])
    record = DatasetCatalog.get("test_squares")[0]
    cfg = config("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4", "INPUT.RAND_AUGMENT.NUM_OPS", "2")
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("test_squares",)
    mapper, before = build_mapper(cfg, is_train=True), torch.get_rng_state()
    np.random.seed(3)
    first, second = mapper(record), mapper(record)
    np.random.seed(3)
    assert torch.equal(mapper(record)["image"], first["image"])
    assert not torch.equal(second["image"], first["image"])
    # The model's dropout draws from this generator.
    assert torch.equal(torch.get_rng_state(), before)
    assert first["image"].shape == (3, 64, 64) and first["image"].dtype == torch.uint8
    assert first["instances"].gt_classes.tolist() == [0, 1, 2, 3]
    assert first["instances"].gt_masks.numel() == 0
    shown = build_mapper(cfg, is_train=False)(record)
    assert shown["image"].shape == (3, 64, 64) and (shown["height"], shown["width"]) == (32, 96)
    assert "instances" not in shown
    # The same square for demos.
    sample = T.AugInput(np.zeros((9, 7, 3), np.uint8))
    T.AugmentationList(resize_for_test(cfg))(sample)
    assert sample.image.shape == (64, 64, 3)
    DatasetCatalog.remove("test_squares"), MetadataCatalog.remove("test_squares")


def test_frames_of_a_clip_are_changed_alike():
    frame = np.random.RandomState(0).randint(256, size=(40, 60, 3), dtype=np.uint8)
    for augmentation in (RandAugment(3, 20), Cutout(0.5)):
        np.random.seed(1)
        transform = augmentation.get_transform(frame)
        assert np.array_equal(transform.apply_image(frame), transform.apply_image(frame.copy()))
        assert transform.apply_image(frame).shape == frame.shape
        for follow in (transform.apply_segmentation, transform.apply_coords):
            with pytest.raises(TypeError, match="for labels alone"):
                follow(np.zeros((2, 2)))


def test_cutout_covers_a_share_of_each_side():
    frame = np.full((40, 60, 3), 7, dtype=np.uint8)
    areas = []
    for seed in range(50):
        np.random.seed(seed)
        covered = (Cutout(0.5).get_transform(frame).apply_image(frame) != 7).any(2)
        rows, columns = covered.any(1).sum(), covered.any(0).sum()
        assert covered.sum() == rows * columns  # one rectangle
        assert 10 <= rows <= 20 and 15 <= columns <= 30  # at most half of it lies outside
        areas.append(covered.sum())
    assert max(areas) == 20 * 30 and (frame == 7).all()
    with pytest.raises(ValueError, match=r"CUTOUT=1.5 is not in"):
        Cutout(1.5)
    with pytest.raises(ValueError, match=r"MAGNITUDE=31 is not in"):
        RandAugment(1, 31)


# The model


def test_shapes_and_gradients_of_pictures_and_clips():
    model = build_model(config("MODEL.RANKSEG.TOPK", "7"))
    for batch in ([picture([1, 2]), picture([])], [picture([3], 2), picture([39], 2)]):
        model.train().zero_grad()
        losses = model(batch)
        assert list(losses) == ["loss_ml"]
        losses["loss_ml"].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert model.ml_head.cls_emb.grad.abs().sum() > 0
        with torch.no_grad():
            for output in model.eval()(batch):
                scores, ranking = output["label_scores"], output["label_ranking"]
                assert scores.shape == (K,) and ((scores > 0) & (scores < 1)).all()
                assert ranking.tolist() == scores.argsort(descending=True)[:7].tolist()
    assert (
        len(build_model(config("MODEL.RANKSEG.TOPK", "0")).eval()(batch)[0]["label_ranking"]) == K
    )


@pytest.mark.parametrize("backbone", ["build_resnet_backbone", "D2SwinTransformer"])
def test_no_parameter_is_without_a_gradient(backbone):
    """As DDP needs it; a Swin Transformer has a norm for each map that is read."""
    small = ("MODEL.SWIN.EMBED_DIM", "24", "MODEL.SWIN.DEPTHS", "[1, 1, 1, 1]")
    model = build_model(config("MODEL.BACKBONE.NAME", backbone, *small))
    model.train()([picture([1, 2])])["loss_ml"].backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


def test_a_classifier_selects_as_segmentors_do():
    model = build_model(config("MODEL.RANKSEG.TOPK_EVAL", "3")).eval()
    known = [Selection(), Selection(deny=[0, 1], force=[39]), Selection(labels=[7])]
    sample = picture([1])
    with torch.no_grad():
        results = model([sample | {"selection": wishes} for wishes in known])
        few = build_model(config("MODEL.RANKSEG.EVAL_MIN_SCORE", "1.0")).eval()([sample])
    plain, wished, told = (x["label_ranking"].tolist() for x in results)
    assert plain == results[0]["label_scores"].topk(3).indices.tolist()
    assert len(wished) == 3 and 39 in wished and not {0, 1} & set(wished)
    assert told == [7] and len(few[0]["label_ranking"]) == 1


def test_query2label_has_two_decoder_layers():
    cfg = get_cfg()
    cfg.merge_from_file(str(ROOT / "configs/coco_stuff_10k/labels/query2label-R101.yaml"))
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        head = build_model(cfg).ml_head
    assert isinstance(head, DecoderLabelHead) and len(head.block) == 2
    assert head.cls_emb.shape == (1, 171, 2048)


def test_a_clip_is_seen_as_a_whole():
    model = build_model(config()).eval()
    clip = picture([1], 3)
    one, other = clip["image"][0], clip["image"][1]

    def scores(image):
        with torch.no_grad():
            return model([{"image": image}])[0]["label_scores"]

    assert torch.allclose(scores([one]), scores(one))
    assert torch.allclose(scores([one, other]), scores([other, one]), atol=1e-6)
    assert not torch.allclose(scores([one, other]), scores([one, one]), atol=1e-5)


def test_training_lowers_the_loss():
    cfg = config("MODEL.RANKSEG.DROPOUT", "0.0")
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    assert type(optimizer) is torch.optim.Adam
    batch = [picture([0, 1]), picture([2]), picture([30, 31, 32]), picture([1, 39])]
    losses = []
    for _ in range(12):
        loss = model(batch)["loss_ml"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_cost_of_both_models_can_be_counted():
    classifier = {row.module: row for row in analyze(config(), (64, 64)).rows if row.depth == 1}
    assert set(classifier) == {"backbone", "ml_head"}
    segmentor = get_cfg()
    segmentor.merge_from_file(str(LABELS / "segmentor.yaml"))
    parts = {row.module for row in analyze(segmentor, (64, 64)).rows if row.depth == 1}
    assert parts == {"backbone", "sem_seg_head", "criterion", "ml_norm"}


def test_a_classifier_without_loss_and_a_segmentor_without_masks_are_mistakes():
    with pytest.raises(ValueError, match=r"LOSS_WEIGHT=0.0: a LabelClassifier has no other loss"):
        build_model(config("MODEL.RANKSEG.LOSS_WEIGHT", "0.0"))
    demo = str(ROOT / "configs" / "scenes" / "panoptic" / "demo-rankseg.yaml")
    with pytest.raises(ValueError, match=r"'multi_label' reads no masks.*not MaskFormer"):
        engine.load_config(demo, ["INPUT.DATASET_MAPPER_NAME", "multi_label"])


# Both steps


def train_net(config_file, output, *words):
    flags = [w for w in words if w.startswith("--")]
    small = {
        "MODEL.DEVICE": "cpu",
        "INPUT.IMAGE_SIZE": "64",
        "SOLVER.IMS_PER_BATCH": "4",
        "SOLVER.MAX_ITER": "2",
        "SOLVER.CHECKPOINT_PERIOD": "2",
        "TEST.EVAL_PERIOD": "2",
        "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": "64",
        "MODEL.MASK_FORMER.TEST.INSTANCE_ON": "False",
        "INPUT.CROP.SIZE": "(48,48)",
        "INPUT.MIN_SIZE_TRAIN": "(48,64)",
        "INPUT.MIN_SIZE_TEST": "48",
        "OUTPUT_DIR": str(output),
    }
    pairs = [w for pair in small.items() for w in pair]
    rest = [w for w in words if w not in flags]
    arguments = ["--config-file", str(config_file), *flags, *pairs, *rest]
    return engine.main(engine.argument_parser().parse_args(arguments))


def test_scores_of_a_trained_classifier_rank_for_a_segmentor(scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    one = tmp_path / "classifier"
    train_net(LABELS / "classifier.yaml", one)
    names = [f"scenes_panoptic_{split}" for split in ("train", "val")]
    results = train_net(
        LABELS / "classifier.yaml",
        one,
        "--eval-only",
        *("MODEL.WEIGHTS", str(one / "model_best.pth"), "DATASETS.TEST", str(tuple(names))),
    )
    assert [list(results[name]) for name in names] == [["labels"]] * 2
    files = [str(one / "inference" / n / f"per_image_labels_{n}.npz") for n in names]
    given = np.load(files[1])
    assert given["keys"].tolist() == [f"val/{i:06d}.jpg" for i in range(6)]
    two = tmp_path / "segmentor"
    scores = ("MODEL.RANKSEG.SCORES", str(files))
    train_net(LABELS / "segmentor.yaml", two, *scores)
    metrics = [json.loads(line) for line in (two / "metrics.json").read_text().splitlines()]
    assert "loss_ml" not in metrics[-1] and "panoptic_seg/PQ" in metrics[-1]
    found = np.load(two / "inference" / names[1] / f"per_image_labels_{names[1]}.npz")
    assert found["keys"].tolist() == given["keys"].tolist()
    np.testing.assert_allclose(found["scores"], given["scores"], atol=1e-6)
    expected = torch.from_numpy(given["scores"]).topk(20).indices
    assert np.array_equal(found["ranking"], expected)
    with pytest.raises(ValueError, match=r"no scores for 'val/000000.jpg' in .*scenes_panoptic_tr"):
        train_net(
            LABELS / "segmentor.yaml",
            two,
            "--eval-only",
            *("MODEL.WEIGHTS", str(two / "model_final.pth"), scores[0], str(files[:1])),
        )


def test_clips_are_classified_too(scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    names = ("video_scenes_semantic_train", "video_scenes_semantic_val")
    data = ("DATASETS.TRAIN", str(names[:1]), "DATASETS.TEST", str(names[1:]))
    window = ("MODEL.MASK_FORMER.TEST.WINDOW", "2", "MODEL.MASK_FORMER.TEST.WINDOW_OVERLAP", "1")
    train_net(LABELS / "classifier.yaml", tmp_path, *data, *window)
    file = tmp_path / "inference" / names[1] / f"per_image_labels_{names[1]}.npz"
    saved = np.load(file)
    keys = saved["keys"].tolist()
    assert len(set(keys)) == len(keys) == len(DatasetCatalog.get(names[1]))
    assert all(key.startswith("data/") for key in keys)
    cfg = config("MODEL.RANKSEG.SCORES", str([str(file)]), *data)
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    for record in DatasetCatalog.get(names[1]):
        sample = build_video_mapper(cfg, is_train=False)(record)
        assert len(sample["image"]) == len(record["file_names"])
        assert sample["label_scores"].shape == (K,)
    # In training the labels of the frames taken, whatever order they are in.
    cfg = config(*data)
    sample = build_video_mapper(cfg, is_train=True)(DatasetCatalog.get(names[0])[0])
    assert [frame.shape for frame in sample["image"]] == [(3, 64, 64)] * 2
    assert len(sample["instances"][0].gt_classes) > 0
