"""The photo demo, the report, and the tools a user calls."""

import json
import sys
from pathlib import Path

import check_dataset
import numpy as np
import pytest
import report
import run_demo
import time_estimate
import torch
import visualise
import yaml
from datasets_made import NAMES, quarters, write_dataset
from detectron2.data import Metadata
from detectron2.structures import Instances
from PIL import Image

import demo
from rankseg_m2f.engine.main import load_config
from rankseg_m2f.structures.predictions import SelectedScores

LABELS = visualise.Labels(Metadata(name="x", stuff_classes=NAMES))
TINY = {
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": "64",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": "6",
    "INPUT.MIN_SIZE_TEST": "64",
    "INPUT.MAX_SIZE_TEST": "64",
    "MODEL.DEVICE": "cpu",
}


def overrides(**extra):
    return [word for pair in {**TINY, **extra}.items() for word in pair]


def results():
    """What the model may return, one form each, and the labels shown."""
    halves = torch.zeros(8, 10, dtype=torch.int32)
    halves[:, 5:] = 1
    segments = [{"id": 1, "isthing": True, "category_id": 2}]
    yield {"panoptic_seg": (halves, segments)}, [2]
    found = Instances((8, 10))
    found.pred_masks = torch.stack([halves > 0, halves == 0])
    found.pred_classes, found.scores = torch.tensor([3, 1]), torch.tensor([0.9, 0.1])
    yield {"instances": found}, [3]
    scores = torch.stack([1.0 - halves, halves.float()])
    yield {"sem_seg": scores}, [0, 1]
    yield {"sem_seg": SelectedScores(torch.tensor([3, 0]), scores)}, [0, 3]


@pytest.mark.parametrize("result, labels", results())
def test_every_form_of_result_can_be_drawn(result, labels):
    regions = visualise.regions_of(result, LABELS)
    assert sorted(r.label for r in regions) == labels
    photo = np.full((8, 10, 3), 100, dtype=np.uint8)
    result["label_scores"] = torch.linspace(0, 1, 4)
    result["label_ranking"] = torch.tensor([3, 2])
    picture = demo.portray(photo, result, LABELS, min_score=0.5, top=20)
    assert picture.height >= 320 and picture.width > 512  # enlarged, with the chart beside it


def test_regions_are_coloured_where_they_are():
    mask = np.zeros((20, 20), dtype=bool)
    mask[:, 10:] = True
    region = visualise.Region(mask, 0, (0, 0, 255))
    drawn = np.asarray(
        visualise.draw_regions(np.zeros((20, 20, 3), np.uint8), [region], LABELS, opacity=0.5)
    )
    assert drawn[0, 0].tolist() == [0, 0, 0]
    assert drawn[0, 19].tolist() == [0, 0, 128]
    assert drawn[0, 10].tolist() == [255, 255, 255]  # the outline


def test_labels_of_no_dataset_are_numbers():
    assert visualise.Labels.from_datasets([]).name(3) == "label 3"


def test_name_tags_leave_one_another_and_the_picture_alone():
    limits = (100, 60)
    centres = [(50, 30), (52, 31), (50, 29), (0, 0), (99, 59), *[(50, 30)] * 3]
    sizes = [(40, 10)] * len(centres)
    boxes = visualise.place_tags([*centres, (50, 30)], [*sizes, (101, 10)], limits)
    # The first stands where it would, the next ones as near as may be; then there is no room.
    assert boxes[0] == (30, 25, 69, 34)
    assert boxes[1] == (32, 36, 71, 45) and boxes[2] == (30, 14, 69, 23)
    assert boxes[3] == (0, 0, 39, 9) and boxes[4] == (60, 50, 99, 59)
    assert boxes[5:] == [None] * 4
    covered = np.zeros(limits[::-1], dtype=int)
    for left, top, right, bottom in filter(None, boxes):
        assert 0 <= left <= right < 100 and 0 <= top <= bottom < 60
        covered[top : bottom + 1, left : right + 1] += 1
    assert covered.max() == 1


def test_names_of_neighbours_can_be_read():
    """What is drawn are boxes of the ink's colour; they must not run into each other."""
    masks = np.zeros((2, 200, 300), dtype=bool)
    masks[0, 80:120], masks[1, 95:115, 100:200] = True, True
    regions = [visualise.Region(mask, 3, (255, 255, 255)) for mask in masks]
    drawn = np.asarray(
        visualise.draw_regions(np.full((200, 300, 3), 255, np.uint8), regions, LABELS)
    )
    rows = (drawn == visualise.INK).all(-1).any(1)
    assert np.diff(rows.astype(int)).tolist().count(1) == 2


def test_a_ranking_marks_what_is_present():
    chart = visualise.draw_ranking(
        np.array([0.9, 0.2, 0.1, 0.8]), np.array([0, 3, 1, 2]), LABELS, (300, 200), present={3}
    )
    colours = {colour for _, colour in chart.getcolors(maxcolors=10**6)}
    assert visualise.PRESENT in colours and visualise.ABSENT in colours


