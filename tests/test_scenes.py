"""The built-in scenes: the same images every time, and annotations that agree pixel by pixel."""

import json
import sys
from collections import defaultdict

import make_scenes as cli
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from make_scenes import make_scenes
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from scenegen.render import HOLES, OUTLINES, PATTERNS, render
from scenegen.vocabulary import SHAPES, TEXTURES, make_vocabulary
from scenegen.world import sample_world

from rankseg_m2f.data.datasets.scenes import register_scenes

SMALL = {"train": 6, "val": 5, "num_labels": 20, "size": 48, "jobs": 1}
LARGE = {"train": 4, "val": 3, "num_labels": 300, "size": 64, "jobs": 1}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp("small") / "scenes_20", **SMALL)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp("large"), **LARGE)


def contents(root):
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def pixels(path):
    return np.asarray(Image.open(path)).astype(np.int64)


def tight_box(mask):
    y, x = np.nonzero(mask)
    return [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]


def test_files_do_not_depend_on_the_number_of_processes(small, tmp_path):
    again = contents(make_scenes(tmp_path / "again", **{**SMALL, "jobs": 2}))
    assert again == contents(small)
    assert len(again) == 3 * (6 + 5) + 4 + 2


def test_images_do_not_depend_on_how_many_there_are(small, tmp_path):
    fewer = make_scenes(tmp_path / "fewer", **{**SMALL, "train": 2, "val": 1})
    for kind, suffix in (("", "jpg"), ("panoptic_", "png"), ("semantic_", "png")):
        for name in (f"{kind}train/000001.{suffix}", f"{kind}val/000000.{suffix}"):
            assert (fewer / name).read_bytes() == (small / name).read_bytes()


def test_splits_and_seeds_differ(small, tmp_path):
    other = make_scenes(tmp_path / "other", **{**SMALL, "train": 1, "val": 1, "seed": 1})
    images = [root / s / "000000.jpg" for root in (small, other) for s in ("train", "val")]
    assert len({path.read_bytes() for path in images}) == 4


