"""The built-in moving scenes: the same videos every time, one identity per track, two layouts."""

import json
import sys

import make_video_scenes as cli
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from make_video_scenes import make_video_scenes
from PIL import Image
from pycocotools import mask as rle
from scenegen.motion import sample_motion
from scenegen.render import render
from scenegen.video_writer import make_video
from scenegen.vocabulary import make_vocabulary
from scenegen.world import View, sample_world

from rankseg_m2f.data.datasets.video_scenes import register_video_scenes

SMALL = {"train": 6, "val": 4, "frames": 5, "num_labels": 20, "size": 48, "jobs": 1}
LARGE = {"train": 3, "val": 1, "frames": 3, "num_labels": 300, "size": 48, "jobs": 1}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_video_scenes(tmp_path_factory.mktemp("small") / "video_scenes", **SMALL)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return make_video_scenes(tmp_path_factory.mktemp("large"), **LARGE)


@pytest.fixture(scope="module")
def motions():
    vocabulary = make_vocabulary(40, 0, 0.5)
    return [sample_motion(vocabulary, np.random.default_rng([5, i])) for i in range(300)]


def contents(root):
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def mask_file(root, file_name):
    return root / "data" / file_name.replace("/origin/", "/mask/").replace(".jpg", ".png")


def test_files_do_not_depend_on_the_number_of_processes(small, tmp_path):
    again = contents(make_video_scenes(tmp_path / "again", **{**SMALL, "jobs": 2}))
    assert again == contents(small)
    assert len(again) == 2 * (6 + 4) * 5 + 2 + 2 + 3  # frames and maps; json; lists; the rest


def test_videos_do_not_depend_on_how_many_there_are(small, tmp_path):
    fewer = contents(make_video_scenes(tmp_path / "fewer", **{**SMALL, "train": 2, "val": 1}))
    whole = contents(small)
    shared = [name for name in fewer if name.startswith("data/")]
    assert len(shared) == 2 * 3 * 5
    assert all(fewer[name] == whole[name] for name in shared)


def test_videos_frames_splits_and_seeds_differ(small, tmp_path):
    one = {**SMALL, "train": 1, "val": 1, "seed": 1}
    other = make_video_scenes(tmp_path / "other", **one)
    frames = [
        (root / "data" / video / "origin" / f"{t:05d}.jpg").read_bytes()
        for root in (small, other)
        for video in ("train_00000", "val_00000")
        for t in range(5)
    ]
    assert len(set(frames)) == 20


