"""The benchmarks run and say what they compared."""

import ms_deform_attn as benchmark
import torch
import whole_model


def test_every_implementation_is_timed_in_both_passes(monkeypatch):
    monkeypatch.setitem(benchmark.SIZES, "512x512", (64, 96))
    rows = benchmark.compare("512x512", 1, "float32", "cpu", rounds=1)
    rows = [{**row, "bandwidth_share": 0.5} for row in rows]
    assert {row["pass"] for row in rows} == {"forward", "forward+backward"}
    assert {"ours", "transformers"} <= {row["name"] for row in rows}
    assert all(row["ours_is_faster_by"] == 1 for row in rows if row["name"] == "ours")
    assert all(name in benchmark.table(rows) for name in ("ours", "transformers"))


def test_peers_compute_the_same():
    shapes = [(2, 3), (4, 6), (8, 12)]
    inputs = benchmark.make_inputs(shapes, 2, torch.float32, "cpu")
    outputs = [
        attend(inputs[0], shapes, *inputs[1:])
        for attend in benchmark.implementations("cpu", torch.float32).values()
    ]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=1e-4, atol=1e-5)


def test_traffic_is_counted_once():
    value, locations, weights = torch.zeros(6), torch.zeros(4), torch.zeros(2)
    assert benchmark.bytes_moved([value, locations, weights], "forward") == 4 * (6 + 4 + 2 + 6)


def test_a_sample_has_objects():
    sample = whole_model.sample(48, 7)
    assert sample["image"].shape == (3, 48, 48) and len(sample["instances"]) == 10
    assert sample["instances"].gt_masks.any((1, 2)).all()
