"""What programs settle before their work begins: configs, outputs, addresses, thin photos."""

import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer

import demo_video
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from PIL import Image
from programs import DEMO, SMALL, VIDEO, folder_dataset, photo

import demo
from rankseg_m2f.config import get_cfg
from rankseg_m2f.data.augmentation import crop, large_scale_jitter, resize_and_crop, resize_for_test
from rankseg_m2f.data.video_augmentation import clip_augmentation
from rankseg_m2f.engine import main as engine
from rankseg_m2f.engine.best_model import check_metric
from rankseg_m2f.engine.config_checks import check_input, check_kinds, check_model
from rankseg_m2f.engine.evaluate import evaluate, evaluation_sets
from rankseg_m2f.engine.outputs import check_file, check_folder
from rankseg_m2f.errors import UserError
from rankseg_m2f.weights.checkpoint import Checkpointer


def ended(monkeypatch, program, *words):
    """What a program ends with, called in this process."""
    monkeypatch.setattr(sys, "argv", [f"{program.__name__}.py", *map(str, words)])
    with pytest.raises(SystemExit) as raised:
        (engine.run if program is engine else program.main)()
    return raised.value.code


@pytest.mark.parametrize(
    "words", [[], ["--eval-only"], ["MODEL.META_ARCHITECTURE", "PanopticFPN"]], ids=str
)
def test_a_model_of_detectron2_is_not_trained(tmp_path, monkeypatch, words):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    said = ended(monkeypatch, engine, *words)
    assert "META_ARCHITECTURE" in said and "--config-file" in said and "MaskFormer" in said


def test_a_file_is_no_folder_for_results(tmp_path, monkeypatch):
    taken = tmp_path / "taken.txt"
    taken.write_text("x")
    for place in (taken, taken / "below", taken / "far" / "below", "s3://bucket/run"):
        with pytest.raises(UserError, match=r"^OUTPUT_DIR "):
            check_folder(place, "OUTPUT_DIR")
    check_folder(tmp_path / "new" / "newer", "OUTPUT_DIR")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr("os.access", lambda *_: False)
    for check in (check_folder, check_file):
        with pytest.raises(UserError, match="may not be written"):
            check(tmp_path / "new", "--json")
    monkeypatch.undo()
    check_file(taken, "--json")
    with pytest.raises(UserError, match="is a folder: name a file in it"):
        check_file(tmp_path, "--json")


def test_training_into_a_file_ends_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    taken = photo(tmp_path / "taken.png")
    words = ["--config-file", DEMO, *SMALL, *folder_dataset(tmp_path / "own"), "OUTPUT_DIR", taken]
    said = f"OUTPUT_DIR {taken}: it is a file, not a folder"
    assert said in ended(monkeypatch, engine, *words)
    where = ["--config-file", DEMO, "--input", taken, "--output", tmp_path / "taken.png" / "b"]
    assert "--output" in ended(monkeypatch, demo, *where)


def test_images_and_videos_are_not_mixed(tmp_path):
    cfg = get_cfg()
    names = [f"mixed_{i}_{tmp_path.name}" for i in range(3)]
    from detectron2.data import DatasetCatalog

    for name, kind in zip(names, ("sem_seg", "ytvis", "vspw"), strict=True):
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).evaluator_type = kind
    cfg.DATASETS.TRAIN = names[1:]
    check_kinds(cfg)
    cfg.DATASETS.TRAIN = names
    with pytest.raises(UserError, match=rf"mixes images \('{names[0]}'\) and videos \('{names[1]}"):
        check_kinds(cfg)


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("MODEL.DEVICE", "gpu", "must be cpu, cuda"),
        ("SOLVER.MAX_ITER", 0, "must be 1 or more"),
        ("MODEL.BACKBONE.NAME", "resnet", "must be one of .*D2Swin"),
        ("MODEL.SEM_SEG_HEAD.NAME", "x", "must be one of .*MaskFormerHead"),
        ("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "x", "must be one of .*MSDeformAttn"),
        ("MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", "x", "must be one of .*MultiScale"),
        ("MODEL.RESNETS.DEPTH", 51, "must be one of 18"),
        ("MODEL.RESNETS.OUT_FEATURES", ["res6"], "'res6' must be one of stem"),
        ("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 0, "must be 1 or more"),
        ("MODEL.SEM_SEG_HEAD.CONVS_DIM", 40, "must be a multiple of 32"),
        ("MODEL.MASK_FORMER.HIDDEN_DIM", 30, "must be a multiple of MODEL.MASK_FORMER.NHEADS"),
    ],
)
def test_parts_and_numbers_of_models_are_checked(key, value, words):
    cfg = engine.read_config(DEMO, ["MODEL.DEVICE", "cpu"])
    check_model(cfg)
    node, name = key.rpartition(".")[::2]
    cfg.lookup(node)[name] = value
    with pytest.raises(UserError, match=f"^{key}.*{words}"):
        check_model(cfg)


