"""The commands of the official repositories: --config-file PATH --eval-only MODEL.WEIGHTS FILE."""

import json
from pathlib import Path

import pytest
from detectron2.modeling import build_model
from official_made import write_official
from test_configs import OFFICIAL_PATHS, SMALL, changed
from weights_made import arrays, save_pkl, save_pth

from rankseg_m2f.engine import main as engine

# As official users name it: a folder of theirs that is not there.
CHECKOUT = "Mask2Former/"
TINY = {
    **SMALL,
    "INPUT.MIN_SIZE_TEST": 32,
    "INPUT.MAX_SIZE_TEST": 64,
    "DATALOADER.NUM_WORKERS": 0,
    "TEST.DETECTIONS_PER_IMAGE": 5,
}


def kinds() -> dict[tuple[str, str], str]:
    """(dataset and task, without or with RankSeg or oracle) -> the first official path of it."""
    found = {}
    for official, ours in sorted(OFFICIAL_PATHS.items()):
        form = next((f for f in ("rankseg", "oracle") if ours.endswith(f"-{f}.yaml")), "plain")
        found.setdefault((str(Path(ours).parent), form), official)
    return found


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """A folder of all official datasets, made tiny."""
    root = tmp_path_factory.mktemp("datasets")
    write_official(root)
    return root


@pytest.mark.parametrize("kind", kinds(), ids="-".join)
def test_official_path_and_weights_are_evaluated(kind, datasets, tmp_path, monkeypatch):
    official = kinds()[kind]
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    state = build_model(changed(OFFICIAL_PATHS[official], TINY)).state_dict()
    # Mask2Former's files are pickled arrays, RankSeg's are of torch.save.
    weights = tmp_path / ("model_final.pkl" if kind[1] == "plain" else "model_final.pth")
    if kind[1] == "plain":
        save_pkl(weights, {"model": arrays(state), "__author__": "third_party"})
    else:
        save_pth(weights, {"model": state, "iteration": 1})
    words = [str(part) for pair in TINY.items() for part in pair]
    words = ["--config-file", CHECKOUT + official, "--eval-only", *words]
    words += ["MODEL.WEIGHTS", str(weights), "OUTPUT_DIR", str(tmp_path)]
    engine.main(engine.argument_parser().parse_args(words))
    log = (tmp_path / "log.txt").read_text()
    assert f"{len(state)} of {len(state)} tensors loaded from {weights}" in log
    (results,) = (
        json.loads(p.read_text()) for p in (tmp_path / "inference").glob("*/results.json")
    )
    wanted = {"semantic": "sem_seg", "panoptic": "panoptic_seg", "instance": "segm"}
    assert wanted[Path(kind[0]).name] in results
    assert ("labels" in results) == (kind[1] == "rankseg")
