"""Label statistics by hand, of images and videos, and the figures of temperatures."""

import json

import label_statistics as tool
import numpy as np
import plot_temperatures as temperatures
import pytest
import torch
import yaml
from datasets_made import NAMES, quarters, write_dataset
from figures import new_figure
from PIL import Image

from rankseg_m2f.evaluation.ground_truth import VideoTruth
from rankseg_m2f.rankseg.temperature import FORMS, RankTemperature


@pytest.fixture
def definitions(tmp_path):
    """A file that describes a dataset of three images, and the dataset's name."""
    maps = [[0, 0, 1, 2], [0, 1, 1, 255], [0, 0, 0, 0]]
    arguments = write_dataset(tmp_path / "data", [quarters(4, 4, labels) for labels in maps])
    name = f"statistics_{tmp_path.name}"
    path = tmp_path / "definitions.yaml"
    path.write_text(
        yaml.safe_dump({name: {"kind": "semantic_folder", **arguments["semantic_folder"]}})
    )
    return name, path


def test_statistics_of_pictures_by_hand(definitions, tmp_path, capsys):
    name, path = definitions
    words = [name, "--definitions", str(path), "--output", str(tmp_path / "out"), "--most", "2"]
    assert tool.main(words) is None
    assert "3 images show 2.0 of 4 labels on average" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / f"{name}.json").read_text())
    assert (found["unit"], found["count"], found["labels"], found["labels_seen"]) == (
        "image",
        3,
        4,
        3,
    )
    per_image = found["labels_per_unit"]
    assert per_image["histogram"] == [0, 1, 1, 1]
    assert per_image["cumulative_percent"] == pytest.approx([0, 100 / 3, 200 / 3, 100])
    assert (per_image["mean"], per_image["median"], per_image["most"]) == (2, 2, 3)
    rows = [(r["label"], r["id"], r["images"], r["pixels"]) for r in found["frequency"]]
    assert rows == [
        (NAMES[0], 0, 3, 8 + 4 + 16),
        (NAMES[1], 1, 2, 4 + 8),
        (NAMES[2], 2, 1, 4),
        (NAMES[3], 3, 0, 0),
    ]
    assert found["together"] == {"labels": NAMES[:2], "images": [[3, 2], [2, 2]]}
    assert Image.open(tmp_path / "out" / f"{name}.png").width > 1000


def test_statistics_of_videos_by_hand():
    """A clip shows what any of its frames shows."""
    frames = {"x": [[0], [0, 2]], "y": [[], []], "z": [[2], [2]]}
    records = [
        {
            "video_id": video,
            "file_names": [f"{video}{i}.jpg" for i in range(2)],
            "annotations": [[{"category_id": c} for c in shown] for shown in labels],
        }
        for video, labels in frames.items()
    ]
    truth = VideoTruth("toy", records, {"thing_classes": ["a", "b", "c"]})
    found = tool.LabelStatistics.from_truth(truth)
    assert found.unit == "clip"
    assert found.histogram.tolist() == [1, 1, 1]
    assert found.images.tolist() == [1, 0, 2] and found.pixels.tolist() == [0, 0, 0]
    assert found.most_frequent(5).tolist() == [2, 0]
    assert found.together(np.array([2, 0])).tolist() == [[2, 1], [1, 1]]


def test_nothing_labelled_can_be_drawn(tmp_path):
    nothing = tool.LabelStatistics("toy", "image", ["a"], np.zeros((2, 1), bool), np.zeros(1, int))
    tool.draw(nothing, tmp_path / "a.png")
    assert nothing.as_dict(3)["labels_per_unit"]["cumulative_percent"] == [100]


def test_unknown_datasets_are_named():
    with pytest.raises(SystemExit, match=r"^label_statistics: dataset 'gone' is not registered"):
        tool.main(["gone"])


@pytest.fixture
def checkpoints(tmp_path):
    """A checkpoint of each form, 1/τ = 1, 2, 3, 4 where there are several."""
    paths = {}
    for form in FORMS:
        module = RankTemperature(4, form)
        with torch.no_grad():
            module.weight.copy_(torch.arange(1.0, 1 + len(module.weight)))
        state = {f"ml_norm.{key}": value for key, value in module.state_dict().items()}
        paths[form] = tmp_path / form / "model_final.pth"
        paths[form].parent.mkdir()
        torch.save({"model": state, "iteration": 3}, paths[form])
    return paths


def test_temperatures_of_all_forms_are_read_and_drawn(checkpoints, tmp_path, capsys):
    for form, path in checkpoints.items():
        found = temperatures.read(path)
        assert found.form == form
        assert found.weight.tolist() == ([1] if form == "shared" else [1, 2, 3, 4])
        few = temperatures.read(path, kappa=2).weight.tolist()
        assert few == ([1] if form == "shared" else [1, 2, 4])
    words = [*map(str, checkpoints.values()), "--png", str(tmp_path / "t.png")]
    temperatures.main(words)
    shown = capsys.readouterr().out
    # No-object is no rank: a curve that falls to its last rank does not end with no-object's 1/τ.
    assert "rank: rank, 1/τ of rank 1 1.000, of rank 3 (last) 3.000, of no-object 4.000" in shown
    assert "shared: shared, 1/τ of all ranks and no-object 1.000" in shown
    assert Image.open(tmp_path / "t.png").width > 500


def test_what_has_no_temperatures_is_named(checkpoints, tmp_path):
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "plain.pth")
    twice = [f"a={path}" for path in checkpoints.values()]
    for words, message in (
        ([str(tmp_path / "plain.pth")], r"plain\.pth has no ml_norm\.weight"),
        (["gone.pth"], r"gone\.pth"),
        (twice, "two files have one name"),
    ):
        with pytest.raises(SystemExit, match=f"^plot_temperatures: .*{message}"):
            temperatures.main(words)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_temperatures_of_wrapped_models_are_read(checkpoints, tmp_path, prefix):
    state = torch.load(checkpoints["layernorm"], weights_only=True)["model"]
    wrapped = tmp_path / "wrapped.pth"
    torch.save({"model": {f"{prefix}{name}": value for name, value in state.items()}}, wrapped)
    found = temperatures.read(wrapped)
    assert found.form == "layernorm" and found.weight.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("longest", [1, 2, 8, 9, 50, 150])
def test_ticks_name_the_first_and_the_last_rank(longest):
    ticks = temperatures.rank_ticks(longest)
    assert ticks[0] == 1 and ticks[-1] == longest
    assert len(ticks) == min(longest, 8) and ticks == sorted(set(ticks))


def test_figures_have_axes_in_one_list():
    _, axes = new_figure(2, 3, (4, 4))
    assert len(axes) == 6
