"""The video demo, and what `make demo-video` runs, in small."""

import sys

import cv2
import demo_video
import numpy as np
import pytest
import run_video_demo
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from visualise import Labels, made_up_colour

from rankseg_m2f.engine.main import load_config
from rankseg_m2f.structures.predictions import LabelMaps

TINY = {
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": "64",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": "6",
    "INPUT.MIN_SIZE_TEST": "48",
    "INPUT.MAX_SIZE_TEST": "64",
    "INPUT.CROP.SIZE": "(48,48)",
    "SOLVER.MAX_ITER": "2",
    "SOLVER.IMS_PER_BATCH": "2",
    "MODEL.DEVICE": "cpu",
}
WORDS = [word for pair in TINY.items() for word in pair]


def runs(mask):
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))


def frames_of(path):
    capture = cv2.VideoCapture(str(path))
    found = []
    while True:
        ok, frame = capture.read()
        if not ok:
            return found
        found.append(frame)


@pytest.fixture
def folder(tmp_path):
    """Seven frames that brighten."""
    path = tmp_path / "frames"
    path.mkdir()
    for i in range(7):
        Image.new("RGB", (60, 45), (30 * i, 90, 40)).save(path / f"{i:03d}.png")
    return path


def call(monkeypatch, *words):
    config = str(run_video_demo.CONFIGS["instance"])
    arguments = ["demo_video.py", "--config-file", config, *map(str, words), "--opts", *WORDS]
    monkeypatch.setattr(sys, "argv", arguments)
    demo_video.main()


@pytest.mark.parametrize("option", ["--input", "--video-input"])
def test_no_input_is_replaced(tmp_path, monkeypatch, option):
    file = tmp_path / "in.mp4"
    file.write_bytes(b"a video")
    with pytest.raises(
        SystemExit, match=r"^demo_video: --output would replace the input .*in\.mp4"
    ):
        call(monkeypatch, option, file, "--output", file)
    assert file.read_bytes() == b"a video"


def test_frames_become_a_video_and_a_video_becomes_another(folder, tmp_path, monkeypatch, capsys):
    first, second = tmp_path / "a.mp4", tmp_path / "b.mp4"
    call(monkeypatch, "--input", folder, "--output", first, "--fps", "5")
    frames = frames_of(first)
    assert len(frames) == 7 and frames[0].shape[1] > 380  # the ranking stands beside the frame
    call(monkeypatch, "--video-input", first, "--output", second)
    assert len(frames_of(second)) == 7
    assert cv2.VideoCapture(str(second)).get(cv2.CAP_PROP_FPS) == 5
    assert "b.mp4" in capsys.readouterr().out


def test_other_files_of_a_folder_are_passed_over(folder, tmp_path, monkeypatch, capsys):
    (folder / ".DS_Store").write_bytes(b"no image")
    call(monkeypatch, "--input", folder, "--output", tmp_path / "a.mp4")
    assert len(frames_of(tmp_path / "a.mp4")) == 7
    (said,) = [s for s in capsys.readouterr().out.splitlines() if s.startswith("not read: ")]
    assert ".DS_Store: not an image" in said


@pytest.mark.parametrize(
    "name, size, message",
    [
        ("frames/003.png", (40, 30), r"003\.png is 40 x 30, .*000\.png 60 x 45: frames need the"),
        ("gone", None, r"gone: no such file"),
        ("empty", None, r"empty: no file to read"),
    ],
)
def test_frames_that_make_no_video_are_named(folder, tmp_path, monkeypatch, name, size, message):
    (tmp_path / "empty").mkdir()
    if size:
        Image.new("RGB", size).save(tmp_path / name)
    given = folder if size else tmp_path / name
    with pytest.raises(SystemExit, match=f"demo_video: .*{message}"):
        call(monkeypatch, "--input", given, "--output", tmp_path / "a.mp4")


@pytest.mark.parametrize(
    "content, message", [(None, "no such file"), (b"no video", "not a video that OpenCV can read")]
)
def test_a_video_that_cannot_be_read_is_one_line(tmp_path, monkeypatch, content, message):
    path = tmp_path / "bad.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit, match=rf"demo_video: .*bad\.mp4: {message}"):
        call(monkeypatch, "--video-input", path, "--output", tmp_path / "out.mp4")


def test_pyav_reads_the_same_frames(folder, tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    call(monkeypatch, "--input", folder, "--output", path)
    pairs = zip(demo_video.pyav_frames(str(path)), demo_video.video_frames(str(path)), strict=True)
    for ours, theirs in pairs:
        assert np.abs(ours.astype(int) - theirs).mean() < 3  # other colour conversion


def test_an_object_keeps_its_colour_and_hides_where_it_is_absent():
    mask = np.zeros((4, 6), dtype=bool)
    mask[1:3] = True
    result = {
        "pred_scores": [0.9, 0.1, 0.8],
        "pred_labels": [5, 1, 2],
        "pred_masks": [[runs(mask), None], [runs(mask)] * 2, [runs(~mask)] * 2],
    }
    first, second = (demo_video.objects(result, i, min_score=0.3) for i in (0, 1))
    assert [r.label for r in first] == [5, 2] and [r.label for r in second] == [2]
    assert second[0].colour == first[1].colour == made_up_colour(2)
    assert np.array_equal(first[0].mask, mask)


def test_label_maps_are_drawn_frame_by_frame():
    maps = torch.zeros(2, 40, 40, dtype=torch.int64)
    maps[1] = 3
    pictures = [np.zeros((40, 40, 3), dtype=np.uint8)] * 2
    drawn = list(demo_video.draw(iter(pictures), {"sem_seg": LabelMaps(maps)}, Labels({}), 0.3))
    colours = [np.asarray(picture)[5, 5].tolist() for picture in drawn]
    assert colours[0] != colours[1]


def test_a_constant_has_all_labels_where_nothing_is_selected(scenes, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    config = str(run_video_demo.CONFIGS["instance"])
    cfg = load_config(config, [*WORDS, "MODEL.RANKSEG.TOPK", "0"])
    found = run_video_demo.constant_prediction(cfg)
    assert found["labels"]["recall"] == 100 and "segm" in found


def test_the_whole_video_demo_in_small(tmp_path, monkeypatch, capsys):
    make = run_video_demo.make_video_scenes
    monkeypatch.setattr(
        run_video_demo,
        "make_video_scenes",
        lambda root, frames: make(root, train=4, val=3, frames=3, size=48, jobs=1),
    )
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run_video_demo.py", *WORDS])
    run_video_demo.main()
    shown = capsys.readouterr().out
    # Both models at once, before the first is trained.
    assert shown.count("will take about") == 1 and shown.count(" iterations of ") == 2
    assert all(name in shown for name in ("instance  AP ", "semantic  mIoU", "constant prediction"))
    output = tmp_path / "output" / "demo-video"
    for task in ("instance", "semantic"):
        assert len(frames_of(output / f"{task}.mp4")) == 3
        assert Image.open(output / f"{task}.png").width > 4 * 288
    assert "mIoU" in (output / "figures.txt").read_text()
