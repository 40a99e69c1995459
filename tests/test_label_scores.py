"""The file of label scores, and segmentors that rank by it."""

import shutil

import numpy as np
import pytest
import torch
from datasets_made import NAMES, quarters, write_dataset
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Instances
from golden import load_case

from rankseg_m2f.data.datasets.definitions import KINDS
from rankseg_m2f.data.mappers import build_mapper
from rankseg_m2f.data.video_mappers import build_video_mapper
from rankseg_m2f.engine.windows import WindowedModel
from rankseg_m2f.evaluation.multi_label import MultiLabelEvaluator
from rankseg_m2f.label_scores import LabelScores, image_roots, record_key

SCORES = np.float32([[0.9, 0.1, 0.5, 0.2], [0.3, 0.8, 0.0, 1.0]])


def write(path, keys, scores, names=NAMES, **odd):
    np.savez(path, **{"keys": np.array(keys), "scores": scores, "label_names": names, **odd})
    return str(path)


@pytest.fixture
def dataset(tmp_path):
    """The name of a registered dataset of two images."""
    maps = [quarters(32, 48, [0, 1, 2, 3]), quarters(32, 48, [0, 0, 1, 1])]
    arguments = write_dataset(tmp_path / "data", maps)["semantic_folder"]
    KINDS["semantic_folder"]("test_scored", **arguments)
    yield "test_scored"
    DatasetCatalog.remove("test_scored")
    MetadataCatalog.remove("test_scored")


def test_keys_do_not_say_where_a_dataset_lies():
    for root in ("/a/train2017", "elsewhere/train2017", "/a/train2017/"):
        path = f"{root}/x/1.jpg".replace("//", "/")
        assert record_key({"file_name": path}, ["/other", root]) == "train2017/x/1.jpg"
    clip = {"file_names": ["/v/data/a/3.jpg", "/v/data/a/4.jpg"], "video_id": "a", "clip": 1}
    assert record_key(clip, ["/v/data"]) == "data/a/3.jpg"
    assert record_key({"file_name": "/some/where/1.jpg"}, []) == "where/1.jpg"
    assert [image_roots({"image_root": r}) for r in ("/a", ["/a", "/b"], None)] == [
        ["/a"],
        ["/a", "/b"],
        [],
    ]
    # Images of two splits often have the same names.
    split = [record_key({"file_name": f"/d/{s}/1.jpg"}, ["/d/train", "/d/val"]) for s in "tv"]
    assert split[0] != split[1]


def test_evaluation_writes_what_the_mapper_reads(dataset, tmp_path):
    records = DatasetCatalog.get(dataset)
    evaluator = MultiLabelEvaluator(dataset, tmp_path / "out")
    for record, scores in zip(records, torch.from_numpy(SCORES), strict=True):
        output = {"label_scores": scores, "label_ranking": scores.argsort(descending=True)[:2]}
        evaluator.process([record], [output])
    assert evaluator.evaluate()["labels"]["kappa"] == 2
    cfg = load_case("image_r50_rankseg").cfg.clone()
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 4
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (dataset,)
    cfg.MODEL.RANKSEG.SCORES = [str(tmp_path / "out" / f"per_image_labels_{dataset}.npz")]
    for is_train in (True, False):
        mapper = build_mapper(cfg, is_train)
        for record, scores in zip(records, SCORES, strict=True):
            assert mapper(record)["label_scores"].tolist() == scores.tolist()
    images = tmp_path / "data" / "images"
    with pytest.raises(ValueError, match=r"no scores for 'images/9\.png' in .*test_scored\.npz"):
        mapper(dict(records[0], file_name=shutil.copy(records[0]["file_name"], images / "9.png")))


def test_a_clip_has_the_scores_of_its_record(dataset, tmp_path):
    record = DatasetCatalog.get(dataset)[0]
    many = {"file_name": "file_names", "sem_seg_file_name": "sem_seg_file_names"}
    video = {many[k]: [record[k]] * 3 for k in many} | {"video_id": "a"}
    cfg = load_case("video_vis_rankseg_k10").cfg.clone()
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 4
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (dataset,)
    cfg.MODEL.RANKSEG.SCORES = [write(tmp_path / "a.npz", ["images/000.png"], SCORES[:1])]
    for is_train in (True, False):
        sample = build_video_mapper(cfg, is_train)(video)
        assert sample["label_scores"].tolist() == SCORES[0].tolist()


