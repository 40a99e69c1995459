"""Parameters and FLOPs of full-size models against the official code and hand counts."""

import json

import pytest
from analyze_model import analyze, main, table
from detectron2.modeling import META_ARCH_REGISTRY
from test_official_keys import ADE20K, R50, RANKSEG, SWIN_L
from torch import nn

from rankseg_m2f.config import get_cfg
from rankseg_m2f.config.lookup import read_config

GI = 2**30
SMALL = {
    "MODEL.BACKBONE.NAME": "D2SwinTransformer",
    "MODEL.SWIN.EMBED_DIM": 32,
    "MODEL.SWIN.DEPTHS": [1, 1, 2, 1],
    "MODEL.SWIN.NUM_HEADS": [1, 2, 2, 4],
    "MODEL.SWIN.WINDOW_SIZE": 4,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.MASK_FORMER.DEC_LAYERS": 4,
}


def config(*groups, queries: int = 100):
    cfg = get_cfg()
    merged = ADE20K | {"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": queries}
    for group in groups:
        merged |= group
    cfg.merge_from_list([x for pair in merged.items() for x in pair])
    return cfg


# Official code under fvcore, 2^30 multiply-adds, without post-processing, masked attention counted.
@pytest.mark.parametrize(
    ("groups", "queries", "frames", "parameters", "flops"),
    [
        ((SWIN_L,), 100, 1, 215_488_779, 369.48),
        ((SWIN_L, RANKSEG), 100, 1, 218_927_672, 370.29),
        ((SWIN_L,), 200, 1, 215_539_979, 378.32),
        ((SWIN_L, RANKSEG), 200, 1, 218_978_872, 379.49),
        # VSPW, clips of two frames.
        ((SWIN_L, {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 124}), 100, 2, 215_482_097, 737.52),
    ],
)
def test_figures_of_the_official_code(groups, queries, frames, parameters, flops):
    total = analyze(config(*groups, queries=queries), (640, 640), frames).total
    assert total.parameters == parameters
    # Official counts skip the class logits of hidden layers, which the tracer drops.
    assert total.flops / GI == pytest.approx(flops, rel=5e-4)


def test_modules_of_the_official_code():
    rows = {r.module: r for r in analyze(config(SWIN_L, RANKSEG)).rows}
    assert rows["backbone"].flops == 327_314_890_752
    assert rows["ml_head"].flops == 865_459_200
    # One resize (160 x 160 x 256, four FLOPs each) stands outside the module in official counts.
    assert rows["sem_seg_head.pixel_decoder"].flops == 56_707_174_400 + 160 * 160 * 256 * 4


def test_hand_count_and_sums():
    analysis = analyze(config(SMALL), (64, 96))
    rows = {r.module: r for r in analysis.rows}
    tokens = 16 * 24
    embed = rows["backbone.patch_embed.proj"]
    assert embed.flops == tokens * 32 * 4 * 4 * 3
    assert embed.activations == tokens * 32
    assert embed.parameters == 32 * (4 * 4 * 3 + 1)
    # qkv 3 x 32 and proj 32 wide, two products of a 4 x 4 window with itself.
    attention = rows["backbone.layers.0.blocks.0.attn"]
    assert attention.flops == tokens * (32 * 4 * 32 + 2 * 16 * 32)
    assert rows["backbone.layers.0.blocks.0.norm1"].flops == tokens * 32 * 5
    for name, row in rows.items():
        children = [r for r in rows.values() if r.module and r.module.rpartition(".")[0] == name]
        assert row.flops >= sum(r.flops for r in children)
        assert row.activations >= sum(r.activations for r in children)
    assert analysis.total.flops == sum(r.flops for r in analysis.rows if r.depth == 1)


def test_post_processing_and_oracle_change_nothing():
    plain = config(SMALL, RANKSEG)
    panoptic = config(
        SMALL,
        RANKSEG,
        {
            "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": True,
            "MODEL.MASK_FORMER.TEST.INSTANCE_ON": True,
            "MODEL.RANKSEG.USE_GT": True,
        },
    )
    panoptic.freeze()
    assert analyze(panoptic, (64, 64)).rows == analyze(plain, (64, 64)).rows
    assert panoptic.MODEL.RANKSEG.USE_GT and panoptic.is_frozen()


