"""The bootstrap: weights are repetitions, a planted difference is found, none is made up."""

import json
import re

import compare_runs as tool
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from rankseg_m2f.evaluation.bootstrap import (
    SavedStatistics,
    _freedom,
    _resampled_difference,
    _tails,
    compare,
)
from rankseg_m2f.evaluation.error_analysis import ErrorEvaluator
from rankseg_m2f.evaluation.ground_truth import GroundTruth, VideoTruth
from rankseg_m2f.evaluation.matches import MaskApFromMatches
from rankseg_m2f.evaluation.multi_label import MultiLabelEvaluator
from rankseg_m2f.evaluation.panoptic import PanopticEvaluator
from rankseg_m2f.evaluation.semantic import SemanticEvaluator
from rankseg_m2f.evaluation.vspw import VideoSemanticEvaluator

LABELS = ["a", "b", "c", "d", "e"]
METADATA = {"label_names": LABELS, "thing_dataset_id_to_contiguous_id": {1: 0, 2: 1}}


def truth_of(images, name="toy", root="/data/toy"):
    records = [{"file_name": f"{root}/{i:04d}", "sem_seg_file_name": ""} for i in range(images)]
    return GroundTruth(name, records, {**METADATA, "image_root": root})


def rows(rng, fields, most=20):
    """Statistics of one image with some of the labels."""
    label = np.flatnonzero(rng.random(len(LABELS)) < 0.5)
    found = {f: rng.integers(0, most, len(label)) for f in fields}
    for field in {"truth", "predicted"} & found.keys():
        found[field] += found["intersection"]
    return {"label": label, **found}


def labels_rows(rng):
    shown = rows(rng, ["pixels"])
    # Few different scores: ties.
    scores = (rng.integers(0, 4, len(LABELS)) / 4).astype(np.float32)
    return {
        "scores": scores,
        "ranking": rng.permutation(len(LABELS))[: rng.integers(1, 4)],
        **shown,
    }


@pytest.mark.parametrize(
    "judge", [SemanticEvaluator, PanopticEvaluator, ErrorEvaluator, MultiLabelEvaluator]
)
def test_to_count_twice_is_to_be_there_twice(judge):
    rng = np.random.default_rng(0)
    evaluator = judge("toy", truth=truth_of(12))
    images = {
        key: labels_rows(rng) if judge is MultiLabelEvaluator else rows(rng, judge.fields)
        for key in evaluator.truth.file_names
    }
    counts = rng.multinomial(12, np.full(12, 1 / 12), size=5)
    counts[0] = 1
    found = evaluator.resampled(evaluator.collect(images), counts)
    for i, count in enumerate(counts.tolist()):
        repeated = {
            f"{k}-{j}": images[k] for k, n in zip(images, count, strict=True) for j in range(n)
        }
        expected = evaluator.summarise(evaluator.collect(repeated))
        assert found.keys() <= expected.keys()
        for key, values in found.items():
            np.testing.assert_allclose(values[i], expected[key], rtol=1e-12, err_msg=key)


def test_ap_of_a_resample_is_that_of_images_that_are_there_so_often():
    rng = np.random.default_rng(4)
    images, predictions = 8, 60
    arrays = {
        "file_names": np.arange(images).astype(str),
        "label_names": np.array(["a", "b", "never"]),
        "image": np.sort(rng.integers(0, images, predictions)),
        "category": rng.integers(0, 2, predictions),
        "score": rng.random(predictions),
        "hit": rng.random((predictions, 10)) < 0.5,
        "true_image": np.repeat(np.arange(images), 2),
        "true_category": np.tile([0, 1], images),
        "objects": rng.integers(5, 9, 2 * images),
    }
    arrays["miss"] = ~arrays["hit"] & (rng.random((predictions, 10)) < 0.8)
    counts = rng.multinomial(images, np.full(images, 1 / images), size=4)
    found = MaskApFromMatches("toy").resampled(arrays, counts)
    for i, count in enumerate(counts):
        places = [np.flatnonzero(arrays["image"] == j) for j in range(images)]
        rows = np.concatenate([np.repeat(p, n) for p, n in zip(places, count, strict=True)])
        true = np.repeat(np.arange(2 * images), np.repeat(count, 2))
        repeated = {
            **{k: arrays[k][rows] for k in ("image", "category", "score", "hit", "miss")},
            **{k: arrays[k][true] for k in ("true_image", "true_category", "objects")},
        }
        expected = MaskApFromMatches("toy").summarise({**arrays, **repeated})
        assert expected["AP"] > 5
        assert {k: v[i] for k, v in found.items()} == pytest.approx(expected, rel=1e-12)