def test_a_backend_of_the_environment_is_checked(monkeypatch):
    monkeypatch.setenv("RANKSEG_M2F_MS_DEFORM_ATTN", "fast")
    with pytest.raises(
        UserError, match=r"RANKSEG_M2F_MS_DEFORM_ATTN: backend 'fast' must be one of"
    ):
        check_model(engine.read_config(DEMO, ["MODEL.DEVICE", "cpu"]))


@pytest.mark.parametrize(
    "key, value",
    [
        ("FORMAT", "RBG"),
        ("RANDOM_FLIP", "sideways"),
        ("MIN_SIZE_TRAIN_SAMPLING", "all"),
        ("MIN_SIZE_TRAIN", ()),
        ("CROP.TYPE", "round"),
        ("CROP.SIZE", [0, 48]),
    ],
)
def test_choices_of_the_input_are_checked(key, value):
    cfg = engine.read_config(DEMO, ["INPUT.CROP.ENABLED", "True"])
    check_input(cfg)
    *above, name = f"INPUT.{key}".split(".")
    cfg.lookup(".".join(above))[name] = value
    with pytest.raises(UserError, match=rf"^INPUT\.{key}="):
        check_input(cfg)


class Page(BaseHTTPRequestHandler):
    """A page where a checkpoint should be; nothing at /gone.pth."""

    def do_GET(self):
        self.send_response(404 if self.path == "/gone.pth" else 200)
        self.end_headers()
        self.wfile.write(b"<!DOCTYPE html><html>log in</html>")

    def log_message(self, *args):
        pass


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The address of a server of `Page`."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_weights_by_address_are_named(site, monkeypatch):
    load = Checkpointer(torch.nn.Linear(1, 1)).load
    for address in (
        "http://127.0.0.1:9/R-50.pkl",
        f"{site}/gone.pth",
        "catalog://no/such",
        "catalog://ImageNetPretrained/no",
    ):
        words = f"^{address} cannot be downloaded .*give MODEL.WEIGHTS the local file$"
        with pytest.raises(UserError, match=words):
            load(address)
    with pytest.raises(UserError, match=rf"^{site}/page\.pth: .* is a web page, not weights"):
        load(f"{site}/page.pth")
    with pytest.raises(UserError, match=r"^s3://bucket/a\.pth is an address of an unknown kind"):
        load("s3://bucket/a.pth")

    def fail(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(PathManager, "get_local_path", fail)
    with pytest.raises(UserError, match=r"^detectron2://a\.pkl cannot be downloaded \(no n"):
        load("detectron2://a.pkl")


THIN = [(1, 4000), (4000, 1), (1, 1), (2, 3000)]


@pytest.mark.parametrize("size", THIN, ids=str)
@pytest.mark.parametrize("kind", ["absolute", "absolute_range", "relative", "relative_range"])
def test_no_side_of_a_photo_becomes_nothing(size, kind):
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (48, 64), 80
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 48, 80
    cfg.INPUT.IMAGE_SIZE, cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE = 64, True, kind
    cfg.INPUT.CROP.SIZE = [0.1, 0.3] if "relative" in kind else [16, 32]
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.5
    image, labels = np.full((*size, 3), 9, np.uint8), np.ones(size, np.uint8)
    for made in (
        resize_for_test(cfg),
        resize_and_crop(cfg, 255, constrain_area=True),
        resize_and_crop(cfg, 255, constrain_area=False),
        large_scale_jitter(cfg),
        crop(cfg, 255, constrain_area=False),
        clip_augmentation(cfg, 255, constrain_area=True),
    ):
        shown = T.AugInput(image, sem_seg=labels)
        T.AugmentationList(made)(shown)
        assert min(shown.image.shape[:2]) >= 1 and shown.image.shape[:2] == shown.sem_seg.shape


def test_sides_are_rounded_as_ever():
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 48, 80
    for size in ((50, 60), (31, 97)):
        theirs = T.ResizeShortestEdge(48, 80, "choice").get_transform(np.empty((*size, 3)))
        (ours,) = resize_for_test(cfg)
        found = ours.get_transform(np.empty((*size, 3)))
        assert (found.new_h, found.new_w) == (theirs.new_h, theirs.new_w)


@pytest.fixture
def film(tmp_path):
    """A folder of three frames."""
    path = tmp_path / "film"
    path.mkdir()
    for i in range(3):
        Image.new("RGB", (64, 48), (60 + 40 * i, 90, 40)).save(path / f"{i}.png")
    return path


def draw(monkeypatch, capsys, program, source, output, config):
    """The output of a demo that ends well."""
    words = ["--config-file", config, "--allow-partial", "--input", source, "--output", output]
    monkeypatch.setattr(sys, "argv", ["demo.py", *map(str, words), "--opts", *SMALL])
    assert not program.main()
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "output, written",
    [
        ("there", "there/film.mp4"),
        ("new/", "new/film.mp4"),
        ("no_ending", "no_ending/film.mp4"),
        ("a.gif", "a.gif"),
        ("a.AVI", "a.AVI"),
        ("new/a.mov", "new/a.mov"),
    ],
)
def test_videos_go_into_folders_and_many_formats(
    tmp_path, monkeypatch, capsys, film, output, written
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "there").mkdir()
    found = draw(monkeypatch, capsys, demo_video, film, f"{tmp_path}/{output}", VIDEO)
    path = tmp_path / written
    assert f"Video: {path}" in found
    if path.suffix == ".gif":
        with Image.open(path) as animation:
            assert animation.n_frames == 3
            # Of 8 frames a second, in hundredths of a second.
            assert animation.info["duration"] == 120
        return
    assert sum(1 for _ in demo_video.video_frames(str(path))) == 3


