"""The dataset check finds what disagrees, and its tools say so in sentences."""

import json
import sys

import check_dataset as tool
import constant_baseline
import numpy as np
import pytest
import yaml
from datasets_made import NAMES, quarters, write_dataset
from detectron2.data import DatasetCatalog
from label_statistics import LabelStatistics
from PIL import Image

from rankseg_m2f.annotations import record
from rankseg_m2f.data.check import check_dataset, label_difference
from rankseg_m2f.data.datasets.definitions import KINDS
from rankseg_m2f.evaluation.ground_truth import GroundTruth

MAPS = [quarters(20, 20, [0, 1, 2, 3]), quarters(20, 20, [0, 1, 2, 255])]


@pytest.fixture
def made(tmp_path):
    """Names and registers a dataset of one kind; several per test may be made."""

    def make(kind, maps=MAPS, change=None, **more):
        name = f"{kind}_{len(list(tmp_path.iterdir()))}_{tmp_path.name}"
        arguments = {**write_dataset(tmp_path / name, maps)[kind], **more}
        if more.pop("semantic_root", None):
            arguments["semantic_root"] = str(tmp_path / name / "labels")
        if change is not None:
            path = tmp_path / name / "instances.json"
            content = json.loads(path.read_text())
            change(content)
            path.write_text(json.dumps(content))
        KINDS[kind](name, **arguments)
        return name

    return make


def repaint(name, number, paint):
    """Change the label map of a record in place."""
    path = DatasetCatalog.get(name)[number]["sem_seg_file_name"]
    ids = np.array(Image.open(path))
    paint(ids)
    Image.fromarray(ids).save(path)


def test_label_maps_agree_with_panoptic_pngs(made):
    name = made("coco_panoptic", semantic_root=True)
    assert check_dataset(name).problems == []

    def four_pixels(ids):
        ids[0, :4] = 1

    # 4 of 400 labelled pixels are 1 %, of 300 more.
    repaint(name, 0, four_pixels)
    assert check_dataset(name).problems == []
    assert check_dataset(name).remarks == []
    repaint(name, 1, four_pixels)
    report = check_dataset(name)
    (remark,) = report.remarks
    assert "labels/001.png: 1% of the labelled pixels have another label than in" in remark
    assert report.problems == []
    repaint(name, 1, lambda ids: ids[:12].fill(1))
    (problem,) = check_dataset(name).problems
    assert "of the labelled pixels have another label than in" in problem


def test_label_maps_may_ignore_some_pixels_but_not_all(made):
    name = made("coco_panoptic", semantic_root=True)
    repaint(name, 0, lambda ids: ids[:15].fill(255))
    assert check_dataset(name).problems == []
    repaint(name, 0, lambda ids: ids.fill(255))
    (problem,) = check_dataset(name).problems
    assert "labels/000.png: no pixel has a label that has one in" in problem


def test_label_maps_of_another_label_order_are_found(made):
    name = made("coco_panoptic", semantic_root=True)
    for number in (0, 1):
        repaint(name, number, lambda ids: np.copyto(ids, 3 - ids, where=ids < 4))
    problems = check_dataset(name).problems
    assert [p.split(": ")[1][:4] for p in problems] == ["100%", "100%"]


def test_instances_are_of_the_same_images(made):
    def renumber(content):
        content["images"][0]["id"] = 70

    name = made("coco_panoptic", change=renumber)
    _, missing, extra = check_dataset(name).problems
    assert (
        "instances.json: 1 images are missing, although the dataset has them, first id 0" in missing
    )
    assert (
        "instances.json: 1 images are listed, although the dataset lacks them, first id 70" in extra
    )
    # A limit on the records is no reason to find images missing.
    assert check_dataset(made("coco_panoptic"), limit=1).problems == []


def test_unreadable_instances_are_a_problem(made):
    name = made("coco_panoptic", change=lambda content: content.pop("images"))
    (problem,) = check_dataset(name).problems
    assert "instances.json is not a COCO json: it has no list of 'images'" in problem