@pytest.mark.parametrize("scenes", ["small", "large"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_layouts_agree_pixel_by_pixel(scenes, split, request):
    root = request.getfixturevalue(scenes)
    content = load(root / "annotations" / f"instances_{split}.json")
    numbers = load(root / "label_num_dic_final.json")
    things = {c["id"]: c["name"] for c in content["categories"]}
    assert all(numbers[name] == str(i) for i, name in things.items())
    listed = (root / f"{split}.txt").read_text(encoding="utf-8").split()
    assert listed == [v["file_names"][0].split("/")[0] for v in content["videos"]]
    for video in content["videos"]:
        tracks = [a for a in content["annotations"] if a["video_id"] == video["id"]]
        assert len(video["file_names"]) == video["length"]
        for t, file_name in enumerate(video["file_names"]):
            with Image.open(root / "data" / file_name) as jpg:
                assert (jpg.mode, jpg.size) == ("RGB", (video["width"], video["height"]))
            labels = np.asarray(Image.open(mask_file(root, file_name))).astype(np.int64)
            found = np.zeros_like(labels)
            for track in tracks:
                if track["segmentations"][t] is not None:
                    mask = rle.decode(track["segmentations"][t]).astype(bool)
                    assert not found[mask].any()  # tracks never overlap
                    found[mask] = track["category_id"]
            assert (found == np.where(np.isin(labels, list(things)), labels, 0)).all()
            assert labels.max() <= len(numbers)
            assert 0.001 < (labels == 0).mean() < 0.4


def test_tracks_hold_null_where_nothing_is_seen(small):
    absent = present = 0
    for split in ("train", "val"):
        content = load(small / "annotations" / f"instances_{split}.json")
        ids = [a["id"] for a in content["annotations"]]
        assert ids == list(range(1, len(ids) + 1))
        for track in content["annotations"]:
            assert track["iscrowd"] == 0
            columns = [track[k] for k in ("segmentations", "bboxes", "areas")]
            assert [len(c) for c in columns] == [5, 5, 5]
            assert any(code is not None for code in columns[0])
            for code, box, area in zip(*columns, strict=True):
                assert (code is None) == (box is None) == (area is None)
                absent, present = absent + (code is None), present + (code is not None)
                if code is not None:
                    assert isinstance(code["counts"], str)
                    assert code["size"] == [48, 48]
                    assert area == rle.area(code) > 0
                    assert box == rle.toBbox(code).tolist()
    assert 0 < absent < present


def test_bit_depth_and_void(small, large):
    paths = {root: sorted((root / "data").rglob("*.png")) for root in (small, large)}
    few, many = (np.stack([np.asarray(Image.open(p)) for p in paths[r]]) for r in (small, large))
    assert few.dtype == np.uint8
    assert few.min() == 0
    assert few.max() <= 20
    assert many.dtype != np.uint8
    assert many.min() == 0
    assert 255 < many.max() <= 300


def test_statistics_count_the_tracks(small):
    content = load(small / "annotations" / "instances_train.json")
    statistics = load(small / "scenes.json")["statistics"]["train"]
    first, last = ([a["areas"][t] is None for a in content["annotations"]] for t in (0, -1))
    assert statistics["videos"] == 6
    assert statistics["frames"] == 30
    assert statistics["tracks"] == len(content["annotations"])
    assert statistics["tracks_that_enter"] == sum(first)
    assert statistics["tracks_that_leave"] == sum(last)
    present = [
        set(np.unique([np.asarray(Image.open(mask_file(small, f))) for f in v["file_names"]])) - {0}
        for v in content["videos"]
    ]
    assert statistics["labels_per_video"]["max"] == max(map(len, present))
    for name, number in load(small / "label_num_dic_final.json").items():
        count = sum(int(number) in labels for labels in present)
        assert statistics["label_frequencies"][name] == count


def test_a_number_means_one_thing_in_all_frames():
    vocabulary = make_vocabulary(40, 0, 0.5)
    for index in range(3):
        worlds, images, parts = make_video(vocabulary, 0, "train", index, 6, 48)
        assert images.shape == (6, 48, 48, 3)
        for part, thing in enumerate(worlds[0].things, start=1 + len(worlds[0].bands)):
            for world in worlds:
                same = world.things[part - 1 - len(world.bands)]
                assert (same.label, same.look) == (thing.label, thing.look)
                assert (same.aspect, same.phase) == (thing.aspect, thing.phase)
        assert parts.max() <= len(worlds[0].bands) + len(worlds[0].things)


def test_the_texture_moves_with_its_thing():
    """A view that follows a thing sees the same thing; a twice larger view sees half of it."""
    vocabulary = make_vocabulary(40, 0, 0.5)
    world = next(
        w
        for w in (sample_world(vocabulary, np.random.default_rng([8, i])) for i in range(99))
        if w.things and w.things[-1].label is not None
    )
    number = len(world.bands) + len(world.things)
    nearest = world.things[-1]
    image, parts = render(world, 64)
    moved, moved_parts = render(world, 64, View(0.5 + 8 / 64, 0.5 - 4 / 64))
    seen = (parts == number)[:60, 8:]
    assert seen.any()
    assert (seen == (moved_parts == number)[4:, :56]).mean() > 0.99
    both = seen & (moved_parts == number)[4:, :56]
    difference = image[:60, 8:][both].astype(int) - moved[4:, :56][both]
    assert np.abs(difference).mean() < 6  # noise alone
    zoomed = render(world, 64, View(nearest.x, nearest.y, 2.0))[1]
    middle = render(world, 64, View(nearest.x, nearest.y))[1][16:48, 16:48]
    assert (zoomed[::2, ::2] == middle).mean() > 0.9


def test_motion_is_smooth_and_keeps_the_still_scene_in_it(motions):
    times = np.linspace(0, 1, 101)
    for motion in motions[:60]:
        for course, still in zip(motion.courses, motion.world.things, strict=True):
            assert course.thing == still
            path = [course.at(t) for t in times]
            at = np.array([(p.x, p.y, p.radius, p.angle) for p in path])
            assert np.abs(np.diff(at, axis=0)).max() < 0.03  # 1 % of the video
            assert np.abs(np.diff(at, n=2, axis=0)).max() < 2e-3
            there = course.at(course.when)
            assert np.hypot(there.x - still.x, there.y - still.y) < 0.02
            assert there.radius == pytest.approx(still.radius)
            assert min(at[:, 1] + at[:, 2]) > motion.world.bands[1].top - 0.02
        views = np.array([(v.x, v.y, v.zoom) for v in map(motion.camera.at, times)])
        assert np.abs(np.diff(views, axis=0)).max() < 0.01
        assert np.abs(views[50] - (0.5, 0.5, 1)).max() < 0.02


def test_things_enter_leave_stand_and_hide_one_another(motions):
    enter = leave = stand = cross = things = 0
    for motion in motions:
        paths = [[course.at(t) for t in np.linspace(0, 1, 9)] for course in motion.courses]
        things += len(paths)
        out = [[not -p.radius < p.x < 1 + p.radius for p in path] for path in paths]
        enter += sum(o[0] for o in out)
        leave += sum(o[-1] for o in out)
        stand += sum(abs(path[0].x - path[-1].x) < 0.03 for path in paths)
        for i, a in enumerate(paths):
            cross += any(
                np.hypot(p.x - q.x, p.y - q.y) < 0.5 * (p.radius + q.radius)
                for b in paths[:i]
                for p, q in zip(a, b, strict=True)
            )
    for count in (enter, leave, cross):
        assert 0.04 * things < count < 0.5 * things
    assert 0.1 * things < stand < 0.4 * things


def test_more_frames_are_smaller_steps():
    vocabulary = make_vocabulary(20, 0, 0.5)
    few, images, _ = make_video(vocabulary, 0, "val", 1, 3, 32)
    many, finer, _ = make_video(vocabulary, 0, "val", 1, 5, 32)
    assert few == many[::2]
    assert (images == finer[::2]).all()
    single, _, parts = make_video(vocabulary, 0, "val", 1, 1, 32)
    assert single == few[:1]
    assert parts.shape == (1, 32, 32)


def test_second_call_does_nothing(small):
    before = {p: p.stat().st_mtime_ns for p in small.rglob("*")}
    assert make_video_scenes(small, **SMALL) == small
    assert {p: p.stat().st_mtime_ns for p in small.rglob("*")} == before


def test_other_settings_need_force(tmp_path):
    settings = {"train": 1, "val": 1, "frames": 2, "num_labels": 8, "size": 32, "jobs": 1}
    root = make_video_scenes(tmp_path, **settings)
    kept = contents(root)
    with pytest.raises(FileExistsError, match=r"frames 2 instead of 3.*--force"):
        make_video_scenes(root, **{**settings, "frames": 3})
    assert contents(root) == kept
    make_video_scenes(root, **{**settings, "frames": 1}, force=True)
    assert len(list((root / "data").rglob("*.jpg"))) == 2
    assert load(root / "scenes.json")["settings"]["frames"] == 1


def test_unfinished_videos_start_again(tmp_path, monkeypatch):
    settings = {"train": 1, "val": 1, "frames": 2, "num_labels": 8, "size": 32, "jobs": 1}
    whole = contents(make_video_scenes(tmp_path / "whole", **settings))
    root = tmp_path / "broken"

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cli, "write_video_sheet", stop)
        with pytest.raises(KeyboardInterrupt):
            make_video_scenes(root, **settings)
    assert not (root / "scenes.json").exists()
    assert register_video_scenes(root) == []
    make_video_scenes(root, **settings)
    assert contents(root) == whole


@pytest.mark.parametrize("setting", [{"frames": 0}, {"num_labels": 7}, {"size": 8}])
def test_settings_out_of_range(tmp_path, setting):
    name, value = next(iter(setting.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        make_video_scenes(tmp_path / "new", **{**SMALL, **setting})
    assert not (tmp_path / "new").exists()


def test_registration(small):
    names = register_video_scenes(small)
    kinds = ("instance", "semantic")
    assert names == [f"video_scenes_{kind}_{s}" for s in ("train", "val") for kind in kinds]
    assert register_video_scenes(str(small)) == names  # twice does no harm
    instance, semantic = (MetadataCatalog.get(name) for name in names[:2])
    assert instance.evaluator_type == "ytvis"
    assert semantic.evaluator_type == "vspw"
    assert semantic.label_offset == 1
    assert instance.num_classes == 12  # 60 % of 20 are things
    assert semantic.num_classes == 20
    assert semantic.label_names == list(load(small / "label_num_dic_final.json"))
    assert semantic.label_names[:12] == instance.label_names
    assert len(DatasetCatalog.get(names[2])) == 4
    assert len(DatasetCatalog.get(names[3])) >= 4


def test_registration_without_scenes(tmp_path):
    assert register_video_scenes(tmp_path / "nowhere") == []
    assert register_video_scenes(tmp_path) == []


def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    arguments = ["make_video_scenes.py", "--train", "1", "--val", "2", "--frames", "3"]
    arguments += ["--num-labels", "8", "--size", "32", "--jobs", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    cli.main()
    root = tmp_path / "video_scenes"
    assert str(root) in capsys.readouterr().out
    assert len(list((root / "data").rglob("*.jpg"))) == 9
    with Image.open(root / "contact_sheet.png") as sheet:
        assert sheet.width > sheet.height > 300
    monkeypatch.setattr(sys, "argv", [*arguments, "--seed", "5"])
    with pytest.raises(SystemExit, match=r"^make_video_scenes: .*seed 0 instead of 5"):
        cli.main()