def test_frozen_and_synchronised_norms_count_alike():
    frozen = analyze(config(R50), (64, 64)).total
    other = analyze(config(R50, {"MODEL.RESNETS.NORM": "SyncBN"}), (64, 64)).total
    assert frozen.flops == other.flops
    # 53 norms of a ResNet-50 have 26,560 channels, each with a weight and a bias.
    assert other.parameters - frozen.parameters == 2 * 26_560


def test_clips_cost_their_frames():
    one, three = (analyze(config(SMALL), (64, 64), frames) for frames in (1, 3))
    of_one, of_three = ({r.module: r.flops for r in x.rows} for x in (one, three))
    for name in ("backbone", "sem_seg_head.pixel_decoder"):
        assert of_three[name] == 3 * of_one[name]
    assert one.total.flops < three.total.flops < 3 * one.total.flops


def test_impossible_requests():
    with pytest.raises(ValueError, match="size 0 x 64 and 1 frames must be 1 or more"):
        analyze(config(SMALL), (0, 64))

    class Closed(nn.Module):
        def __init__(self, cfg):
            super().__init__()

    META_ARCH_REGISTRY._do_register("Closed", Closed)
    try:
        with pytest.raises(ValueError, match="'Closed' is not a Segmentor"):
            analyze(config(SMALL, {"MODEL.META_ARCHITECTURE": "Closed"}))
    finally:
        del META_ARCH_REGISTRY._obj_map["Closed"]


def write_config(folder) -> str:
    path = folder / "small.yaml"
    path.write_text(config(SMALL, RANKSEG).dump())
    return str(path)


def test_command_line(tmp_path, capsys):
    path = write_config(tmp_path)
    out = tmp_path / "counts.json"
    command = ["--config-file", path, "--size", "64", "96", "--depth", "1", "--json", str(out)]
    main([*command, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "7"])
    cfg = read_config(path, ["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "7"])
    analysis = analyze(cfg, (64, 96))
    text = capsys.readouterr().out
    assert text == table(analysis, 1) + "\n"
    assert text.startswith("1 image, 64 x 96, without post-processing\nparameters ")
    total = analysis.total
    assert f"{total.parameters:,}" in text and f"{total.flops / 1e9:,.2f} x 10^9" in text
    content = json.loads(out.read_text())
    names = [row["module"] for row in content["rows"]]
    assert names == ["", "backbone", "sem_seg_head", "ml_head", "ml_norm"]
    assert content["rows"][0]["flops"] == total.flops
    assert sorted(p.name for p in tmp_path.iterdir()) == ["counts.json", "small.yaml"]


def test_a_file_that_cannot_be_written_does_not_cost_the_table(tmp_path, capsys):
    path = write_config(tmp_path)
    command = ["--config-file", path, "--size", "64", "64", "--json", f"{path}/counts.json"]
    with pytest.raises(SystemExit, match=r"^analyze_model: .*small\.yaml"):
        main(command)
    assert capsys.readouterr().out.startswith("1 image, 64 x 64")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--config-file", "no.yaml"], "no.yaml does not exist"),
        (["MODEL.NO_SUCH_KEY", "1"], "NO_SUCH_KEY"),
        (["MODEL.RANKSEG.TOPK"], "has no value; write KEY VALUE pairs"),
        (["MODEL.BACKBONE.NAME", "NoBackbone"], "NoBackbone"),
        (["MODEL.RANKSEG.TOPK", "0"], "selection needs at least one of 150 labels"),
        (["--frames", "0"], "0 frames must be 1 or more"),
    ],
)
def test_config_errors_are_one_line(tmp_path, arguments, complaint):
    if "--config-file" not in arguments:
        arguments = ["--config-file", write_config(tmp_path), *arguments]
    with pytest.raises(SystemExit, match=f"^analyze_model: .*{complaint}") as ended:
        main(arguments)
    assert "\n" not in str(ended.value)


def test_values_are_never_computed():
    # Masks of 100 queries alone would need 27 GB for each decoder layer.
    total = analyze(config(SMALL), (16_384, 16_384), frames=4).total
    assert total.flops > 1e13