def test_malformed_polygons_are_found(made):
    """Detectron2 drops them without naming them."""

    def spoil(content):
        polygons = [[1, 1, 9, 1, 9, 9], [1, 1, 9, 9], [1, 1, 9, 1, 9, 9, 3]]
        content["annotations"][0]["segmentation"] = polygons

    problems = check_dataset(made("coco_instances", change=spoil)).problems
    assert [p.split("has a ")[1].split(":")[0] for p in problems] == [
        "polygon of 4 coordinates",
        "polygon of 7 coordinates",
    ]
    assert "instances.json: annotation 1 of image 0 " in problems[0]


def test_annotations_without_area_and_crowd_are_no_problem(made):
    def spoil(content):
        for annotation in content["annotations"][:2]:
            del annotation["iscrowd"], annotation["area"]

    assert check_dataset(made("coco_instances", change=spoil)).problems == []


def test_a_mask_without_size_is_a_problem(made):
    def spoil(content):
        content["annotations"][0]["segmentation"] = {"counts": "0"}

    (problem,) = check_dataset(made("coco_instances", change=spoil)).problems
    assert "annotation 1 of image 0 (000.png): its run lengths lack 'size'" in problem


def test_a_dataset_without_labels_is_a_problem(made):
    name = made("semantic_folder", [quarters(8, 8, [255] * 4)] * 2)
    report = check_dataset(name)
    assert report.problems == [f"{name}: no label in any record that can be read"]
    assert len(report.remarks) == 2
    name = made("coco_instances", change=lambda content: content.pop("annotations"))
    assert check_dataset(name).problems == [f"{name}: no label in any record that can be read"]


def test_lists_of_labels_are_compared():
    assert label_difference(["a", "b"], ("a", "b")) is None
    assert (
        label_difference(["a", "b", "c"], ["a", "c"])
        == "label 1 is 'b' in one and 'c' in the other"
    )
    assert label_difference(["a", "b"], ["a"]) == "one has 2 labels, the other 1"


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Runs a tool's main; its definitions are the semantic folders `train` and `test`."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    names = {key: f"{key}_{tmp_path.name}" for key in ("train", "test", "other", "gone")}
    definitions = {}
    for key in ("train", "test", "other"):
        arguments = write_dataset(tmp_path / key, MAPS)["semantic_folder"]
        definitions[names[key]] = {"kind": "semantic_folder", **arguments}
    definitions[names["other"]]["classes"] = [*NAMES[:2], "lorry", "person"]
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(definitions))

    def run(main, *words):
        words = [names.get(word, word) for word in words]
        monkeypatch.setattr(sys, "argv", ["tool", *words, "--definitions", str(file)])
        return main()

    run.file = file
    return run


def test_the_check_compares_the_labels_of_the_datasets_named(call, capsys):
    assert call(tool.main, "train", "test") == 0
    assert "different labels" not in capsys.readouterr().out
    assert call(tool.main, "train", "other") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("train_") and "and other_" in line
    assert line.endswith("different labels: label 2 is 'car' in one and 'lorry' in the other")


def test_the_check_says_what_is_wrong_with_definitions(call, capsys):
    assert call(tool.main, "gone") == 1
    shown = capsys.readouterr().out
    assert ": FAILED: dataset 'gone_" in shown and "DATASETS.DEFINITIONS" in shown
    assert "--definitions FILE" in shown
    call.file.write_text("a:")
    with pytest.raises(SystemExit, match=r"^check_dataset: .*mine\.yaml: dataset 'a': "):
        call(tool.main, "train")


def test_the_constant_baseline_can_be_called(call, capsys, tmp_path, monkeypatch):
    load = record.read_label_map
    kappas = ("--kappas", "2", "4", "--json", str(tmp_path / "labels.json"))
    read = []
    monkeypatch.setattr(record, "read_label_map", lambda path: read.append(path) or load(path))
    call(constant_baseline.main, "--train", "train", "--test", "test", "--kappa", "2", *kappas)
    assert len(read) == len(set(read)) == 2 * len(MAPS)
    shown = capsys.readouterr().out
    results = json.loads(shown[: shown.rindex("}") + 1])
    # Labels 0, 1 and 2 have 200 training pixels each: the first is predicted everywhere, and is
    # a quarter of the first image, a third of the labelled rest of the second.
    assert results["sem_seg"]["mIoU"] == pytest.approx(100 * (200 / 700) / 4, abs=1e-3)
    # Of 4 and 3 labels, the two most frequent are found.
    assert results["labels"]["recall"] == pytest.approx(100 * (2 / 4 + 2 / 3) / 2, abs=1e-3)
    two, four = json.loads((tmp_path / "labels.json").read_text())["rows"]
    assert two["recall"] == pytest.approx(results["labels"]["recall"], abs=0.01)
    assert two["coverage"] == pytest.approx(results["labels"]["coverage"], abs=0.01)
    assert four == {"kappa": 4, "recall": 100, "coverage": 100}


