"""Registration refuses what would train on wrong labels, in a sentence that names the file."""

import json
import re
import sys
from pathlib import Path

import make_scenes
import make_video_scenes
import numpy as np
import pytest
import yaml
from conftest import ROOT
from datasets_made import NAMES, quarters, write_dataset
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from rankseg_m2f.data.check import check_dataset
from rankseg_m2f.data.datasets.definitions import (
    KINDS,
    parse_definition,
    register_definitions,
)
from rankseg_m2f.files import datasets_root

FOLDER = "kind: semantic_folder, image_root: x, label_root: y"


def made(tmp_path, kind):
    """Arguments that register a sound dataset of this kind under the folder's name."""
    maps = [quarters(16, 20, [0, 1, 2, 3]), quarters(16, 20, [0, 1, 3, 255])]
    return write_dataset(tmp_path / "set", maps)[kind]


def changed(path, change):
    """Rewrite a json after `change` has edited its content in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_linked_folders_are_read_and_lead_into_no_loop(tmp_path):
    arguments = made(tmp_path, "semantic_folder")
    for key in ("image_root", "label_root"):
        root = Path(arguments[key])
        elsewhere = tmp_path / key
        root.rename(elsewhere)
        root.mkdir()
        (root / "linked").symlink_to(elsewhere)
        (elsewhere / "back").symlink_to(elsewhere)
    KINDS["semantic_folder"](tmp_path.name, **arguments)
    names = [Path(r["file_name"]).parent.name for r in DatasetCatalog.get(tmp_path.name)]
    assert names == ["linked", "linked"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("a:", "dataset 'a': a definition maps .* not to None"),
        ("a: [b]", r"dataset 'a': a definition maps .* not to \['b'\]"),
        ("5: {kind: coco_instances}", "dataset 5: "),
        ("a: {kind: [b]}", r"dataset 'a': kind \['b'\] must be one of"),
        ("'': {kind: ytvis}", "mine.yaml: a dataset is named ''"),
        (f"{'a' * 300}: {{kind: ytvis}}", r"a dataset is named 'aaa\S*\.\.\.: give it a name"),
        (f"a: {{kind: {'b' * 50_000}}}", r"dataset 'a': kind 'bbb\S*\.\.\. must be one of"),
        (f"a: {{kind: ytvis, image_root: {'b' * 5_000}, instances_json: x}}", "image_root is 'bbb"),
        (f"a: {{{FOLDER}, classes: [b], splits: [x]}}", r"'a': splits need \{split\} in the name"),
        (
            f"'{{split}}': {{{FOLDER}, classes: [b]}}",
            "in the name needs splits",
        ),
        (f"'{{split}}': {{{FOLDER}, splits: [no]}}", r"splits must be a list .* not \[False\]"),
        (f"'{{split}}': {{{FOLDER}, splits: {{x: 5}}}}", r"splits must be .* not \{'x': 5\}"),
        (f"'{{split}}': {{{FOLDER}, splits: x}}", "splits must be a list .* not 'x'"),
        (f"'{{split}}': {{{FOLDER}, splits: []}}", r"splits must be .* not \[\]"),
        (f"a: {{{FOLDER}, folder: 5}}", "folder must be a path, not 5"),
        (f"a: {{{FOLDER}, script: b.py}}", "unexpected .*'script'"),
        (
            f"a: {{{FOLDER}, optional: split_file}}",
            "can do .*, not 'split_file'",
        ),
        (f"a: {{{FOLDER}, optional: [image_root]}}", r"can do without .* not \['image_root'\]"),
        (f"a: {{{FOLDER}, optional: [[b]]}}", r"can do without .* not \[\['b'\]\]"),
        (
            "a: {kind: coco_instances, image_root: [b], instances_json: x}",
            r"image_root must be a path or .*, not \['b'\]",
        ),
        ("a: {kind: semantic_folder, image_root: [], label_root: y}", "image_root must be a path"),
        ("a: {kind: semantic_folder, image_root: [3], label_root: y}", "image_root must be a path"),
        (
            "a: {kind: semantic_folder, image_root: {first_of: b}, label_root: y, classes: [b]}",
            r"image_root must be a path, .* not \{'first_of': 'b'\}",
        ),
        ("a: {kind: [b}", "is not valid YAML: .*line 1"),
        ("a: 2020-99-99", "is not valid YAML: month"),
        ("", "must map dataset names"),
        ("a: {kind: coco_instances, 3: x}", "'a' of kind coco_instances: keywords must be"),
        (
            "a: {kind: coco_instances, image_root: 5, instances_json: x}",
            "image_root must be a path",
        ),
        ("a: {kind: coco_instances, image_root: , instances_json: x}", "required .*'image_root'"),
        (f"a: {{{FOLDER}, classes: road}}", "classes must be a list of names, not 'road'"),
        (f"a: {{{FOLDER}, classes: {{0: road}}}}", "classes must be a list of names"),
        (f"a: {{{FOLDER}, classes: []}}", r"classes must be a list of names, not \[\]"),
        (f"a: {{{FOLDER}, classes: [sky, no]}}", r"classes\[1\] is False, .*quote .*yes, no"),
        (f"a: {{{FOLDER}, classes: [sky, ' ']}}", r"classes\[1\] is ' '"),
        (f"a: {{{FOLDER}, classes: [sky, tree, sky]}}", "classes names 'sky' more than once"),
        (f"a: {{{FOLDER}, classes: [b], colours: [1]}}", "colours must be a list of RGB triples"),
        (f"a: {{{FOLDER}, classes: [b], colours: []}}", "1 classes but 0 colours"),
        (
            f"a: {{{FOLDER}, classes: [b], ignore_label: no}}",
            "ignore_label=False is not an integer",
        ),
        (
            f"a: {{{FOLDER}, classes: [b], ignore_label: 0}}",
            "ignore_label=0 is one of its 1 labels",
        ),
    ],
)
def test_bad_definitions_are_one_sentence(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as found:
        register_definitions([file])
    assert str(found.value).startswith(str(file)) and "\n" not in str(found.value)
    assert "a" not in DatasetCatalog.list()


def test_label_maps_as_releases_have_them(tmp_path):
    """A list of names, endings of names, values from 1 on, labels of a table, spare images."""
    for stem in ("b/1", "b/2", "a/3"):
        for path, values in (
            (tmp_path / "photos" / f"{stem}_photo.PNG", np.zeros((4, 4, 3), dtype=np.uint8)),
            (tmp_path / "maps" / f"{stem}_map.tif", np.full((4, 4), 60, dtype=np.uint16)),
            (tmp_path / "maps" / f"{stem}_other.png", np.full((4, 4), 200, dtype=np.uint8)),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    (tmp_path / "list.txt").write_text("b/2\n\na/3\n")
    (tmp_path / "maps" / "b" / "1_map.tif").unlink()
    name, file = f"real_{tmp_path.name}", tmp_path / "mine.yaml"
    definition = {
        "kind": "semantic_folder",
        "image_root": "photos",
        "label_root": "maps",
        "image_ending": "_photo.png",
        "label_ending": "_map.tif",
        "label_offset": 1,
    }
    listed = definition | {"table": "pascal_context_60", "split_file": "list.txt"}
    spare = definition | {"classes": [str(i) for i in range(60)], "labelled_only": True}
    file.write_text(yaml.safe_dump({name: listed, f"{name}_spare": spare}))
    register_definitions([file])
    stems = [r["image_id"] for r in DatasetCatalog.get(name)]
    assert stems == ["b/2", "a/3"]
    assert sorted(r["image_id"] for r in DatasetCatalog.get(f"{name}_spare")) == sorted(stems)
    assert MetadataCatalog.get(name).label_names[0] == "background"
    assert check_dataset(name).label_counts.tolist() == [0] * 59 + [2]
    (tmp_path / "list.txt").write_text("b/1\nb/4\n")
    with pytest.raises(ValueError, match=r"b/1_photo\.PNG has no label map.*; b/4 has no image"):
        DatasetCatalog.get(name)
    (tmp_path / "list.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"list\.txt does not exist"):
        DatasetCatalog.get(name)


@pytest.mark.parametrize(
    "more, message",
    [
        ({}, "classes must be a list of names, not None"),
        ({"table": "nonsense"}, "no table of categories 'nonsense'"),
        ({"table": ["ade20k_150"]}, "is not the name of a table"),
        ({"table": "ade20k_150", "classes": ["a"]}, "both classes and a table"),
        ({"classes": ["a"], "label_offset": -1}, "label_offset=-1 must be an integer"),
        (
            {"classes": ["a"], "label_offset": 255},
            "ignore_label=255 is one of its 1 labels, whose values are 255",
        ),
        ({"classes": ["a"], "label_offset": 1 << 40}, "beyond 65535, the largest of a 16-bit"),
        ({"classes": ["a"], "label_offset": 1 << 80}, "beyond 65535, the largest of a 16-bit"),
        ({"classes": ["a"], "labelled_only": "perhaps"}, "labelled_only='perhaps' must be true or"),
        ({"classes": ["a"], "labelled_only": 1}, "labelled_only=1 must be true or false"),
        ({"classes": ["a"], "label_ending": 5}, "label_ending=5 is not an ending"),
        ({"classes": ["a"], "image_ending": ""}, "image_ending='' is not an ending"),
        ({"classes": ["a" * 9_000] * 2}, r"classes names 'aaa\S*\.\.\. more than once"),
    ],
)
def test_bad_tables_and_offsets(more, message):
    with pytest.raises(ValueError, match=message):
        KINDS["semantic_folder"]("x", image_root="x", label_root="y", **more)


def test_an_argument_without_value_is_not_given(tmp_path):
    name = f"null_{tmp_path.name}"
    definition = {"kind": "coco_panoptic", "semantic_root": None, **made(tmp_path, "coco_panoptic")}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({name: {**definition, "ignore_label": None}}))
    assert register_definitions([file]) == [name]
    assert MetadataCatalog.get(name).ignore_label == 255
    assert "sem_seg_file_name" not in DatasetCatalog.get(name)[0]


def test_one_definition_has_several_splits(tmp_path):
    """Splits with the release's names, a folder, several and alternative places, optional ones."""
    name, file = f"mine_{tmp_path.name}", tmp_path / "mine.yaml"
    definition = {
        "kind": "semantic_folder",
        "splits": {"train": "training", "val": "validation"},
        "folder": "release",
        "image_root": ["images/{released}", "more/{released}"],
        "label_root": {"first_of": ["maps_v2/{split}", "maps/{split}", "labels/{split}"]},
        "split_file": "{split}.txt",
        "optional": ["split_file"],
        "classes": ["{sky}", "tree"],
    }
    file.write_text(yaml.safe_dump({f"{name}_{{split}}_2024": definition}))
    for split, released in definition["splits"].items():
        for folder, ending, stems in (
            (f"images/{released}", "jpg", [f"{split}1", f"{split}2"]),
            (f"more/{released}", "jpg", [f"{split}3"]),
            (f"maps/{split}", "png", [f"{split}{i}" for i in (1, 2, 3)]),
            (f"labels/{split}", "png", ["unused"]),
        ):
            for stem in stems:
                path = tmp_path / "release" / folder / f"{stem}.{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                shape = (4, 4, 3) if ending == "jpg" else (4, 4)
                Image.fromarray(np.zeros(shape, dtype=np.uint8)).save(path)
    (tmp_path / "release" / "val.txt").write_text("val3\n")
    names = [f"{name}_train_2024", f"{name}_val_2024"]
    assert register_definitions([file]) == register_definitions([file]) == names
    train, val = map(DatasetCatalog.get, names)
    assert sorted(r["image_id"] for r in train) == ["train1", "train2", "train3"]
    assert [r["file_name"] for r in val] == [str(tmp_path / "release/more/validation/val3.jpg")]
    assert [r["sem_seg_file_name"] for r in val] == [str(tmp_path / "release/maps/val/val3.png")]
    assert MetadataCatalog.get(names[0]).split_file is None
    assert MetadataCatalog.get(names[1]).label_names == ["{sky}", "tree"]


