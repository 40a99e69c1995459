"""The evidence: planted differences arrive in the document, what is missing is said, and no number
is another one than in the committed results."""

import json
import shutil
from pathlib import Path

import evidence
import pytest
import torch
import yaml
from conftest import ROOT
from detectron2.modeling import build_model
from evidence_document import Document, outcome
from evidence_results import EXPERIMENTS, Plan, Results, collect
from experiment import Experiment, check_overrides
from PIL import Image
from test_compare_runs import write_run

from rankseg_m2f.engine.main import load_config
from rankseg_m2f.evaluation.bootstrap import Comparison, SavedStatistics

METRIC = "sem_seg/pACC"
TABLES = {
    "experiments": {
        "toy": {"baseline": "toy/plain", "metrics": [METRIC]},
        "more": {"baseline": "toy/plain", "metrics": [METRIC]},
    },
    "tables": {
        "one": {
            "baseline": "toy/plain",
            "metrics": [METRIC, "labels/mAP"],
            "paper": ["A", "B"],
            "rows": [
                ["toy/plain", "plain"],
                ["toy/good", "good", 0.1, -2],
                ["more/late", "late"],
                ["toy/plain/again", "again"],
            ],
        }
    },
    "judgements": {"pixels": [METRIC], "pixels again": [METRIC, "again"]},
    "claims": [
        ["good helps", "Table 1", "toy/good", "toy/plain", ["pixels"]],
        ["and again", "Table 1", "toy/good", "toy/plain", ["pixels", "pixels again"]],
        ["bad helps", "Table 1", "toy/bad", "toy/plain", ["pixels"]],
        ["nothing helps", "ours", "toy/same", "toy/plain", ["pixels"]],
        ["late helps good", "ours", "more/late", "toy/good", ["pixels"]],
        ["to judge again helps", "ours", "toy/plain/again", "toy/plain", ["pixels"]],
    ],
    "temperatures": ["toy/good"],
}
TEMPLATE = """{{claims}}
{{table one}}
{{runs}}
{{picture toy}} {{picture more}} {{picture temperatures-good}}
mean {{value toy/good sem_seg/pACC}}, {{value more/late sem_seg/pACC}}
{{difference toy/good toy/plain sem_seg/pACC}}
{{temperature toy/good}}
"""
SHIFTS = {"plain": 0, "good": 10, "bad": -8, "same": 0, "late": 20, "plain/again": 5}


@pytest.fixture
def plan(tmp_path):
    """Two experiments; the second has no baseline of its own."""
    common = {"config": "configs/scenes/panoptic/demo-rankseg.yaml", "seeds": [1, 2]}
    again = {"again": ["SOLVER.MAX_ITER", 2]}
    toy = {name: [] for name in ("plain", "good", "bad", "same")}
    files = {
        "toy": {"settings": toy, "evaluate": {"plain": again, "good": again}},
        "more": {"settings": {}},
    }
    files["more"]["settings"] = {"late": ["SOLVER.MAX_ITER", 3]}
    for name, content in files.items():
        text = yaml.safe_dump({"name": name, **common, **content})
        (tmp_path / f"{name}.yaml").write_text(text)
    docs = tmp_path / "docs" / "evidence"
    docs.mkdir(parents=True)
    (docs / "tables.yaml").write_text(yaml.safe_dump(TABLES))
    (docs / "EVIDENCE.in.md").write_text(TEMPLATE)
    return Plan.read(docs, tmp_path)


def run(plan, root, setting, seed):
    """What run_seeds.py leaves of a run; its pictures are better by the planted points."""
    job = next(job for job in plan.jobs[setting] if job.seed == seed)
    folder = root / job.folder
    # Seeds differ by a point, the same for all settings.
    write_run(folder, SHIFTS[job.setting] + seed)
    (statistics,) = folder.glob("inference/*/*.npz")
    metrics = SavedStatistics.read(statistics).metrics
    result = {
        **job.description(),
        "metrics": {"toy": {"sem_seg": {**metrics, "IoU-sky": 3.0, "nothing": None}}},
        "wall_seconds": 90.0,
        "resumed": False,
        "device": "a processor",
        "revision": "0123456789abcdef-dirty",
    }
    (folder / "results.json").write_text(json.dumps(result))
    if job.setting == "good":
        state = {"ml_norm.weight": torch.tensor([3.0, 2.0, 2.5, 1.0, 9.0])}
        torch.save({"model": state}, folder / "model_final.pth")
        # Of four ranks, the last was left behind by a κ that shrank.
        (folder / "config.yaml").write_text("MODEL: {RANKSEG: {TOPK: 3}}")
    return folder


