"""Error causes by hand; the sweep is what --eval-only gives, and names what it cannot do."""

import csv
import logging
import math

import numpy as np
import pytest
import sweep as tool
import torch
from detectron2.modeling import build_model
from golden import load_case
from PIL import Image
from test_data import counted_loads
from test_engine import DEMO, SMALL, VIDEO

from rankseg_m2f.engine.evaluate import evaluate
from rankseg_m2f.engine.main import load_config
from rankseg_m2f.engine.sweep import Setting, grid, sweep
from rankseg_m2f.evaluation.error_analysis import OUTCOMES, ErrorEvaluator, pixel_outcomes
from rankseg_m2f.evaluation.ground_truth import GroundTruth
from rankseg_m2f.weights.metadata import label_names

VIDEO_SEMANTIC = VIDEO.parent.parent / "semantic" / "demo-rankseg.yaml"
# Temperatures of κ ranks alone; a scheduled κ has those of K.
SELECTED = ("MODEL.RANKSEG.TRAIN_SELECTION", "official")


def outcomes(truth, predicted, labels, selected=None):
    """Outcome -> pixels of each label, of one row of pixels."""
    found = pixel_outcomes(
        np.array([truth]), {i: i for i in range(5)}, np.array([predicted]), labels, selected
    )
    rows = zip(found["label"].tolist(), *(found[o].tolist() for o in OUTCOMES), strict=True)
    return {label: dict(zip(OUTCOMES, counts, strict=True)) for label, *counts in rows}


def test_causes_of_errors_by_hand():
    # Label 0: two of three found. 1: a region of its own, called 3. 2: the rest of what is called
    # 0, and a pixel where nothing is predicted. The last pixel has no truth.
    truth = [0, 0, 0, 1, 1, 1, 2, 2, -1]
    predicted = [1, 1, 2, 2, 2, 2, 1, 9, 2]
    found = outcomes(truth, predicted, {1: 0, 2: 3})
    assert found[0] == {"correct": 2, "missed": 0, "misclassified": 0, "mask": 1}
    assert found[1] == {"correct": 0, "missed": 0, "misclassified": 3, "mask": 0}
    assert found[2] == {"correct": 0, "missed": 0, "misclassified": 0, "mask": 2}
    # Labels that could not be predicted are wrong for that reason alone.
    found = outcomes(truth, predicted, {1: 0, 2: 3}, selected={0, 2, 3})
    assert found[1]["missed"] == 3 and found[2]["mask"] == 2


def test_half_an_overlap_is_no_right_mask():
    # Of four pixels two are common: IoU 1/2 of one, 2/3 of the other.
    assert outcomes([0, 0, 0, 1], [7, 7, 8, 7], {7: 2, 8: 0})[0]["misclassified"] == 0
    assert outcomes([0, 0, 0, 1], [7, 7, 8, 8], {7: 2, 8: 0})[0]["misclassified"] == 2


@pytest.mark.parametrize("segments", [False, True])
def test_errors_are_shares_of_labelled_pixels(tmp_path, segments):
    colours = np.zeros((2, 4, 3), dtype=np.uint8)
    colours[..., 0] = [[1, 1, 2, 2], [1, 1, 3, 0]]
    Image.fromarray(colours).save(tmp_path / "truth.png")
    segment = {"iscrowd": 0}
    record = {
        "file_name": "a",
        "pan_seg_file_name": str(tmp_path / "truth.png"),
        "segments_info": [
            {"id": 1, "category_id": 0, **segment},
            {"id": 2, "category_id": 1, **segment},
            {"id": 3, "category_id": 1, "iscrowd": 1},
        ],
    }
    truth = GroundTruth("errors", [record], {"label_names": ["a", "b", "c"]})
    evaluator = ErrorEvaluator("errors", tmp_path, truth, segments=segments)
    # The left half rightly 0; the right one 2.
    label_map = torch.tensor([[0, 0, 2, 2], [0, 0, 2, 2]])
    output = {
        "sem_seg": torch.nn.functional.one_hot(label_map, 3).permute(2, 0, 1),
        "panoptic_seg": (label_map + 1, [{"id": i, "category_id": i - 1} for i in (1, 3)]),
        "label_ranking": torch.tensor([1, 0]),
    }
    evaluator.process([record], [output])
    shares = evaluator.evaluate()["errors"]
    # Among segments the crowd of one pixel does not count.
    total = 6 if segments else 7
    assert shares == pytest.approx(
        {"correct": 400 / total, "missed": 0, "misclassified": 100 - 400 / total, "mask": 0}
    )
    output["label_ranking"] = torch.tensor([0, 2])
    evaluator.process([record], [output])
    assert evaluator.evaluate()["errors"]["missed"] == pytest.approx(100 - 400 / total)


