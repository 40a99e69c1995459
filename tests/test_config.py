"""Config files: official ones load unchanged, and none runs code."""

import ast
import re
import subprocess
import sys

import pytest
from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg

import rankseg_m2f
from rankseg_m2f.config import get_cfg
from rankseg_m2f.config.eval_tags import evaluate_list_comprehension
from rankseg_m2f.config.lookup import CONFIGS
from rankseg_m2f.errors import UserError


def load(tmp_path, text: str):
    path = tmp_path / "config.yaml"
    path.write_text("VERSION: 2\n" + text)
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    return cfg


def test_official_multi_scale_line(tmp_path):
    line = '!!python/object/apply:eval ["[int(x * 0.1 * 640) for x in range(5, 21)]"]'
    cfg = load(tmp_path, f"INPUT:\n  MIN_SIZE_TRAIN: {line}\n")
    sizes = [int(x * 0.1 * 640) for x in range(5, 21)]
    assert list(cfg.INPUT.MIN_SIZE_TRAIN) == sizes and sizes[0] == 320


@pytest.mark.parametrize(
    "code",
    [
        "__import__('os').system('true')",
        "[x for x in open('/etc/passwd')]",
        "[().__class__ for x in range(3)]",
        "[x for x in range(10**9)]",
        "[x ** 9999 for x in range(9)]",
        "[x for x in range(3) if x]",
        "[x / 0 for x in range(3)]",
        "print(1)",
        "[y for x in range(3)]",
        "",
    ],
)
def test_other_code_is_refused(code, tmp_path):
    with pytest.raises(ValueError, match="refused to evaluate"):
        evaluate_list_comprehension(code)
    with pytest.raises(ValueError, match=r"config\.yaml"):
        load(tmp_path, f'INPUT:\n  MIN_SIZE_TRAIN: !!python/object/apply:eval ["{code}"]\n')


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("[x for x in range(3)]", [0, 1, 2]),
        ("[round(x * 1.5) for x in range(1, 6, 2)]", [2, 4, 8]),
        ("[-x // 2 + 1 for x in range(3)]", [1, 0, 0]),
    ],
)
def test_arithmetic_lists(code, value):
    assert evaluate_list_comprehension(code) == value


def test_python_objects_are_not_built(tmp_path):
    with pytest.raises(ValueError, match=r"config\.yaml is not a plain YAML config"):
        load(tmp_path, "OUTPUT_DIR: !!python/object/apply:os.getcwd []\n")
    base = tmp_path / "base.yaml"
    base.write_text("OUTPUT_DIR: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ValueError, match=r"base\.yaml"):
        load(tmp_path, "_BASE_: base.yaml\n")


def test_whole_numbers_where_floats_stand(tmp_path):
    cfg = load(tmp_path, "MODEL:\n  RANKSEG: {LOSS_WEIGHT: 10}\nSOLVER: {BASE_LR: 1}\n")
    assert cfg.MODEL.RANKSEG.LOSS_WEIGHT == 10.0 and isinstance(cfg.SOLVER.BASE_LR, float)
    cfg.merge_from_list(["MODEL.RANKSEG.LOSS_WEIGHT", "0.5", "SOLVER.MLHEAD_MULTIPLIER", "5"])
    assert cfg.MODEL.RANKSEG.LOSS_WEIGHT == 0.5 and cfg.SOLVER.MLHEAD_MULTIPLIER == 5.0


def test_mistyped_overrides_are_named():
    with pytest.raises(
        UserError, match=r"MODEL\.RANKSEG\.TOPP': did you mean MODEL\.RANKSEG\.TOPK\?"
    ):
        get_cfg().merge_from_list(["MODEL.RANKSEG.TOPP", "3"])
    with pytest.raises(ValueError, match=r"MODEL\.RANKSEG\.TOPK.*has no value"):
        get_cfg().merge_from_list(["MODEL.RANKSEG.TOPK"])
    with pytest.raises(ValueError, match="Type mismatch"):
        get_cfg().merge_from_list(["MODEL.RANKSEG.TOPK", "many"])
    for words in (["SEED", "1", "--resume"], ["SEED", "1", "--num-gpus", "2"]):
        with pytest.raises(ValueError, match=rf"^flags go before .*: move {words[2]} there"):
            get_cfg().merge_from_list(words)


@pytest.mark.parametrize(
    ("key", "value", "advice"),
    [
        ("DATASETS.TRAIN", "scenes_panoptic_train", "('scenes_panoptic_train',)"),
        ("DATASETS.TEST", "(a, b)", "('a', 'b')"),
        ("INPUT.MIN_SIZE_TRAIN", "64", "(64,)"),
        ("DATASETS.DEFINITIONS", "my.yaml", "('my.yaml',)"),
    ],
)
def test_one_value_for_a_list_is_told_how_to_be_one(key, value, advice, tmp_path):
    words = rf"^{key} is a list, .*: write \"{re.escape(advice)}\"$"
    with pytest.raises(ValueError, match=words):
        get_cfg().merge_from_list([key, value])
    section, name = key.split(".")
    with pytest.raises(ValueError, match=rf"^\S*config\.yaml: {words[1:]}"):
        load(tmp_path, f"{section}:\n  {name}: {value}\n")
    right = get_cfg()
    right.merge_from_list([key, advice])
    assert right.lookup(key) == type(right.lookup(key))(ast.literal_eval(advice))
    assert load(tmp_path, f"{section}:\n  {name}: {advice}\n").lookup(key) == right.lookup(key)


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n", "7\n", "text\n"])
def test_a_file_that_is_no_config_is_named(text, tmp_path):
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"odd\.yaml is not a config"):
        get_cfg().merge_from_file(str(path))
    with pytest.raises(ValueError, match=r"odd\.yaml is not a config"):
        load(tmp_path, "_BASE_: odd.yaml\n")