def test_the_demo_goes_on_after_files_it_cannot_read(tmp_path, monkeypatch, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (50, 30), (10, 200, 90)).save(photos / "good.jpg")
    Image.new("L", (3, 40), 90).save(photos / "good.png")
    (photos / "bad.jpg").write_bytes(b"no photo")
    output = tmp_path / "out"
    arguments = ["demo.py", "--config-file", str(run_demo.DEMO), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--input", str(photos), "--opts", *overrides()])
    assert demo.main() == 0
    shown = capsys.readouterr()
    assert "bad.jpg: not an image" in shown.out + shown.err
    assert "2 of 3 photos segmented" in shown.out and "1 could not be read" in shown.out
    assert sorted(p.name for p in output.iterdir()) == ["good.png", "good_png.png"]


def test_a_classifier_of_labels_is_shown_by_its_ranking(tmp_path, monkeypatch):
    Image.new("RGB", (60, 40), (10, 200, 90)).save(tmp_path / "photo.jpg")
    config = run_demo.DEMO.parents[1] / "labels" / "classifier.yaml"
    arguments = ["demo.py", "--config-file", str(config), "--output", str(tmp_path / "out")]
    photo = ["--input", str(tmp_path / "photo.jpg")]
    monkeypatch.setattr(sys, "argv", [*arguments, *photo, "--opts", *overrides()])
    assert demo.main() == 0
    drawn = np.asarray(Image.open(tmp_path / "out" / "photo.png"))
    # The photo as it is, and bars beside it.
    assert np.ptp(drawn[20:300, 20:500], axis=(0, 1)).max() <= 2
    assert np.ptp(drawn[:, 520:], axis=(0, 1)).min() > 100


def test_pictures_of_one_run_do_not_overwrite_each_other():
    files = ["a/x.jpg", "b/x.jpg", "c/x.jpg", "d/x.jpg", "x_2.png", "X.JPG", "x_jpg.jpg", "y", "y"]
    names = demo.free_names([Path(file) for file in files])
    assert names[:4] == ["x.png", "x_jpg.png", "x_2.png", "x_3.png"]
    assert len({name.lower() for name in names}) == len(files)


def test_the_demo_replaces_no_input(tmp_path, monkeypatch):
    photo = tmp_path / "a.png"
    Image.new("RGB", (50, 30), (10, 200, 90)).save(photo)
    before = photo.read_bytes()
    (tmp_path / "same").symlink_to(tmp_path)
    for output in (tmp_path, tmp_path / "same"):
        arguments = ["demo.py", "--config-file", str(run_demo.DEMO), "--output", str(output)]
        words = [*arguments, "--input", str(photo), "--opts", *overrides()]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit, match=r"^demo: --output would replace the input .*a\.png"):
            demo.main()
    assert photo.read_bytes() == before


@pytest.mark.parametrize(
    "config, options, message",
    [
        ("gone.yaml", [], "config gone.yaml does not exist"),
        (None, ["MODEL.WEIGHTS", "gone.pth"], "gone.pth"),
        (None, ["NO.SUCH.KEY", "1"], "unknown config key 'NO.SUCH.KEY'"),
        (None, ["MODEL.WEIGHTS"], "override 'MODEL.WEIGHTS' has no value"),
        (None, ["MODEL.META_ARCHITECTURE", "Nothing"], "'Nothing' must be one of .*MaskFormer"),
        (None, ["MODEL.RANKSEG.SCORES", "('a.npz',)"], "SCORES .* cannot be shown on single"),
    ],
)
def test_the_demo_ends_in_a_sentence(tmp_path, monkeypatch, config, options, message):
    Image.new("RGB", (50, 30)).save(tmp_path / "photo.jpg")
    words = ["--config-file", config or str(run_demo.DEMO), "--output", str(tmp_path / "out")]
    words += ["--input", str(tmp_path / "photo.jpg"), "--opts", *overrides(), *options]
    monkeypatch.setattr(sys, "argv", ["demo.py", *words])
    with pytest.raises(SystemExit, match=f"^demo: .*{message}"):
        demo.main()
    assert not (tmp_path / "out").exists()


def test_weights_of_another_model_end_in_a_sentence(tmp_path, monkeypatch):
    Image.new("RGB", (50, 30)).save(tmp_path / "photo.jpg")
    torch.save({"model": {"backbone.stem": torch.zeros(1)}}, tmp_path / "other.pth")
    words = ["--config-file", str(run_demo.DEMO), "--output", str(tmp_path / "out")]
    options = overrides(**{"MODEL.WEIGHTS": str(tmp_path / "other.pth")})
    words += ["--input", str(tmp_path / "photo.jpg"), "--opts", *options]
    monkeypatch.setattr(sys, "argv", ["demo.py", *words])
    with pytest.raises(SystemExit, match=r"^demo: .*other\.pth"):
        demo.main()


