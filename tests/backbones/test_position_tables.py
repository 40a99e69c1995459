"""Position embeddings and relative position biases, resized when weights are loaded."""

import numpy as np
import pytest
import torch
from official_backbones import ADAPTER_L, BEIT_L, DATA, SWIN_B, VIT_B, build, our_config

from rankseg_m2f.layers.position_tables import (
    HasPositionTables,
    PositionTable,
    resize_position_embedding,
)
from rankseg_m2f.weights.fit_positions import fit_positions
from rankseg_m2f.weights.relative_bias import geometric_positions, resize_relative_bias
from rankseg_m2f.weights.swin_windows import fit_windows

TINY_VIT = VIT_B | {"embed_dims": 4, "num_layers": 1, "num_heads": 2}
TINY_BEIT = BEIT_L | {"embed_dim": 4, "depth": 1, "num_heads": 2, "out_indices": [0, 0, 0, 0]}


@pytest.fixture(scope="module")
def golden():
    folder = DATA / "pixel_pretrained_init"
    arrays = (dict(np.load(folder / f"{k}.npz")) for k in ("inputs", "outputs"))
    return tuple({k: torch.from_numpy(v) for k, v in x.items()} for x in arrays)


@pytest.mark.parametrize(
    "name, old, new",
    [
        ("6to4x4", (6, 6), (4, 4)),
        ("6to8x8", (6, 6), (8, 8)),
        ("6to5x7", (6, 6), (5, 7)),
        ("24to32x32", (24, 24), (32, 32)),
    ],
)
@pytest.mark.parametrize("kind, mode", [("vit_pos", "bicubic"), ("rstrudel_pos", "bilinear")])
def test_position_embeddings(golden, name, old, new, kind, mode):
    inputs, outputs = golden
    resized = resize_position_embedding(inputs[f"vit_pos.{name}"], old, new, mode)
    torch.testing.assert_close(resized, outputs[f"{kind}.{name}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("old, new", [(14, 40), (4, 6), (6, 6)])
def test_relative_biases(golden, old, new):
    inputs, outputs = golden
    name = f"beit.{old}to{new}"
    x = geometric_positions(old, new)
    assert np.abs(x - outputs[f"{name}.x"].numpy()).max() < 1e-9
    resized = resize_relative_bias(inputs[name], (old, old), (new, new))
    torch.testing.assert_close(resized, outputs[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name, window", [("7to12", 12), ("4to7", 7)])
def test_tables_of_swin(golden, name, window):
    inputs, outputs = golden
    key = "backbone.layers.0.blocks.0.attn.relative_position_bias_table"
    ours = {key: torch.zeros((2 * window - 1) ** 2, 2)}
    fitted, sentence = fit_windows({key: inputs[f"swin_table.{name}"]}, ours)
    torch.testing.assert_close(fitted[key], outputs[f"swin_table.{name}"], rtol=0, atol=1e-6)
    assert sentence


def test_sides_are_resized_apart():
    """A table for more columns alone keeps its rows."""
    table = torch.randn(7 * 7 + 3, 2, dtype=torch.float64)
    wide = resize_relative_bias(table, (4, 4), (4, 6))
    maps = table[:-3].T.unflatten(1, (7, 7)), wide[:-3].T.unflatten(1, (7, 11))
    # Between 0 and the first distance lies nothing: the middle and its neighbours stay.
    torch.testing.assert_close(maps[1][:, :, 4:7], maps[0][:, :, 2:5])
    assert torch.equal(wide[-3:], table[-3:])


class Holder(torch.nn.Module):
    """A model with a backbone."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone


def test_a_file_is_fitted_to_a_vit():
    model = Holder(build(our_config(TINY_VIT | {"img_size": [80, 112]})))
    theirs = {"backbone.pos_embed": torch.randn(1, 37, 4), "backbone.cls_token": torch.zeros(1)}
    fitted, sentence = fit_positions(theirs, model)
    assert sentence == "Position tables are resized from patches of 6x6 to 5x7."
    expected = resize_position_embedding(theirs["backbone.pos_embed"], (6, 6), (5, 7), "bicubic")
    assert torch.equal(fitted["backbone.pos_embed"], expected)
    assert fitted["backbone.cls_token"] is theirs["backbone.cls_token"]


def test_the_original_segmenter_resizes_bilinearly():
    cfg = our_config({"image_size": 64, "d_model": 4, "n_layers": 1, "n_heads": 2})
    theirs = {"backbone.pos_embed": torch.randn(1, 37, 4)}
    fitted, _ = fit_positions(theirs, Holder(build(cfg)))
    expected = resize_position_embedding(theirs["backbone.pos_embed"], (6, 6), (4, 4), "bilinear")
    assert torch.equal(fitted["backbone.pos_embed"], expected)


@pytest.mark.parametrize("adapter", [False, True])
def test_a_file_is_fitted_to_beit(adapter):
    official = TINY_BEIT | {"img_size": 96}
    if adapter:
        spans = [[0, 0], [1, 1], [2, 2], [3, 3]]
        official = ADAPTER_L | official
        official |= {"type": "BEiTAdapter", "depth": 4, "deform_num_heads": 1}
        official |= {"interaction_indexes": spans, "conv_inplane": 4, "deform_ratio": 1.0}
    key = "backbone.blocks.0.attn.relative_position_bias_table"
    theirs = {key: torch.randn(7 * 7 + 3, 2, dtype=torch.float16)}
    fitted, sentence = fit_positions(theirs, Holder(build(our_config(official))))
    assert sentence == "Position tables are resized from patches of 4x4 to 6x6."
    assert fitted[key].shape == (11 * 11 + 3, 2)
    assert fitted[key].dtype == torch.float16


def test_nothing_is_resized_in_vain():
    model = Holder(build(our_config(TINY_VIT | {"img_size": [64, 256]})))
    for rows in (1 + 64, 1 + 63):  # what the model has, and what is not square
        theirs = {"backbone.pos_embed": torch.randn(1, rows, 4)}
        fitted, sentence = fit_positions(theirs, model)
        assert sentence is None
        assert fitted["backbone.pos_embed"] is theirs["backbone.pos_embed"]


def test_who_has_position_tables():
    assert not isinstance(build(our_config(SWIN_B | {"embed_dims": 4})), HasPositionTables)
    vit = build(our_config(TINY_VIT))
    assert isinstance(vit, HasPositionTables)
    assert vit.position_tables() == {"pos_embed": PositionTable((32, 32), "bicubic")}


def test_tables_of_another_size_are_refused():
    with pytest.raises(ValueError, match="37 rows"):
        resize_position_embedding(torch.zeros(1, 37, 2), (5, 5), (4, 4), "bicubic")
    with pytest.raises(ValueError, match="not those of a table"):
        resize_relative_bias(torch.zeros(52, 2), (5, 5), (6, 6))
    with pytest.raises(ValueError, match="too small"):
        resize_relative_bias(torch.zeros(12, 2), (2, 2), (6, 6))