def test_definitions_of_the_readme_are_sound():
    readme = (ROOT / "datasets" / "README.md").read_text(encoding="utf-8")
    definitions = [
        parse_definition(name, entry)
        for block in re.findall(r"^```yaml\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
        for name, entry in yaml.safe_load(block).items()
    ]
    assert {definition.kind for definition in definitions} == set(KINDS)
    assert [x.names for x in definitions if x.splits] == [["my_train", "my_val"]]


def test_without_splits_braces_are_text(tmp_path):
    arguments = made(tmp_path, "semantic_folder")
    moved = tmp_path / "{split}{released}{0}"
    Path(arguments["image_root"]).rename(moved)
    name, file = f"braces_{tmp_path.name}", tmp_path / "mine.yaml"
    definition = {"kind": "semantic_folder", **arguments, "image_root": moved.name}
    file.write_text(yaml.safe_dump({name: definition}))
    assert register_definitions([file]) == [name]
    assert Path(DatasetCatalog.get(name)[0]["file_name"]).parent == moved


def test_the_ignore_label_is_no_label(tmp_path):
    """With the default of 255, the 256th of 300 classes would silently vanish."""
    arguments = made(tmp_path, "semantic_folder")
    arguments["classes"] = [f"c{i}" for i in range(300)]
    name = f"many_{tmp_path.name}"
    with pytest.raises(ValueError, match=r"ignore_label=255 is one of its 300 labels.*65535"):
        KINDS["semantic_folder"](name, **arguments)
    KINDS["semantic_folder"](name, **arguments, ignore_label=65535)
    assert MetadataCatalog.get(name).num_classes == 300
    arguments["classes"] = arguments["classes"][:255]
    KINDS["semantic_folder"](f"{name}_255", **arguments)


def test_the_ignore_label_matters_to_label_maps_alone(tmp_path):
    arguments = made(tmp_path, "coco_panoptic")
    with pytest.raises(ValueError, match="ignore_label=3 is one of its 4 labels"):
        KINDS["coco_panoptic"]("x", semantic_root="labels", ignore_label=3, **arguments)
    KINDS["coco_panoptic"](f"png_{tmp_path.name}", ignore_label=3, **arguments)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["categories"][1].pop("name"), "number 1 lacks 'name'"),
        (lambda c: c["categories"][1].update(name=""), "number 1 has the name ''"),
        (lambda c: c["categories"][1].pop("id"), "number 1 lacks 'id'"),
        (lambda c: c["categories"][1].update(id="7"), "number 1 has the id '7'"),
        (lambda c: c["categories"][1].update(id=12), "several categories of id 12"),
        (lambda c: c["categories"][1].update(color=[1, 2]), "number 1 has the color"),
        (lambda c: c["categories"].clear(), "lists no categories"),
        (lambda c: c.pop("categories"), "no list of 'categories'"),
    ],
)
@pytest.mark.parametrize("kind", ["coco_panoptic", "coco_instances"])
def test_categories_have_an_id_of_their_own_and_a_name(tmp_path, kind, change, message):
    arguments = made(tmp_path, kind)
    path = tmp_path / "set" / f"{kind.removeprefix('coco_')}.json"
    changed(path, change)
    with pytest.raises(ValueError, match=message) as found:
        KINDS[kind]("x", **arguments)
    assert str(path) in str(found.value)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.pop("annotations"), "no list of 'annotations'"),
        (lambda c: c.pop("images"), "no list of 'images'"),
        (lambda c: c["images"][1].pop("file_name"), "image 1 lacks 'file_name'"),
        (lambda c: c["images"][1].pop("id"), "an image lacks 'id'"),
        (lambda c: c["annotations"][1].pop("image_id"), "an annotation lacks 'image_id'"),
        (lambda c: c["annotations"][1].pop("file_name"), "of image 1 lacks 'file_name'"),
        (lambda c: c["annotations"][1].pop("segments_info"), r"001\.png lacks 'segments_info'"),
        (
            lambda c: c["annotations"][1]["segments_info"][0].pop("category_id"),
            r"001\.png: segment 1 lacks 'category_id'",
        ),
    ],
)
def test_panoptic_annotations_lack_nothing(tmp_path, change, message):
    arguments = made(tmp_path, "coco_panoptic")
    path = tmp_path / "set" / "panoptic.json"
    changed(path, change)
    name = f"lacking_{tmp_path.name}"
    KINDS["coco_panoptic"](name, **arguments)
    with pytest.raises(ValueError, match=message) as found:
        DatasetCatalog.get(name)
    assert str(found.value).startswith(str(path))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["images"][0].pop("file_name"), "image 0 lacks 'file_name'"),
        (lambda c: c["annotations"][0].update(category_id=9), "annotation 1 .*category_id=9"),
        (lambda c: c["annotations"][0].update(category_id="12"), "text, where .* number 12"),
        (lambda c: c["annotations"][0].pop("category_id"), "annotation 1 .*lacks 'category_id'"),
        (lambda c: c["annotations"].append(5), "number 3 of 'annotations' is 5, not an object"),
    ],
)
def test_instance_annotations_that_cannot_be_loaded_name_the_file(tmp_path, change, message):
    arguments = made(tmp_path, "coco_instances")
    path = tmp_path / "set" / "instances.json"
    changed(path, change)
    name = f"unloadable_{tmp_path.name}"
    KINDS["coco_instances"](name, **arguments)
    with pytest.raises(ValueError, match=message) as found:
        DatasetCatalog.get(name)
    assert str(found.value).startswith(str(path))