def test_inputs_may_be_files_folders_and_patterns(tmp_path):
    for name in ("b.jpg", "a.jpg", "c.txt"):
        (tmp_path / name).touch()
    found = demo.find_inputs([str(tmp_path / "*.jpg"), str(tmp_path), "gone.jpg"])
    names = [p.name for p in found]
    assert sorted(names[:2]) == ["a.jpg", "b.jpg"]
    assert names[2:] == ["a.jpg", "b.jpg", "c.txt", "gone.jpg"]


def test_a_log_of_a_resumed_run_is_read_once(tmp_path):
    rows = [
        {"iteration": 19, "loss_ce": 3.0},
        {"iteration": 39, "loss_ce": 2.0, "sem_seg/mIoU": 10.0},
        {"iteration": 39, "loss_ce": 1.5, "sem_seg/mIoU": 20.0},
    ]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    run = report.Run.read(tmp_path / "metrics.json")
    assert run.losses["loss_ce"] == ([19, 39], [3.0, 1.5])
    assert run.last("sem_seg/mIoU") == 20.0 and run.last("panoptic_seg/PQ") is None
    (row,) = report.metric_rows(run, {"sem_seg": {"mIoU": 1.0}})
    assert row[0] == "mIoU" and row[2:] == (20.0, 1.0)


def test_the_whole_demo_in_small(tmp_path, monkeypatch, capsys):
    make = run_demo.make_scenes
    monkeypatch.setattr(run_demo, "make_scenes", lambda root: make(root, train=8, val=4, size=64))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    small = {
        "OUTPUT_DIR": str(tmp_path / "run"),
        "SOLVER.MAX_ITER": "2",
        "SOLVER.IMS_PER_BATCH": "2",
        "INPUT.CROP.SIZE": "(64,64)",
    }
    monkeypatch.setattr(sys, "argv", ["run_demo.py", *overrides(**small)])
    run_demo.main()
    shown = capsys.readouterr().out
    assert "constant prediction" in shown and "mIoU" in shown
    promise = "will take about 0.0 minutes, more beside other work: 2 iterations of "
    assert promise in shown.partition("constant prediction")[0]
    page = (tmp_path / "run" / "report.html").read_text()
    for name in ("curves", "temperatures", *(f"val_{i}" for i in range(4))):
        assert f"report/{name}.png" in page
        assert Image.open(tmp_path / "run" / "report" / f"{name}.png").width > 300
    # A second call finds the run finished.
    run_demo.main()
    assert "will take" not in capsys.readouterr().out
    assert (tmp_path / "run" / "log.txt").read_text().count("Starting training from") == 2


def test_what_is_left_of_a_run_is_estimated(scenes, tmp_path, monkeypatch):
    """From time_estimate.ITERATIONS of 0.5 s and RECORDS of 0.25 s, the first quarter slower."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    monkeypatch.setattr(
        time_estimate, "iteration_seconds", lambda _, count: [9.0] * (count // 4) + [0.5] * 15
    )
    monkeypatch.setattr(time_estimate, "record_seconds", lambda *_: [9.0] + [0.25] * 5)
    period = {"SOLVER.MAX_ITER": "1000", "TEST.EVAL_PERIOD": "300", "OUTPUT_DIR": str(tmp_path)}
    cfg = load_config(str(run_demo.DEMO), overrides(**period))
    whole = time_estimate.estimate(cfg)
    # Six validation images; evaluated at 300, 600, 900 and in the end.
    assert whole == time_estimate.Estimate(1000, 0.5, 4, 1.5) and whole.seconds == 506
    (tmp_path / "config.yaml").write_text(cfg.dump(), encoding="utf-8")
    assert time_estimate.estimate(cfg) == whole
    (tmp_path / "last_checkpoint").write_text("model_0000599.pth", encoding="utf-8")
    assert time_estimate.estimate(cfg) == time_estimate.Estimate(400, 0.5, 2, 1.5)
    (tmp_path / "last_checkpoint").write_text("model_final.pth", encoding="utf-8")
    assert time_estimate.finished_iterations(cfg) == 1000
    # A run of another config is not gone on with.
    (tmp_path / "config.yaml").write_text("SEED: 1", encoding="utf-8")
    assert time_estimate.finished_iterations(cfg) == 0


def test_check_dataset_names_the_bad_files(tmp_path, monkeypatch, capsys):
    maps = [quarters(20, 20, [0, 1, 2, 3]), quarters(20, 20, [0, 0, 0, 9])]
    arguments = write_dataset(tmp_path / "set", maps)["semantic_folder"]
    name = f"tool_{tmp_path.name}"
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({name: {"kind": "semantic_folder", **arguments}}))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["x", name, "gone", "--definitions", str(file)])
    assert check_dataset.main() == 1
    shown = capsys.readouterr().out
    assert "2 records, 1 problems" in shown and "001.png: label 9" in shown
    assert "gone: FAILED" in shown