def test_files_that_do_not_fit_are_named(tmp_path):
    keys, other = ["a/1.jpg", "a/2.jpg"], SCORES[::-1]
    good = write(tmp_path / "good.npz", keys, SCORES)
    assert len(LabelScores([good, good], [None], 4, NAMES)) == 2
    with pytest.raises(ValueError, match=r"good.npz and .*other.npz have different .*'a/1.jpg'"):
        LabelScores([good, write(tmp_path / "other.npz", keys, other)], [None], 4)
    with pytest.raises(ValueError, match=r"good.npz scores 4 labels.*NUM_CLASSES is 5"):
        LabelScores([good], [None], 5)
    with pytest.raises(ValueError, match=r"good.npz: label 1 is 'road' there and 'street'"):
        LabelScores([good], [None], 4, ["sky", "street", "car", "person"])
    with pytest.raises(FileNotFoundError, match=r"nowhere.npz does not exist"):
        LabelScores([str(tmp_path / "nowhere.npz")], [None], 4)
    for name, broken in {
        "range": {"scores": SCORES * 2},
        "nan": {"scores": SCORES * np.float32("nan")},
        "length": {"keys": np.array(keys[:1])},
        "pickle": {"keys": np.array(keys, dtype=object)},
    }.items():
        file = write(tmp_path / f"{name}.npz", **({"keys": keys, "scores": SCORES} | broken))
        with pytest.raises(ValueError, match=f"{name}.npz"):
            LabelScores([file], [None], 4)
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"text.npz is not a file of label scores"):
        LabelScores([str(tmp_path / "text.npz")], [None], 4)


def segmentor(case, kappa):
    """A model without a head, and its number of labels."""
    cfg = load_case(case).cfg.clone()
    cfg.MODEL.RANKSEG.SCORES = ["planted.npz"]
    cfg.MODEL.RANKSEG.TOPK = kappa
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    assert model.ml_head is None and not any(k.startswith("ml_head") for k in model.state_dict())
    return model, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES


def test_a_segmentor_ranks_by_exactly_the_planted_scores():
    model, num_labels = segmentor("image_r50_rankseg", 4)
    # Neighbouring floats at both ends, where probabilities are no longer told apart as logits.
    high, low = np.float32(1), np.float32(1e-7)
    scores = np.full((2, num_labels), 0.5, dtype=np.float32)
    scores[0, [5, 2, 7]] = high, np.nextafter(high, low), np.nextafter(np.nextafter(high, low), low)
    scores[1, 0:] = low
    scores[1, [3, 1]] = np.nextafter(np.nextafter(low, high), high), np.nextafter(low, high)
    inputs = [
        {"image": torch.randint(256, (3, 64, 64), dtype=torch.uint8), "label_scores": s}
        for s in torch.from_numpy(scores)
    ]
    with torch.no_grad():
        first, second = model.eval()(inputs)
    assert first["label_ranking"][:3].tolist() == [5, 2, 7] and len(first["label_ranking"]) == 4
    assert second["label_ranking"][:2].tolist() == [3, 1]
    for output, expected in zip((first, second), torch.from_numpy(scores), strict=True):
        assert torch.allclose(output["label_scores"], expected, atol=1e-6)
        assert set(output["sem_seg"].ids.tolist()) == set(output["label_ranking"].tolist())
    with pytest.raises(ValueError, match=rf"'label_scores' of shape \({num_labels},\), got None"):
        model([{"image": inputs[0]["image"]}])


def test_training_by_scores_has_no_label_loss_and_reaches_the_temperature():
    model, num_labels = segmentor("image_r50_rankseg", 4)
    shown = Instances((64, 64))
    shown.gt_classes, shown.gt_masks = torch.tensor([3]), torch.ones(1, 64, 64, dtype=torch.bool)
    scores = torch.rand(num_labels)
    image = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
    losses = model.train()([{"image": image, "instances": shown, "label_scores": scores}])
    assert "loss_ml" not in losses
    sum(losses.values()).backward()
    assert model.ml_norm.weight.grad.abs().sum() > 0


def test_videos_rank_by_their_scores_in_windows_too():
    model, num_labels = segmentor("video_vis_rankseg_k10", 3)
    scores = torch.rand(num_labels)
    frames = [torch.randint(256, (3, 64, 64), dtype=torch.uint8) for _ in range(5)]
    sample = {"image": frames, "height": 64, "width": 64, "label_scores": scores}
    expected = scores.argsort(descending=True)[:3].tolist()
    for see in (model.eval(), WindowedModel(model.eval(), 3, 1)):
        with torch.no_grad():
            assert see([sample])[0]["label_ranking"].tolist() == expected


def test_scores_without_ranking_are_a_mistake():
    cfg = load_case("image_r50_baseline").cfg.clone()
    cfg.MODEL.RANKSEG.SCORES = ["planted.npz"]
    with pytest.raises(ValueError, match=r"SCORES rank nothing while MODEL.RANKSEG.FLAG is False"):
        build_model(cfg)