def test_clips_of_a_video_are_drawn_together(tmp_path):
    """Three videos; the second has two clips. Its consistency comes along."""
    clips = [("x", 0), ("y", 0), ("y", 1), ("z", 0)]
    records = [
        {"video_id": v, "clip": c, "file_names": [f"{v}{c}.jpg"], "sem_seg_file_names": [""]}
        for v, c in clips
    ]
    evaluator = VideoSemanticEvaluator("toy", tmp_path, VideoTruth("toy", records, METADATA))
    rng = np.random.default_rng(0)
    evaluator._images = {
        evaluator.truth.key(r): rows(rng, SemanticEvaluator.fields) for r in records
    }
    evaluator._steadiness = {
        v: (np.array([0.5 * i, 1.0]), np.array([i + 1, 2])) for i, v in enumerate("xyz")
    }
    expected = evaluator.evaluate()["sem_seg"]
    saved = SavedStatistics.read(tmp_path / "per_image_semantic_toy.npz")
    assert saved.metrics == {k: expected[k] for k in saved.metrics}
    assert saved.metrics.keys() >= {"mIoU", "VC8", "VC16"}
    found = saved.resampled(np.array([[1, 1, 1], [0, 2, 1]]))
    assert all(found[k][0] == pytest.approx(expected[k]) for k in found)
    # VC8 of y twice and z once: 2 x 0.5 + 1.0 over 2 x 2 + 3 windows.
    assert found["VC8"][1] == pytest.approx(100 * 2 / 7)
    of = saved.arrays
    weight = np.array([0, 2, 2, 1])[of["image"]]
    pixels = {k: (of[k] * weight).sum() for k in ("intersection", "truth")}
    assert found["pACC"][1] == pytest.approx(100 * pixels["intersection"] / pixels["truth"])


PIXELS = 100


def saved_run(hits):
    """A run in which of each image's one label so many of 100 pixels are found."""
    images = len(hits)
    truth = truth_of(images)
    arrays = {
        "image": np.arange(images),
        "label": np.arange(images) % 2,
        "intersection": hits,
        "truth": np.full(images, PIXELS),
        "predicted": hits,
        "units": np.array(truth.file_names),
        "file_names": np.array(truth.file_names),
        "label_names": np.array(LABELS),
    }
    return SavedStatistics("a file", SemanticEvaluator("toy", truth=truth), arrays)


def simulated(rng, images, runs, shift=0.0, noise=0.0):
    """Two sides whose runs share how hard an image is; `noise` is that of seeds."""
    hard = rng.uniform(0.3, 0.8, images)
    return [
        [
            saved_run(rng.binomial(PIXELS, np.clip(hard + move + rng.normal(0, noise), 0, 1)))
            for _ in range(runs)
        ]
        for move in (shift, 0.0)
    ]


def test_a_planted_difference_is_found_and_none_is_made_up():
    rng = np.random.default_rng(1)
    (better,) = [c for c in compare(*simulated(rng, 200, 1, 0.05)) if c.metric == "sem_seg/pACC"]
    low, high = better.interval
    assert better.distinguishable and low < 5 < high
    assert better.difference == pytest.approx(better.values[0][0] - better.values[1][0])
    assert better.verdict().startswith(f"A is better by {better.difference:.2f} ± ")
    alike = compare(*simulated(rng, 200, 1))
    assert {c.metric for c in alike} == {f"sem_seg/{m}" for m in ("mIoU", "fwIoU", "mACC", "pACC")}
    for comparison in alike:
        assert comparison.verdict().startswith("difference not distinguishable from noise")
    same = simulated(rng, 50, 1)[0]
    assert all(c.interval == (0, 0) and not c.distinguishable for c in compare(same, same))


@pytest.mark.parametrize("runs, noise", [(1, 0.0), (4, 0.02)], ids=["images", "seeds"])
def test_intervals_hold_the_truth_as_often_as_they_say(runs, noise):
    rng = np.random.default_rng(2)
    trials, held = 120 if runs == 1 else 60, 0
    for _ in range(trials):
        sides = simulated(rng, 40, runs, shift=0.03, noise=noise)
        low, high = next(
            c.interval
            for c in compare(*sides, resamples=200 if runs == 1 else 100)
            if c.metric == "sem_seg/pACC"
        )
        held += low <= 3 <= high
    # Four runs a side say little about the spread of seeds: a t interval would be wider.
    assert (0.90 if runs == 1 else 0.85) <= held / trials <= 0.995