def test_colours_are_those_given(tmp_path):
    arguments = made(tmp_path, "semantic_folder")
    colours = [[i, 2 * i, 255] for i in range(4)]
    name = f"coloured_{tmp_path.name}"
    KINDS["semantic_folder"](name, **arguments, colours=colours)
    assert MetadataCatalog.get(name).stuff_colors == colours
    assert MetadataCatalog.get(name).label_names == NAMES


@pytest.mark.parametrize("script, kind", [(make_scenes, ""), (make_video_scenes, "video_")])
@pytest.mark.parametrize("variable, root", [(None, "datasets"), ("~/elsewhere", "elsewhere")])
def test_scenes_are_made_where_registration_looks(
    tmp_path, monkeypatch, script, kind, variable, root
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    if variable:
        monkeypatch.setenv("DETECTRON2_DATASETS", variable)
    small = {"train": 1, "val": 1, "num-labels": 8, "size": 32, "jobs": 1}
    small |= {"frames": 1} if kind else {}
    options = [word for key, value in small.items() for word in (f"--{key}", str(value))]
    monkeypatch.setattr(sys, "argv", ["make.py", *options])
    script.main()
    folder = tmp_path / root / f"{kind}scenes"
    assert datasets_root().resolve() == folder.parent and (folder / "scenes.json").is_file()
    picture = next(folder.glob("data/val_00000/origin/*.jpg" if kind else "val/000000.jpg"))
    assert np.asarray(Image.open(picture)).shape == (32, 32, 3)


def test_an_empty_variable_is_none(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "")
    assert datasets_root() == Path("datasets")
