"""Published checkpoints: what is in them, their names, and what a load says of them."""

import hashlib
import json
import logging
import subprocess
import sys

import publish_checkpoint
import pytest
import torch
from detectron2.data import MetadataCatalog
from golden import load_case

from rankseg_m2f import revision as revision_module
from rankseg_m2f.config import get_cfg
from rankseg_m2f.errors import UserError
from rankseg_m2f.weights.checkpoint import Checkpointer
from rankseg_m2f.weights.file import read_weights
from rankseg_m2f.weights.metadata import describe_metadata, label_names
from rankseg_m2f.weights.publish import publish

CASE = "image_swin_baseline"
METRICS = {"sem_seg": {"mIoU": 47.2, "IoU-sky": None}}


@pytest.fixture(scope="module")
def model():
    return load_case(CASE).model()


@pytest.fixture
def cfg():
    name = "publish_150"
    MetadataCatalog.get(name).label_names = [f"label {i}" for i in range(150)]
    cfg = load_case(CASE).cfg.clone()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), (name,)
    cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS = "runs/secret", "runs/secret/init.pkl"
    return cfg


@pytest.fixture
def trained(tmp_path, model):
    """A checkpoint of training, with the optimizer's state."""
    optimizer = torch.optim.AdamW(model.parameters())
    saver = Checkpointer(model, tmp_path / "run", optimizer=optimizer)
    saver.save("model_final", iteration=99)
    return tmp_path / "run" / "model_final.pth"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_and_metadata_alone_are_written(tmp_path, cfg, model, trained, suffix):
    path = publish(cfg, str(trained), tmp_path / "zoo" / f"ade{suffix}", METRICS)
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    assert path == tmp_path / "zoo" / f"ade-{digest[:8]}{suffix}"
    assert list(path.parent.iterdir()) == [path]
    content = read_weights(path)
    assert set(content) == {"model", "metadata"}
    state = model.state_dict()
    assert content["model"].keys() == state.keys()
    assert all(torch.equal(content["model"][name], value) for name, value in state.items())
    about = content["metadata"]
    assert about["metrics"] == METRICS and about["iteration"] == 99
    assert about["labels"] == label_names(cfg) and len(about["labels"]) == 150
    assert len((about["revision"] or 40 * "0").removesuffix("-dirty")) == 40
    assert "secret" not in about["config"]
    (tmp_path / "config.yaml").write_text(about["config"])
    again = get_cfg()
    again.merge_from_file(str(tmp_path / "config.yaml"))
    assert again.MODEL.SWIN == cfg.MODEL.SWIN
    if suffix == ".pth":
        assert torch.load(path, weights_only=True).keys() == content.keys()


def test_a_published_file_loads_bitwise_and_says_what_it_is(tmp_path, cfg, model, trained, caplog):
    path = publish(cfg, str(trained), tmp_path / "ade.safetensors", METRICS)
    blank = load_case(CASE).model()
    with torch.no_grad():
        for parameter in blank.parameters():
            parameter.zero_()
    with caplog.at_level(logging.INFO):
        checkpointer = Checkpointer(blank, for_evaluation=True, labels=label_names(cfg))
        checkpointer.load(str(path))
    assert checkpointer.report.complete
    state = blank.state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert "The file says: version " in caplog.text and "'mIoU': 47.2" in caplog.text
    assert "iteration 99" in caplog.text and "150 labels" in caplog.text


def test_other_labels_are_told(tmp_path, cfg, model, trained, caplog):
    path = publish(cfg, str(trained), tmp_path / "ade.pth")
    labels = label_names(cfg)
    labels[7] = "zebra"
    with caplog.at_level(logging.WARNING):
        Checkpointer(load_case(CASE).model(), for_evaluation=True, labels=labels).load(str(path))
    assert (
        "The file's labels are not the dataset's: label 7 is 'label 7' in one and 'zebra' in the "
        "other." in caplog.text
    )