def test_several_runs_widen_intervals_by_the_spread_of_seeds():
    rng = np.random.default_rng(3)
    quiet, loud = (
        next(iter(compare(*simulated(rng, 100, 4, noise=noise)))).error for noise in (0, 0.05)
    )
    # Means of four seeds, on two sides.
    assert 1.5 < loud < 2 * 5 * np.sqrt(2 / 4) and quiet < 0.9


def test_less_of_an_error_is_better():
    comparison = next(iter(compare(*simulated(np.random.default_rng(1), 200, 1, 0.1))))
    comparison.metric = "errors/missed"
    assert comparison.verdict(("new", "old")).startswith("old is better by ")
    low, high = sorted(comparison.interval)
    comparison.difference, comparison.interval = -comparison.difference, (-high, -low)
    assert comparison.verdict(("new", "old")).endswith(f"interval [{low:.2f}, {high:.2f}]")
    assert comparison.verdict(("new", "old")).startswith("new is better by ")


def write_run(folder, shift, images=60, datasets=("toy",), root="/data/toy"):
    """What an evaluation leaves: OUTPUT_DIR/inference/DATASET/per_image_*.npz."""
    for name in datasets:
        rng = np.random.default_rng(5)
        evaluator = SemanticEvaluator(
            name, folder / "inference" / name, truth_of(images, name, root)
        )
        for number, key in enumerate(evaluator.truth.file_names):
            hits = int(rng.integers(20, 60)) + shift
            evaluator._images[key] = {
                "label": np.array([number % 3]),
                "intersection": np.array([hits]),
                "truth": np.array([PIXELS]),
                "predicted": np.array([hits]),
            }
        evaluator.evaluate()
    return str(folder)


def test_few_runs_are_as_uncertain_as_student_says():
    for freedom in (*range(1, 40), 1.2, 1.5, 1.8, 2.5, 3.7, 9.5, 10.4):
        expected = stats.t.ppf(0.975, freedom) / stats.norm.ppf(0.975)
        assert _tails(freedom) == pytest.approx(expected, rel=0.03)
    assert _tails(np.inf) == 1


def test_freedom_is_welch_s():
    first, second = np.random.default_rng(0).normal(size=(2, 4)) * [[1], [0.2]]
    welch = stats.ttest_ind(first, second, equal_var=False)
    assert _freedom([first, second]) == pytest.approx(welch.df)
    assert _freedom([first, second[:1]]) == _freedom([first]) == pytest.approx(3)
    assert _freedom([first[:1], second[:1]]) == _freedom([np.ones(3), np.ones(3)]) == np.inf


@pytest.mark.parametrize("spread", [1.0, 0.3, 0.1])
def test_chance_decides_one_in_twenty(spread):
    """Two sides of three runs that differ by their seeds alone, by more on one side."""
    rng = np.random.default_rng(0)
    found, trials = 0, 1500
    for _ in range(trials):
        values = [rng.normal(size=3), spread * rng.normal(size=3)]
        drawn = [np.broadcast_to(v[:, None], (3, 300)) for v in values]
        picks = [rng.integers(3, size=(300, 3)) for _ in values]
        low, high = np.percentile(_resampled_difference(values, drawn, picks), (2.5, 97.5))
        found += low > 0 or high < 0
    assert found / trials < 0.08


def test_two_ways_to_judge_the_same_models_are_told_apart():
    """What the ways differ by shows in each model, though models differ by more than that."""
    rng = np.random.default_rng(6)
    levels = 0.5 + 0.1 * np.arange(3)
    better, worse = (
        [saved_run(rng.binomial(PIXELS, np.full(200, level + shift))) for level in levels]
        for shift in (0.03, 0)
    )

    def accuracy(**options):
        return next(c for c in compare(better, worse, **options) if c.metric == "sem_seg/pACC")

    assert not accuracy().distinguishable
    together = accuracy(same_models=True)
    assert together.distinguishable and together.difference == accuracy().difference
    low, high = together.interval
    assert low < 3 < high
    with pytest.raises(ValueError, match="3 and 2 runs cannot be of the same models"):
        compare(better, worse[:2], same_models=True)