def test_bases_that_cannot_be_read_are_named_with_who_wants_them(tmp_path):
    with pytest.raises(ValueError, match=r"^\S*config\.yaml: its _BASE_ leads back to itself$"):
        load(tmp_path, "_BASE_: config.yaml\n")
    (tmp_path / "b.yaml").write_text("_BASE_: gone.yaml\n")
    for first in ("b.yaml", "[b.yaml]"):
        with pytest.raises(FileNotFoundError, match=r"^\S*b\.yaml: its _BASE_ \S*gone\.yaml does"):
            load(tmp_path, f"_BASE_: {first}\n")


def test_bases_are_merged(tmp_path):
    (tmp_path / "base.yaml").write_text("SEED: 7\nMODEL:\n  RANKSEG: {TOPK: 5, FLAG: True}\n")
    cfg = load(tmp_path, "_BASE_: base.yaml\nMODEL:\n  RANKSEG: {TOPK: 9}\n")
    assert (cfg.SEED, cfg.MODEL.RANKSEG.TOPK, cfg.MODEL.RANKSEG.FLAG) == (7, 9, True)


def test_sections_of_old_names(tmp_path, caplog):
    cfg = load(tmp_path, "MODEL:\n  MLSEG: {USE_GT: True, TOPK: 4}\n")
    assert cfg.MODEL.RANKSEG.USE_GT and "MODEL.MLSEG is called MODEL.RANKSEG now" in caplog.text
    assert "MLSEG" not in cfg.MODEL
    cfg.merge_from_list(["MODEL.MLSEG.LOSS_WEIGHT", "3"])
    assert (cfg.MODEL.RANKSEG.TOPK, cfg.MODEL.RANKSEG.LOSS_WEIGHT) == (4, 3.0)


@pytest.mark.parametrize(("base", "own"), [("MLSEG", "RANKSEG"), ("RANKSEG", "MLSEG")])
def test_old_names_and_bases(base, own, tmp_path):
    (tmp_path / "base.yaml").write_text(f"MODEL:\n  {base}: {{TOPK: 5, FLAG: True}}\n")
    cfg = load(tmp_path, f"_BASE_: base.yaml\nMODEL:\n  {own}: {{TOPK: 9}}\n")
    assert (cfg.MODEL.RANKSEG.TOPK, cfg.MODEL.RANKSEG.FLAG) == (9, True)


def test_plain_detectron2_configs_merge():
    from detectron2.config import get_cfg as plain

    other = plain()
    other.SEED = 3
    cfg = get_cfg()
    cfg.merge_from_other_cfg(other)
    assert cfg.SEED == 3 and cfg.clone().MODEL.RANKSEG.TEMPERATURE == "layernorm"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: p.stem)
def test_our_files_load_into_a_plain_detectron2_config(path):
    cfg = get_detectron2_cfg()
    rankseg_m2f.add_rankseg_config(cfg)
    cfg.merge_from_file(str(path))
    ours = get_cfg()
    ours.merge_from_file(str(path))
    cfg.MODEL.DEVICE = ours.MODEL.DEVICE
    assert type(cfg) is CfgNode and cfg.dump() == ours.dump()


def test_registration_makes_everything_known():
    """All that a decorator somewhere in modeling/ registers, and nothing heavy is imported."""
    modeling = CONFIGS.parent / "rankseg_m2f" / "modeling"
    pattern = r"@(META_ARCH|BACKBONE|SEM_SEG_HEADS)_REGISTRY\.register\(\)\n(?:class|def) (\w+)"
    names = {
        match
        for path in modeling.rglob("*.py")
        for match in re.findall(pattern, path.read_text(encoding="utf-8"))
    }
    assert {"MaskFormer", "ViT", "BEiTAdapter", "FCNHead"} <= {name for _, name in names}
    code = (
        "import rankseg_m2f.registration, sys\n"
        "from detectron2 import modeling\n"
        f"for kind, name in {sorted(names)}:\n"
        "    assert name in getattr(modeling, kind + '_REGISTRY'), name\n"
        "assert 'VideoMaskFormer' in modeling.META_ARCH_REGISTRY\n"
        "assert 'rankseg_m2f.engine' not in sys.modules and 'rankseg_m2f.data' not in sys.modules\n"
        "assert 'timm' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=CONFIGS.parent, check=True)
