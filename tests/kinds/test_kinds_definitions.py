"""YAML files of definitions: what is in them, and how they are written."""

import yaml
from kinds_cases import EITHER, REFUSED, WORKS, Cases
from kinds_made import NAME, LabelMaps, ObjectImages, ObjectVideos

cases = Cases()


def written(change, encoding="utf-8"):
    """data.yaml as `change` makes it of the sound text."""

    def spoil(made):
        made.write()
        text = change(yaml.safe_dump({NAME: made.definition}))
        content = text if isinstance(text, bytes) else text.encode(encoding)
        (made.root / "data.yaml").write_bytes(content)

    return spoil


def argument(**values):
    """Arguments of the definition; None is left out by the reader, as YAML's empty value is."""

    def spoil(made):
        made.definition.update(values)

    return spoil


_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)

cases.add_table(
    WORKS,
    {
        "yaml_with_bom": written(lambda text: text, "utf-8-sig"),
        "yaml_from_windows": written(lambda text: text.replace("\n", "\r\n")),
        "yaml_with_comments": written(lambda text: f"# mine\n---\n{text}\n# end\n"),
        "yaml_in_one_line": written(lambda text: str({NAME: yaml.safe_load(text)[NAME]})),
        "argument_empty": argument(table=None),
    },
    LabelMaps,
)
cases.add_table(
    REFUSED,
    {
        "yaml_empty": written(lambda text: ""),
        "yaml_a_list": written(lambda text: "- own\n"),
        "yaml_a_text": written(lambda text: "own"),
        "yaml_with_tabs": written(lambda text: text.replace("  ", "\t")),
        "yaml_broken": written(lambda text: text + "\n  : : ["),
        "yaml_latin_1": written(lambda text: text.replace("cup", "caf\u00e9").encode("latin-1")),
        "yaml_of_zero_bytes": written(lambda text: b"\0" * 64),
        "yaml_python_object": written(lambda text: "own: !!python/object/apply:os.getcwd []\n"),
        "yaml_nested_too_deep": written(lambda text: "[" * 20_000),
        "yaml_maps_nested_too_deep": written(lambda text: "{a: " * 5_000),
        "yaml_alias_of_itself": written(lambda text: "own: &a\n  kind: *a\n"),
        "yaml_alias_bomb": written(lambda text: _BOMB + "own: *i\n"),
        "yaml_alias_bomb_as_classes": written(lambda text: _BOMB + text.replace("- table", "- *i")),
        "yaml_json_of_annotations": written(lambda text: '{"images": [], "annotations": []}'),
        "yaml_two_documents": written(lambda text: f"{text}---\n{text}"),
        "definition_null": written(lambda text: "own:\n"),
        "definition_a_list": written(lambda text: "own: [semantic_folder]\n"),
        "name_a_number": written(lambda text: text.replace("own:", "17:")),
        "name_a_list": written(lambda text: "? [own]\n: {kind: semantic_folder}\n"),
        "name_empty": written(lambda text: text.replace("own:", '"":')),
        "kind_unknown": argument(kind="coco"),
        "kind_missing": argument(kind=None),
        "kind_a_list": argument(kind=["semantic_folder"]),
        "argument_misspelt": argument(lable_root="labels"),
        "argument_a_number": written(lambda text: text + "  7: 8\n"),
        "root_missing": argument(label_root=None),
        "root_a_list": argument(label_root=["labels"]),
        "root_a_number": argument(label_root=7),
        "classes_missing": argument(classes=None),
        "classes_a_text": argument(classes="table"),
        "classes_empty": argument(classes=[]),
        "classes_of_numbers": argument(classes=[1, 2, 3]),
        "classes_of_booleans": argument(classes=[True, False, "no"]),
        "classes_of_null": argument(classes=["table", None, "cup"]),
        "classes_twice": argument(classes=["table", "cup", "cup"]),
        "classes_nested": argument(classes=[["table"], "cup", "plate"]),
        "classes_and_table": argument(table="ade20k_150"),
        "table_unknown": argument(table="absent", classes=None),
        "table_climbs_out": argument(table="../../absent", classes=None),
        "table_a_number": argument(table=5, classes=None),
        "colours_too_few": argument(colours=[[1, 2, 3]]),
        "colours_of_text": argument(colours=["red", "green", "blue"]),
        "ending_a_number": argument(label_ending=5),
        "ending_a_list": argument(image_ending=[".png"]),
        "split_file_a_list": argument(split_file=["1", "2"]),
    },
    LabelMaps,
    words=("data.yaml",),
)
cases.add_table(
    REFUSED,
    {
        "root_absent": argument(label_root="absent"),
        "root_with_null_byte": argument(label_root="a\0b"),
        "root_too_long": argument(label_root="x" * 5000),
        "labelled_only_text": argument(labelled_only="perhaps"),
    },
    LabelMaps,
)
cases.add_table(
    EITHER,
    {
        "yaml_utf_16": written(lambda text: text, "utf-16"),
        "classes_a_mapping": argument(classes={0: "table", 1: "cup", 2: "plate"}),
        "ending_of_all_files": argument(label_ending=""),
    },
    LabelMaps,
)


@cases.add(EITHER, LabelMaps, words=("data.yaml", NAME))
def name_defined_twice(made):
    written(lambda text: text + text.replace("- cup", "- mug"))(made)


cases.add_table(
    REFUSED,
    {
        "json_argument_missing": argument(instances_json=None),
        "json_argument_a_number": argument(instances_json=7),
        "json_argument_absent": argument(instances_json="absent.json"),
        "json_argument_a_folder": argument(instances_json="."),
        "json_argument_an_image": argument(instances_json="data.yaml"),
        "kind_of_another_form": argument(kind="coco_panoptic"),
        "image_root_absent": argument(image_root="absent"),
        "table_of_other_labels": argument(table="ade20k_150"),
    },
    ObjectImages,
    ObjectVideos,
)


@cases.parametrize
def test_definition(case, tmp_path):
    case.hold(tmp_path)