@pytest.fixture
def runs(plan, tmp_path):
    """Folder of runs: seed 1 of all of toy but "bad"'s, seed 2 of two."""
    root = tmp_path / "output"
    for setting in ("plain", "good", "same", "plain/again"):
        run(plan, root, f"toy/{setting}", 1)
    for setting in ("plain", "good"):
        run(plan, root, f"toy/{setting}", 2)
    return root


def quick(folder, plan):
    return collect(folder, plan, resamples=50, say=lambda _: None)


def test_a_planted_difference_is_collected(plan, runs):
    content = json.loads(quick(runs / "toy", plan).read_text())
    assert [(r["setting"], r["seed"]) for r in content["runs"]] == [
        ("good", 1),
        ("good", 2),
        ("plain", 1),
        ("plain", 2),
        ("plain/again", 1),
        ("same", 1),
    ]
    good = content["runs"][1]
    assert good["dataset"] == "toy" and good["overrides"] == [] and good["device"] == "a processor"
    assert METRIC in good["metrics"] and not {"sem_seg/IoU-sky", "sem_seg/nothing"} & set(
        good["metrics"]
    )
    assert good["temperature"] == {"form": "rank", "weight": [3.0, 2.0, 2.5, 9.0]}
    compared = {(c["a"], c["b"]): c for c in content["comparisons"]}
    assert {pair: c["seeds"] for pair, c in compared.items()} == {
        ("toy/good", "toy/plain"): [1, 2],
        ("toy/plain/again", "toy/plain"): [1],
        ("toy/same", "toy/plain"): [1],
    }
    (metric,) = (m for m in compared["toy/good", "toy/plain"]["metrics"] if m["metric"] == METRIC)
    assert metric["difference"] == 10 and metric["interval"][0] > 5


def test_new_runs_are_merged_and_old_ones_stay(plan, runs):
    path = quick(runs / "toy", plan)
    first = path.read_bytes()
    assert quick(runs / "toy", plan) == path and path.read_bytes() == first
    shutil.rmtree(runs / "toy" / "good" / "seed1")
    run(plan, runs, "toy/bad", 2)
    quick(runs / "toy", plan)
    results = Results.read(plan, "toy")
    assert len(results.runs) == 7 and ("toy/good", 1) in results.runs
    # Made from two seeds, of which one is there no more.
    assert results.comparisons["toy/good", "toy/plain"]["seeds"] == [1, 2]
    assert results.comparison("toy/bad", "toy/plain", METRIC).difference == -8
    # An experiment is compared with one beside it.
    run(plan, runs, "more/late", 2)
    quick(runs / "more", plan)
    assert Results.read(plan, "more").comparison("more/late", "toy/good", METRIC).difference == 10


def test_runs_of_other_settings_are_refused_by_name(plan, runs, tmp_path):
    path = quick(runs / "toy", plan)
    before = path.read_bytes()
    file = runs / "toy" / "good" / "seed2" / "results.json"
    file.write_text(file.read_text().replace('"overrides": []', '"overrides": ["SEED", "1"]'))
    with pytest.raises(ValueError, match=r"good.seed2.results\.json is of another run \(overrides"):
        quick(runs / "toy", plan)
    path.write_text(before.decode().replace('"seed": 2, "overrides": []', '"seed": 7', 1))
    with pytest.raises(ValueError, match=r"toy\.json: toy/good, seed 7 is not the run"):
        quick(runs / "toy", plan)
    with pytest.raises(ValueError, match="is not named as one of more, toy"):
        quick(tmp_path, plan)
    tables = {**TABLES, "claims": [["x", "y", "toy/good", "toy/gone", ["pixels"]]]}
    (plan.evidence / "tables.yaml").write_text(yaml.safe_dump(tables))
    with pytest.raises(ValueError, match=r"tables\.yaml: toy/gone is not a setting"):
        Plan.read(plan.evidence, tmp_path)
    tables["claims"] = [["x", "y", "toy/good", "toy/plain", ["pixels", "luck"]]]
    (plan.evidence / "tables.yaml").write_text(yaml.safe_dump(tables))
    with pytest.raises(ValueError, match=r"tables\.yaml: luck must be one of pixels, pixels again"):
        Plan.read(plan.evidence, tmp_path)


def test_the_same_models_are_compared_as_such(plan, runs):
    """Seeds differ by a point, but both evaluations of each by the same five."""
    run(plan, runs, "toy/plain/again", 2)
    quick(runs / "toy", plan)
    results = Results.read(plan, "toy")
    assert results.comparison("toy/plain/again", "toy/plain", METRIC).interval == [5, 5]
    low, high = results.comparison("toy/good", "toy/plain", METRIC).interval
    assert high - low > 1