@pytest.mark.parametrize("output", ["a.txt", "a.mp3", "taken.mp4/b.mp4", "film/0.png"])
def test_a_video_that_cannot_be_written_is_refused_first(tmp_path, monkeypatch, film, output):
    (tmp_path / "taken.mp4").write_text("x")
    monkeypatch.setattr(demo_video, "VideoPredictor", None)
    words = ["--config-file", VIDEO, "--input", film, "--output", tmp_path / output]
    assert ended(monkeypatch, demo_video, *words).startswith("demo_video: --output ")
    # A codec that this OpenCV lacks.
    monkeypatch.setitem(demo_video._CODES, ".mp4", "zzzz")
    words[-1] = tmp_path / "b.mp4"
    assert "OpenCV cannot write this video" in ended(monkeypatch, demo_video, *words)


def test_the_demo_writes_one_image_or_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    one, two = photo(tmp_path / "one.png"), photo(tmp_path / "two.png", (4000, 1))
    show = partial(draw, monkeypatch, capsys, demo, config=DEMO)
    show(one, tmp_path / "out" / "drawn.jpg")
    with Image.open(tmp_path / "out" / "drawn.jpg") as drawn:
        assert drawn.format == "JPEG"
    show(two, tmp_path / "thin")
    assert (tmp_path / "thin" / "two.png").is_file()
    monkeypatch.setattr(demo, "Predictor", None)
    words = ["--config-file", DEMO, "--input", one, two, "--output", tmp_path / "a.png"]
    assert "is one image for 2 inputs" in ended(monkeypatch, demo, *words)
    (tmp_path / "notes.txt").write_text("x")
    words[-1] = tmp_path / "notes.txt"
    assert "it is a file, not a folder" in ended(monkeypatch, demo, *words)


@pytest.mark.parametrize(
    "config, test", [(DEMO, "scenes_panoptic_val"), (VIDEO, "video_scenes_instance_val")]
)
def test_metrics_known_at_the_start_are_those_given_at_the_end(
    scenes, tmp_path, monkeypatch, config, test
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    words = [*SMALL, "OUTPUT_DIR", str(tmp_path), "DATASETS.TEST", f"('{test}',)"]
    cfg = engine.load_config(config, words)
    (part,) = evaluation_sets(cfg)
    given = flatten_results_dict(evaluate(cfg, build_model(cfg), tests=[part]))
    cfg.defrost()
    for metric in (name for name in given if "-" not in name.partition("/")[2]):
        cfg.TEST.EARLY_STOPPING.METRIC = metric
        check_metric(cfg, {test: part.evaluators})
    cfg.TEST.EARLY_STOPPING.METRIC = "sem_seg/none"
    with pytest.raises(UserError, match="METRIC='sem_seg/none' must be one of ") as raised:
        check_metric(cfg, {test: part.evaluators})
    known = str(raised.value).partition("must be one of ")[2].split(", ")
    assert set(known) == {name for name in given if "-" not in name.partition("/")[2]}