def test_the_tool_writes_verdict_numbers_and_figure(tmp_path, capsys):
    a, b = (write_run(tmp_path / name, shift) for name, shift in (("a", 10), ("b", 0)))
    words = ["--a", a, "--b", b, "--names", "ours", "theirs", "--resamples", "200"]
    outputs = {"--json": tmp_path / "c.json", "--png": tmp_path / "c.png"}
    words += [str(word) for pair in outputs.items() for word in pair]
    assert tool.main(words) is None
    shown = capsys.readouterr().out
    assert "ours is better by 10.00 ± 0.00" in shown
    assert shown.splitlines()[-1] == (
        "one run on a side: intervals are over images, and say nothing about other seeds"
    )
    content = json.loads((tmp_path / "c.json").read_text())
    accuracy = next(m for m in content["metrics"] if m["metric"] == "sem_seg/pACC")
    assert accuracy["difference"] == pytest.approx(10) and accuracy["distinguishable"]
    assert Image.open(tmp_path / "c.png").width > 500
    assert tool.main(["--a", a, b, "--b", b, a, "--resamples", "50"]) is None
    shown = capsys.readouterr().out
    assert "± 7.07" in shown and "over 2 and 2 runs" in shown


@pytest.mark.parametrize("several", [0, 1])
def test_one_run_against_two_says_whose_seed_is_left_out(tmp_path, capsys, several):
    """The seeds of the side with several runs are drawn, so they are in the intervals."""
    a, b = (write_run(tmp_path / name, shift) for name, shift in (("a", 10), ("b", 0)))
    sides = [[a], [a]]
    sides[several].append(b)
    out = tmp_path / "c.json"
    words = ["--names", "ours", "theirs", "--resamples", "50", "--json", str(out)]
    assert tool.main(["--a", *sides[0], "--b", *sides[1], *words]) is None
    several, one = ("ours", "theirs") if several == 0 else ("theirs", "ours")
    said = (
        f"intervals are over images and {several}'s 2 runs; {one} has one, whose seed is not "
        "accounted for"
    )
    assert capsys.readouterr().out.splitlines()[-1] == json.loads(out.read_text())["scope"] == said


def test_runs_of_machines_with_the_dataset_elsewhere_pair(tmp_path, capsys):
    a = write_run(tmp_path / "a", 10)
    b = write_run(tmp_path / "b", 0, root="/elsewhere/toy")
    assert tool.main(["--a", a, "--b", b, "--resamples", "50"]) is None
    assert "is better by 10.00 ± 0.00" in capsys.readouterr().out


def test_mistakes_are_one_line(tmp_path):
    a = write_run(tmp_path / "a", 0)
    few = write_run(tmp_path / "few", 0, images=50)
    two = write_run(tmp_path / "two", 0, datasets=("toy", "other"))
    (tmp_path / "empty").mkdir()
    old = tmp_path / "old" / "per_image_semantic_toy.npz"
    old.parent.mkdir()
    np.savez(old, label=np.zeros(1))
    broken = tmp_path / "broken" / old.name
    broken.parent.mkdir()
    broken.write_bytes(b"PK\x03\x04 no zip")
    for sides, message in {
        (a, few): "not of the same images: 50 and 60, of which 50 in common; toy/0050 is in one",
        (a, str(tmp_path / "empty")): "empty has no per_image_*.npz",
        (two, two): "choose one --dataset of semantic_other, semantic_toy",
        (a, str(old.parent)): "older version",
        (a, str(broken.parent)): "is broken, evaluate again",
    }.items():
        with pytest.raises(SystemExit, match=f"^compare_runs: .*{re.escape(message)}"):
            tool.main(["--a", sides[0], "--b", sides[1]])
    for kind in ("json", "png"):  # below a file
        words = ["--a", a, "--b", a, "--resamples", "9", f"--{kind}", str(old / f"c.{kind}")]
        with pytest.raises(SystemExit, match=rf"--{kind} .*{old.name}: it is a file"):
            tool.main(words)
    with pytest.raises(SystemExit, match="2 or more"):
        tool.main(["--a", a, "--b", a, "--resamples", "1"])
    assert tool.main(["--a", two, "--b", a, "--dataset", "toy", "--resamples", "9"]) is None