@pytest.mark.parametrize("kind", ["semantic", "instance"])
def test_the_constant_baseline_judges_videos(scenes, monkeypatch, capsys, kind):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    names = [f"video_scenes_{kind}_{split}" for split in ("train", "val")]
    words = ["--train", names[0], "--test", names[1], "--kappas", "1000"]
    monkeypatch.setattr(sys, "argv", ["tool", *words])
    constant_baseline.main()
    shown = capsys.readouterr().out
    results = json.loads(shown[: shown.rindex("}") + 1])
    assert results["labels"]["recall"] == 100
    assert results.keys() == ({"labels", "sem_seg"} if kind == "semantic" else {"labels"})
    if kind == "semantic":
        train, test = (
            LabelStatistics.from_truth(GroundTruth.from_dataset(name)).pixels for name in names
        )
        ious = np.zeros(len(test))
        ious[train.argmax()] = test[train.argmax()] / test.sum()
        assert results["sem_seg"]["mIoU"] == pytest.approx(100 * ious[test > 0].mean(), abs=1e-3)


def test_pixels_decide_on_the_constant_map(tmp_path):
    """Of a dataset without maps it is the number of images."""
    file = tmp_path / "a.png"
    Image.new("RGB", (6, 4)).save(file)
    record = {"video_id": 1, "file_names": [str(file)] * 3}
    presence = np.array([[True, False], [True, True]])
    for pixels, label in (([10, 90], 1), ([0, 0], 0)):
        train = LabelStatistics("toy", "clip", ["a", "b"], presence, np.array(pixels))
        found = constant_baseline.constant_maps(train, None, record)
        label_maps = found["sem_seg"].argmax(0)
        assert label_maps.shape == (3, 4, 6) and (label_maps == label).all()
        assert found["pred_labels"] == [label]
        assert constant_baseline.constant_labels(train)["label_ranking"].tolist() == [0, 1]


@pytest.mark.parametrize(
    "train, test, message",
    [
        ("train", "gone", "dataset 'gone_.*' is not registered; describe it in"),
        ("gone", "test", "dataset 'gone_.*' is not registered; describe it in"),
        ("other", "test", "datasets 'other_.*' and 'test_.*': label 2 is 'lorry' in one and 'car'"),
    ],
)
def test_the_constant_baseline_ends_in_a_sentence(call, train, test, message):
    message = message.replace("': label", "' have different labels: label")
    with pytest.raises(SystemExit, match=f"^constant_baseline: {message}"):
        call(constant_baseline.main, "--train", train, "--test", test)


def test_each_dataset_has_its_own_ignore_label(call, tmp_path, capsys):
    """Training maps may ignore 65535 and test maps 255."""
    for path in (tmp_path / "train" / "labels").iterdir():
        ids = np.array(Image.open(path)).astype(np.uint16)
        Image.fromarray(np.where(ids == 255, 65535, ids).astype(np.uint16)).save(path)
    definitions = yaml.safe_load(call.file.read_text())
    definitions[f"train_{tmp_path.name}"]["ignore_label"] = 65535
    call.file.write_text(yaml.safe_dump(definitions))
    call(constant_baseline.main, "--train", "train", "--test", "test")
    assert json.loads(capsys.readouterr().out)["sem_seg"]["mIoU"] > 0


def test_wrong_maps_name_the_dataset(call, tmp_path):
    path = tmp_path / "train" / "labels" / "000.png"
    Image.fromarray(np.full((20, 20), 9, dtype=np.uint8)).save(path)
    with pytest.raises(SystemExit, match=r"000\.png has label 9, but dataset 'train_"):
        call(constant_baseline.main, "--train", "train", "--test", "test")