@pytest.mark.parametrize("scenes", ["small", "large"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_annotations_agree_pixel_by_pixel(scenes, split, request):
    root = request.getfixturevalue(scenes)
    ignored = load(root / "scenes.json")["ignore_label"]
    panoptic = load(root / "annotations" / f"panoptic_{split}.json")
    instances = load(root / "annotations" / f"instances_{split}.json")
    things = {c["id"] for c in panoptic["categories"] if c["isthing"]}
    masks = defaultdict(list)
    for instance in instances["annotations"]:
        masks[instance["image_id"]].append(instance)
    assert len(panoptic["annotations"]) == len(panoptic["images"])
    for image, annotation in zip(panoptic["images"], panoptic["annotations"], strict=True):
        assert annotation["image_id"] == image["id"]
        jpg = Image.open(root / split / image["file_name"])
        assert jpg.mode == "RGB"
        assert jpg.size == (image["width"], image["height"])
        ids = pixels(root / f"panoptic_{split}" / annotation["file_name"]) @ [1, 256, 65536]
        labels = pixels(root / f"semantic_{split}" / annotation["file_name"])
        expected = np.full(ids.shape, ignored)
        for segment in annotation["segments_info"]:
            mask = ids == segment["id"]
            assert segment["area"] == mask.sum() > 0
            assert segment["bbox"] == tight_box(mask)
            expected[mask] = segment["category_id"] - 1
            if segment["category_id"] in things:
                instance = masks[image["id"]].pop(0)
                assert instance["category_id"] == segment["category_id"]
                assert (rle.decode(instance["segmentation"]) == mask).all()
                assert instance["area"] == segment["area"]
                assert instance["bbox"] == segment["bbox"]
        assert (labels == expected).all()
        assert set(np.unique(ids)) - {0} == {s["id"] for s in annotation["segments_info"]}
        assert 0.001 < (ids == 0).mean() < 0.4
    assert not any(masks.values())


def test_many_labels_get_sixteen_bits(small, large):
    assert load(small / "scenes.json")["ignore_label"] == 255
    assert load(large / "scenes.json")["ignore_label"] == 65535
    maps = [pixels(p) for p in sorted((large / "semantic_train").glob("*.png"))]
    assert max(m.max() for m in maps) == 65535
    assert 255 < max(m[m < 65535].max() for m in maps) < 300
    assert Image.open(next((small / "semantic_train").glob("*.png"))).mode == "L"


def test_json_is_what_the_coco_tools_read(small, capsys):
    coco = COCO(str(small / "annotations" / "instances_train.json"))
    assert len(coco.getImgIds()) == 6
    assert min(coco.getAnnIds()) == 1
    assert all(isinstance(a["segmentation"]["counts"], str) for a in coco.dataset["annotations"])
    assert len(coco.getCatIds()) == 12  # 60 % of 20 are things


def test_statistics_count_the_annotations(small):
    panoptic = load(small / "annotations" / "panoptic_train.json")
    statistics = load(small / "scenes.json")["statistics"]["train"]
    present = [{s["category_id"] for s in a["segments_info"]} for a in panoptic["annotations"]]
    assert statistics["images"] == 6
    assert statistics["labels_per_image"]["max"] == max(map(len, present))
    assert statistics["labels_per_image"]["mean"] == pytest.approx(
        np.mean([len(x) for x in present]), abs=1e-3
    )
    assert len(statistics["label_frequencies"]) == 20
    for category in panoptic["categories"]:
        count = sum(category["id"] in labels for labels in present)
        assert statistics["label_frequencies"][category["name"]] == count


@pytest.mark.parametrize("num_labels", [8, 9, 15, 40, 101, 255, 1000])
def test_vocabularies_of_any_size(num_labels):
    vocabulary = make_vocabulary(num_labels, 0, 0.5)
    labels = vocabulary.labels
    assert len(labels) == num_labels == len({x.name for x in labels})
    assert len({x.colour for x in labels}) == num_labels
    assert sum(x.is_thing for x in labels) == round(0.6 * num_labels)
    assert sum(t.weight for t in vocabulary.scene_types) == pytest.approx(1)
    for number, scene_type in enumerate(vocabulary.scene_types):
        assert len(scene_type.things) >= 2 <= len(scene_type.stuff)
        assert all(labels[i].is_thing for i in scene_type.things)
        assert not any(labels[i].is_thing for i in scene_type.stuff)
        inside = {i for i, x in enumerate(labels) if number in x.scene_types}
        assert inside == {*scene_type.things, *scene_type.stuff}
    assert any(len(x.scene_types) > 1 for x in labels)


@pytest.mark.parametrize("num_labels", [8, 40, 300, 1000])
@pytest.mark.parametrize("ambiguity", [0, 0.3, 0.5, 1])
@pytest.mark.parametrize("seed", [0, 1])
def test_labels_that_look_alike_never_meet(num_labels, ambiguity, seed):
    vocabulary = make_vocabulary(num_labels, seed, ambiguity)
    alike = defaultdict(list)
    for i, label in enumerate(vocabulary.labels):
        alike[label.look].append(i)
    groups = [group for group in alike.values() if len(group) > 1]
    for group in groups:
        types = [t for i in group for t in vocabulary.labels[i].scene_types]
        assert len(types) == len(set(types))
        assert len({vocabulary.labels[i].is_thing for i in group}) == 1
    anchors = {scene_type.stuff[0] for scene_type in vocabulary.scene_types}
    ambiguous = {i for group in groups for i in group}
    assert not ambiguous & anchors
    if ambiguity == 0:
        assert not ambiguous
    elif num_labels >= 40:
        wanted = min(ambiguity * num_labels, num_labels - len(anchors))
        assert 0.85 * wanted - 2 <= len(ambiguous) <= wanted + 4


def test_few_labels_per_image_long_tail_and_empty_scenes():
    vocabulary = make_vocabulary(100, 0, 0.5)
    counts, without_things = np.zeros(100), 0
    for index in range(1500):
        world = sample_world(vocabulary, np.random.default_rng([7, index]))
        things = {t.label for t in world.things} - {None}
        present = things | {b.label for b in world.bands}
        scene_type = vocabulary.scene_types[world.scene_type]
        assert len(present) <= 12
        assert present <= {*scene_type.things, *scene_type.stuff}
        assert scene_type.stuff[0] in present
        assert 2 <= len(world.bands) <= 4
        counts[list(present)] += 1
        without_things += not things
    assert 20 < without_things < 120  # about 4 %
    ranked = np.sort(counts)[::-1]
    assert ranked[-1] > 0
    assert ranked[:5].mean() > 8 * ranked[-20:].mean()


def test_every_shape_and_texture_can_be_drawn():
    assert set(OUTLINES) == set(SHAPES) >= set(HOLES)
    assert set(PATTERNS) == set(TEXTURES)
    v, u = np.mgrid[-3:3:64j, -3:3:64j]
    for texture, pattern in PATTERNS.items():
        share = pattern(u, v, 0.3)
        assert share.shape == u.shape
        assert 0 <= share.min() <= share.max() <= 1
        assert (share.std() > 0.1) == (texture != "plain")
    for outline in OUTLINES.values():
        reach = outline(np.linspace(-np.pi, np.pi, 200, endpoint=False), 0.3)
        assert 0.4 < reach.min() <= reach.max() < 1.3


def test_a_picture_scales_with_its_size():
    vocabulary = make_vocabulary(20, 0, 0.5)
    world = sample_world(vocabulary, np.random.default_rng(3))
    _, parts = render(world, 64)
    _, larger = render(world, 128)
    assert (parts == larger[::2, ::2]).mean() > 0.95


def test_second_call_does_nothing(small):
    before = {p: p.stat().st_mtime_ns for p in small.rglob("*")}
    assert make_scenes(small, **SMALL) == small
    assert {p: p.stat().st_mtime_ns for p in small.rglob("*")} == before


def test_other_settings_need_force(tmp_path):
    root = make_scenes(tmp_path, train=1, val=1, num_labels=8, size=32, jobs=1)
    kept = contents(root)
    with pytest.raises(FileExistsError, match=r"num_labels 8 instead of 9.*--force"):
        make_scenes(root, train=1, val=1, num_labels=9, size=32, jobs=1)
    assert contents(root) == kept
    (root / "notes.txt").write_text("mine", encoding="utf-8")
    make_scenes(root, train=2, val=1, num_labels=9, size=32, jobs=1, force=True)
    assert load(root / "scenes.json")["settings"]["num_labels"] == 9
    assert (root / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_unfinished_scenes_start_again(tmp_path, monkeypatch):
    settings = {"train": 2, "val": 1, "num_labels": 8, "size": 32, "jobs": 1}
    whole = contents(make_scenes(tmp_path / "whole", **settings))
    root = tmp_path / "broken"

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cli, "write_contact_sheet", stop)
        with pytest.raises(KeyboardInterrupt):
            make_scenes(root, **settings)
    assert not (root / "scenes.json").exists()
    assert register_scenes(root) == []
    (root / "train" / "000009.jpg").write_bytes(b"left over")
    make_scenes(root, **settings)
    assert contents(root) == whole


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_others_is_left_alone(tmp_path, force):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "photo.jpg").write_bytes(b"dear")
    with pytest.raises(FileExistsError, match="holds no scenes"):
        make_scenes(tmp_path, **SMALL, force=force)
    assert contents(tmp_path) == {"train/photo.jpg": b"dear"}


@pytest.mark.parametrize(
    "setting",
    [{"num_labels": 7}, {"num_labels": 1001}, {"ambiguity": 1.5}, {"train": 0}, {"jobs": 0}],
)
def test_settings_out_of_range(tmp_path, setting):
    name, value = next(iter(setting.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        make_scenes(tmp_path / "new", **{**SMALL, **setting})
    assert not (tmp_path / "new").exists()


def test_registration(small):
    names = register_scenes(small)
    kinds = ("panoptic", "semantic", "instance")
    assert names == [f"scenes_20_{kind}_{s}" for s in ("train", "val") for kind in kinds]
    assert register_scenes(str(small)) == names  # twice does no harm
    panoptic, semantic, instance = (DatasetCatalog.get(n) for n in names[:3])
    assert [len(x) for x in (panoptic, semantic, instance)] == [6, 6, 6]
    for one, two, three in zip(panoptic, semantic, instance, strict=True):
        assert one["file_name"] == two["file_name"] == three["file_name"]
        assert one["sem_seg_file_name"] == two["sem_seg_file_name"]
        ids = pixels(one["pan_seg_file_name"]) @ [1, 256, 65536]
        labels = pixels(two["sem_seg_file_name"])
        for segment in one["segments_info"]:
            assert (labels[ids == segment["id"]] == segment["category_id"]).all()
        assert len(three["annotations"]) == sum(s["category_id"] < 12 for s in one["segments_info"])
    metadata = [MetadataCatalog.get(n) for n in names[:3]]
    assert [m.num_classes for m in metadata] == [20, 20, 12]
    assert metadata[0].stuff_classes == metadata[1].stuff_classes == metadata[1].label_names
    assert metadata[0].stuff_colors == metadata[1].stuff_colors
    assert metadata[0].label_names[:12] == metadata[2].label_names
    assert [m.ignore_label for m in metadata[:2]] == [255, 255]


def test_registration_without_scenes_and_with_broken_ones(tmp_path):
    assert register_scenes(tmp_path / "nowhere") == []
    assert register_scenes(tmp_path) == []
    (tmp_path / "scenes.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"scenes\.json.*make the scenes again"):
        register_scenes(tmp_path)


def test_command_line(tmp_path, monkeypatch, capsys):
    arguments = ["make_scenes.py", "--root", str(tmp_path / "a"), "--train", "1", "--val", "2"]
    arguments += ["--num-labels", "8", "--size", "32", "--jobs", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    cli.main()
    assert str(tmp_path / "a") in capsys.readouterr().out
    with Image.open(tmp_path / "a" / "contact_sheet.png") as sheet:
        assert sheet.width > sheet.height > 300
    monkeypatch.setattr(sys, "argv", [*arguments, "--seed", "5"])
    with pytest.raises(SystemExit, match="seed 0 instead of 5"):
        cli.main()