def test_the_document_says_what_is_there_and_what_is_not(plan, runs):
    path = quick(runs / "toy", plan)
    run(plan, runs, "toy/bad", 1)
    assert evidence.render(Document(plan)) is None
    assert evidence.render(Document(plan), check=True) is None
    lines = (plan.evidence.parent / "EVIDENCE.md").read_text().splitlines()
    rows = {line.split(" | ")[0][2:]: line.split(" | ") for line in lines if line.startswith("|")}
    content = json.loads(path.read_text())
    values = [r["metrics"][METRIC] for r in content["runs"] if r["setting"] == "good"]
    mean = f"{sum(values) / 2:.2f} ± {abs(values[0] - values[1]) / 2**0.5:.2f}"
    (metric,) = (m for m in content["comparisons"][0]["metrics"] if m["metric"] == METRIC)
    low, high = metric["interval"]
    difference = f"**+10.00 [+{low:.2f}, +{high:.2f}]**"
    assert rows["good"][1:4] == ["2 of 2", mean, difference]
    assert rows["good"][4:] == ["-", rows["good"][5], "+0.1 / -2 |"]
    assert rows["good"][5].startswith("good is better by 10.00 ± ")
    assert rows["good"][5].endswith(" (2 seeds)") and rows["again"][5] == "one seed cannot say"
    assert rows["late"][1:4] == ["0 of 2", "not run yet", ""]
    assert rows["again"][1] == "1 of 2" and rows["again"][3].startswith("+5.00 [")
    assert rows["claim"] == ["| claim", "source", "seeds", "pixels", "pixels again |"]
    assert rows["good helps"][1:] == ["Table 1", "2", f"holds: {difference}", " |"]
    assert rows["and again"][2:] == ["2", f"holds: {difference}", "not run yet |"]
    assert rows["bad helps"][2:] == rows["late helps good"][2:] == ["0", "not run yet", " |"]
    assert rows["nothing helps"][2] == "1"
    assert rows["nothing helps"][3].startswith("one seed: +0.00 [")
    assert rows["toy"][1:] == [
        "1, 2",
        "5 of 8",
        "1 of 4",
        "1.5, 1.5",
        "a processor",
        "0123456789-dirty |",
    ]
    assert rows["more"][2] == "0 of 2"
    assert "![toy](evidence/toy.png) *The picture `more` needs runs" in "\n".join(lines)
    assert f"mean {mean}, not run yet" in lines and difference in lines
    falling = "from 3.00 at rank 1 over 2.00 at rank 2 to 2.50 at rank 3, rank correlation -0.50"
    assert lines[-1] == f"{falling} (mean of 2 seeds)"


def test_check_names_what_is_stale(plan, runs):
    path = quick(runs / "toy", plan)
    assert evidence.render(Document(plan), check=True) == (
        "toy.png, temperatures-good.png, large_vocabulary.png, EVIDENCE.md not up to date: "
        "run python research/evidence.py render"
    )
    evidence.render(Document(plan))
    assert Image.open(plan.evidence / "toy.png").width > 400
    path.write_text(path.read_text().replace('"difference": 10.0', '"difference": 9.0'))
    assert evidence.render(Document(plan), check=True).startswith("toy.png, EVIDENCE.md not")
    for wrong in ("{{gone}}", "{{table two}}", "{{value}}"):
        (plan.evidence / "EVIDENCE.in.md").write_text(wrong)
        with pytest.raises(ValueError, match="cannot be filled"):
            Document(plan).text()


def test_outcomes():
    def found(low, high, runs=2):
        return Comparison(METRIC, ([1.0] * runs, [1.0] * runs), (low + high) / 2, 1, (low, high))

    assert outcome(found(1, 2)) == "holds: **+1.50 [+1.00, +2.00]**"
    assert outcome(found(-2, -1)) == "**contradicted**: **-1.50 [-2.00, -1.00]**"
    assert outcome(found(-1, 2)) == "unclear: +0.50 [-1.00, +2.00]"
    assert outcome(found(1, 2, runs=1)) == "one seed: +1.50 [+1.00, +2.00]"


def test_the_committed_document_is_up_to_date():
    assert evidence.main(["render", "--check"]) is None
    columns = None
    for line in (ROOT / "docs" / "EVIDENCE.md").read_text().splitlines():
        columns = (columns or line.count("|")) if line.startswith("|") else None
        assert columns in (None, line.count("|")), line