def small_model(root, output, monkeypatch, config, *extra):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    cfg = load_config(str(config), [*SMALL, "OUTPUT_DIR", str(output), *extra])
    model = build_model(cfg)
    if model.ml_norm is not None:
        # As if trained: all temperatures differ.
        torch.nn.init.uniform_(model.ml_norm.weight, 0.5, 3)
    return cfg, model


def same(ours, theirs):
    return ours == theirs or (math.isnan(ours) and math.isnan(theirs))


@pytest.mark.parametrize(
    "config, extra",
    [
        (DEMO, ()),
        (DEMO, ("MODEL.RANKSEG.USE_GT_EVAL", "True")),
        (DEMO, ("MODEL.RANKSEG.USE_GT", "True")),
        (DEMO, ("MODEL.RANKSEG.TOPK_EVAL", "30", "MODEL.RANKSEG.EVAL_MASS", "0.4")),
        (DEMO, ("MODEL.RANKSEG.FLAG", "False")),
        (VIDEO, ("MODEL.RANKSEG.TEMPERATURE", "rank")),
        (VIDEO_SEMANTIC, ()),
    ],
    ids=["image", "oracle", "oracle of training", "dynamic", "plain", "tracks", "video"],
)
def test_the_own_setting_is_what_an_evaluation_gives(scenes, tmp_path, monkeypatch, config, extra):
    cfg, model = small_model(scenes, tmp_path, monkeypatch, config, *extra)
    name = cfg.DATASETS.TEST[0]
    expected = evaluate(cfg, model)
    settings, _ = grid(model, [3, 20])
    found = sweep(cfg, model, name, settings, tmp_path / "sweep")
    own = found[Setting.from_model(model)]
    assert next(iter(found)) == Setting.from_model(model)
    for task, metrics in expected.items():
        assert own[task].keys() == metrics.keys()
        for key, value in metrics.items():
            assert same(own[task][key], value), (task, key)
    for setting, results in found.items():
        if "errors" in results:
            assert sum(results["errors"].values()) == pytest.approx(100)
        if setting.dynamic:
            assert setting == Setting(30, True, True, False, 0.0, 0.4)
            assert setting.name == "kappa30-score0-mass0.4-temperature"
            assert 1 <= results["labels"]["kappa"] < 30
        elif setting.selection:
            # The truth selects as many as there are, but where an oracle closes labels before.
            if not setting.oracle or model.policy.oracle_train:
                assert results["labels"]["kappa"] == setting.kappa
            folder = tmp_path / "sweep" / setting.name
            assert (folder / f"per_image_labels_{name}.npz").is_file()
    # κ = K misses no label.
    assert all(
        r["errors"]["missed"] == 0 for s, r in found.items() if not s.selection and "errors" in r
    )


def test_settings_differ_as_configs_do(scenes, tmp_path, monkeypatch):
    """κ < κ of training is a config of that κ whose temperatures are the first ones."""
    cfg, model = small_model(scenes, tmp_path, monkeypatch, DEMO, *SELECTED)
    name = cfg.DATASETS.TEST[0]
    settings, _ = grid(model, [5], selection=[True], oracle=[False])
    found = sweep(cfg, model, name, settings)
    assert [s.name for s in settings] == ["kappa20-temperature", "kappa5", "kappa5-temperature"]
    state = model.state_dict()
    for key in ("ml_norm.weight", "ml_norm.bias"):
        state[key] = torch.cat([state[key][:5], state[key][-1:]])
    few = (*SELECTED, "MODEL.RANKSEG.TOPK", "5")
    other_cfg, other = small_model(scenes, tmp_path, monkeypatch, DEMO, *few)
    other.load_state_dict(state)
    expected = evaluate(other_cfg, other)
    for task, metrics in expected.items():
        for key, value in metrics.items():
            assert same(found[settings[2]][task][key], value), (task, key)
    assert found[settings[1]]["sem_seg"] != found[settings[2]]["sem_seg"]