def test_nothing_is_overwritten_and_nothing_half_written_stays(tmp_path, cfg, trained, monkeypatch):
    target = tmp_path / "zoo" / "ade.pth"
    path = publish(cfg, str(trained), target)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="never replaced"):
        publish(cfg, str(trained), target)
    with pytest.raises(ValueError, match=r"ade\.bin must end in \.pth or \.safetensors"):
        publish(cfg, str(trained), target.with_suffix(".bin"))

    def damaged(*args):
        return {"model": {}}

    monkeypatch.setattr("rankseg_m2f.weights.publish.read_weights", damaged)
    with pytest.raises(UserError, match="does not hold what was written"):
        publish(cfg, str(trained), target.with_name("other.pth"))
    assert list(path.parent.iterdir()) == [path] and path.read_bytes() == before


def test_weights_must_fill_the_model(tmp_path, cfg, model):
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("backbone.layers.3")}
    torch.save(state, tmp_path / "half.pth")
    with pytest.raises(ValueError, match=r"half\.pth does not fit the model \(only .* of backbone"):
        publish(cfg, str(tmp_path / "half.pth"), tmp_path / "zoo" / "ade.pth")
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_diverged_training_are_not_published(tmp_path, cfg, model, value):
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    name = next(reversed(state))
    state[name].view(-1)[0] = value
    torch.save(state, tmp_path / "diverged.pth")
    with pytest.raises(ValueError, match=rf"diverged\.pth: 1 of {len(state)} .* such as {name}$"):
        publish(cfg, str(tmp_path / "diverged.pth"), tmp_path / "zoo" / "ade.pth")
    assert not (tmp_path / "zoo").exists()


def test_the_tool_takes_the_config_beside_the_checkpoint(
    tmp_path, cfg, trained, monkeypatch, capsys
):
    (trained.parent / "config.yaml").write_text(cfg.dump())
    (tmp_path / "results.json").write_text(json.dumps(METRICS))
    words = ["publish", str(trained)]
    words += [str(tmp_path / "ade.pth"), "--metrics", str(tmp_path / "results.json")]
    monkeypatch.setattr(sys, "argv", [*words, "MODEL.RANKSEG.TOPK", "3"])
    publish_checkpoint.main()
    (written,) = tmp_path.glob("ade-*.pth")
    assert capsys.readouterr().out == f"{written}\n"
    assert read_weights(written)["metadata"]["metrics"] == METRICS
    with pytest.raises(SystemExit, match=r"publish_checkpoint: .*never replaced"):
        publish_checkpoint.main()
    for content, message in (
        ("{", r"results\.json is not JSON: Expecting property"),
        ("[1]", r"results\.json holds no metrics"),
    ):
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(SystemExit, match=f"publish_checkpoint: .*{message}"):
            publish_checkpoint.main()
    (tmp_path / "results.json").write_text("{}")
    (trained.parent / "config.yaml").unlink()
    with pytest.raises(SystemExit, match=r"there is no .*config\.yaml: .* --config-file"):
        publish_checkpoint.main()
    trained.unlink()
    with pytest.raises(SystemExit, match=r"no checkpoint at .*model_final\.pth$"):
        publish_checkpoint.main()


@pytest.mark.parametrize("metadata", [None, "text", 3, {}, {"labels": "abc"}, {"other": 1}])
def test_metadata_of_other_programs_says_nothing(metadata):
    assert describe_metadata(metadata, ["a"]) == ("", None)


def test_a_revision_is_none_without_git(monkeypatch, tmp_path):
    monkeypatch.setattr(revision_module, "_ROOT", tmp_path)
    assert revision_module.revision() is None
    (tmp_path / ".git").mkdir()
    assert revision_module.revision() is None


def test_a_changed_checkout_is_called_dirty(monkeypatch, tmp_path):
    monkeypatch.setattr(revision_module, "_ROOT", tmp_path)
    (tmp_path / "a").write_text("a")
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for words in (("init", "-q"), ("add", "a"), (*who, "commit", "-q", "-m", "a")):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    clean = revision_module.revision()
    assert len(clean) == 40
    (tmp_path / "a").write_text("b")
    assert revision_module.revision() == f"{clean}-dirty"