FILES = sorted(EXPERIMENTS.glob("*.yaml"))
# They make weights that others start from or show how far seeds lie apart, and compare nothing.
PREPARATIONS = ("pretraining", "pretraining_1000", "scenes_150_random")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_experiments_can_be_run(path):
    experiment = Experiment.read(path)
    check_overrides(experiment)
    for job in (*experiment.jobs(Path()), *experiment.evaluations(Path())):
        if job.seed == experiment.seeds[0]:
            cfg = load_config(str(job.config), [*job.overrides, "MODEL.DEVICE", "meta"])
            with torch.device("meta"):
                assert build_model(cfg).training
    assert experiment.name == path.stem
    assert experiment.name in PREPARATIONS or len(experiment.seeds) >= 3
    assert f"research/experiments/{path.name}" in path.read_text()


def test_no_run_is_in_two_experiments():
    seen = {}
    for path in FILES:
        experiment = Experiment.read(path)
        for job in (*experiment.jobs(Path()), *experiment.evaluations(Path())):
            overrides = dict(zip(job.overrides[::2], job.overrides[1::2], strict=True))
            key = (job.config, job.seed, bool(job.weights), tuple(sorted(overrides.items())))
            assert key not in seen, (job.folder, seen[key])
            seen[key] = job.folder


def shown(table):
    """{setting: {column: the paper's difference}} of tables.yaml."""
    table = Plan.read().tables[table]
    rows = {row[0]: row[2:] for row in table["rows"] if len(row) > 2}
    return {s: dict(zip(table["paper"], d, strict=False)) for s, d in rows.items()}


@pytest.mark.shared
def test_the_paper_s_differences_are_the_paper_s():
    reference = json.loads((ROOT.parent / "shared/paper/paper_tables.json").read_text())
    rows, text = reference["paper_tables"], reference["paper_text"]
    first = {(r["method"], r["dataset"]): r["value"] for r in rows if r["table"] == 1}
    methods = {"mt": "+ MT", "mt-ls": "+ MT + LS", "mt-ls-ra": "+ MT + LS + RA"}
    # The paper's Mask2Former models have the official form, its other segmentors κ < K.
    methods["official"] = methods["mt-ls-ra"]
    for setting, found in (*shown("rows").items(), *list(shown("large").items())[:2]):
        method = methods[setting.partition("/")[2]]
        found = {d: value for d, value in found.items() if value is not None}
        assert found
        expected = {d: first[method, d] - first["Baseline", d] for d in found}
        assert found == pytest.approx(expected, abs=1e-6)
    for table in ("oracle", "large"):
        (found,) = (d for s, d in shown(table).items() if s.endswith("/oracle"))
        points = {
            k.removesuffix(" (M2F)"): v for k, v in text["oracle_gain_train_eval_points"].items()
        }
        assert found == {d: points[d] for d in found}
    for table, number, key, settings in (
        ("kappa", 4, "kappa", {25: "kappa-25", 50: "mt-ls-ra", 100: "kappa-100", 171: "sort"}),
        (
            "weight",
            5,
            "loss_weight",
            {1: "weight-1", 5: "weight-5", 10: "mt-ls-ra", 20: "weight-20"},
        ),
        (
            "head",
            6,
            "head",
            {"GAP+Linear": "pooled", "2x TranDec": "decoder", "1x TranEnc": "mt-ls-ra"},
        ),
    ):
        of_table = [r for r in rows if r["table"] == number and r["dataset"] == "COCO-Stuff"]
        expected = {settings[r[key]]: r["delta"] for r in of_table if r[key] in settings}
        found = {
            s.split("/")[1]: d["COCO-Stuff"] for s, d in shown(table).items() if s.count("/") < 2
        }
        assert found == expected
    at_evaluation = text["eval_time_kappa_on_COCO_Stuff_trained_with_50"]["25"]
    assert shown("kappa")["scenes_150/mt-ls-ra/kappa-25"]["COCO-Stuff"] == pytest.approx(
        at_evaluation - first["Baseline", "COCO-Stuff"]
    )


@pytest.mark.shared
def test_the_zoo_s_differences_are_the_zoo_s():
    reference = json.loads((ROOT.parent / "shared/paper/paper_tables.json").read_text())
    zoo = {
        (r["section"].partition(" / ")[2], r["Backbone"], r["Name"].partition(" + ")[2]): r["mIoU"]
        for r in reference["official_zoo_mask2former"]
        if "mIoU" in r
    }
    for table, column, model in (
        ("semantic", "Swin-B on ADE20K, model zoo", ("Semantic Segmentation", "Swin-B (IN21k)")),
        ("video", "R101 on VSPW, model zoo", ("VSPW", "R101")),
    ):
        ours = [d[column] for d in shown(table).values()]
        scores = [float(zoo[(*model, name)]) for name in ("", "RankSeg", "GT")]
        assert ours == pytest.approx([score - scores[0] for score in scores[1:]])