def test_what_a_checkpoint_cannot_do_is_left_out_and_named():
    model = load_case("video_vis_rankseg_k10").model()
    settings, left_out = grid(model, [5, 10, 11])
    assert left_out["kappa11-temperature"] == left_out["all-temperature-oracle"]
    assert "trained with κ = 10" in left_out["kappa11-temperature"]
    assert Setting(11, True, False, False) in settings
    assert len(left_out) == 4 and len(settings) == 16 - 4
    plain = load_case("image_r50_baseline").model()
    settings, left_out = grid(plain, [5])
    assert [s.name for s in settings] == ["all", "all-oracle"]
    assert "no multi-label head" in left_out["kappa5"]
    told = load_case("image_r50_baseline").model("MODEL.RANKSEG.USE_GT", "True")
    settings, left_out = grid(told, [5])
    assert [s.name for s in settings] == ["all-oracle"]
    assert "set MODEL.RANKSEG.USE_GT False" in left_out["all"]
    with pytest.raises(ValueError, match="κ = 0"):
        grid(model, [0])
    # A pure sort has weights for all labels.
    settings, left_out = grid(load_case("image_swin_rankseg_kappaK").model(), [10**6])
    assert not left_out and len({s.kappa for s in settings}) == 1


def test_scores_from_files_rank_as_a_head_does():
    cfg = load_case("image_r50_rankseg").cfg.clone()
    headed = build_model(cfg)
    cfg.MODEL.RANKSEG.SCORES = ["planted.npz"]
    scored = build_model(cfg)
    assert scored.ml_head is None and grid(scored) == grid(headed)
    with pytest.raises(ValueError, match="needs a segmentor, which ReLU is not"):
        grid(torch.nn.ReLU())


def test_windows_are_refused(scenes, tmp_path, monkeypatch):
    cfg, model = small_model(
        scenes, tmp_path, monkeypatch, VIDEO, "MODEL.MASK_FORMER.TEST.WINDOW", "3"
    )
    with pytest.raises(ValueError, match=r"TEST\.WINDOW 0"):
        sweep(cfg, model, cfg.DATASETS.TEST[0], [Setting.from_model(model)])


def test_the_tool_writes_table_and_figure(scenes, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    cfg, model = small_model(scenes, tmp_path, monkeypatch, DEMO, *SELECTED)
    about = {"labels": ["zebra", *label_names(cfg)[1:]]}
    torch.save({"model": model.state_dict(), "metadata": about}, tmp_path / "w.pth")
    loads = counted_loads(monkeypatch, cfg.DATASETS.TEST[0])
    words = ["--config-file", str(DEMO), "--kappas", "4,30", "--oracle", "off", *SMALL, *SELECTED]
    words += ["OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", str(tmp_path / "w.pth")]
    with caplog.at_level(logging.WARNING):
        tool.main(words)
    assert len(loads) == 1
    assert "The file's labels are not the dataset's: label 0 is 'zebra'" in caplog.text
    shown = capsys.readouterr().out
    assert (
        "left out all-temperature, kappa30-temperature: the model was trained with κ = 20" in shown
    )
    folder = tmp_path / "sweep" / cfg.DATASETS.TEST[0]
    with (folder / "sweep.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(r["kappa"], r["selection"], r["temperature"]) for r in rows] == [
        ("20", "True", "True"),
        ("40", "False", "False"),
        ("4", "True", "False"),
        ("30", "True", "False"),
        ("4", "True", "True"),
    ]
    shares = [float(rows[0][f"errors/{outcome}"]) for outcome in OUTCOMES]
    assert sum(shares) == pytest.approx(100)
    assert Image.open(folder / "sweep.png").width > 1000
    with pytest.raises(SystemExit, match=r"^sweep: config gone\.yaml does not exist"):
        tool.main(["--config-file", "gone.yaml"])


def table_row(kappa, selection=True, temperature=True, oracle=False, min_score=0.0, correct=50.0):
    setting = Setting(kappa, selection, temperature, oracle, min_score)
    errors = dict(zip(OUTCOMES, (correct, 100 - correct, 0.0, 0.0), strict=True))
    return tool.row(setting, {"errors": errors, "sem_seg": {"mIoU": correct}})


def test_bars_of_errors_are_of_one_combination():
    rows = [
        table_row(20, min_score=0.1, correct=70),
        table_row(20, correct=60),
        table_row(5, correct=50),
        table_row(40, selection=False, correct=40),
        table_row(10, temperature=False, correct=30),
        table_row(30, oracle=True, correct=20),
    ]
    bars = tool.error_bars(rows)
    found = {name: line["errors/correct"] for name, line in bars.items()}
    # The checkpoint's own κ differs from image to image: a bar apart, not that of 20.
    assert list(found.items()) == [("5", 50), ("20", 60), ("all", 40), ("dynamic", 70)]
    assert list(tool.error_bars(rows[1:])) == ["5", "20", "all"]
    # A model without selection of its own, as "+ MT": what is drawn is still over κ.
    plain = [table_row(40, False, False), table_row(5, True, False), table_row(5)]
    assert list(tool.error_bars(plain)) == ["5", "all"]
