"""What the compiler makes of the Triton kernels, without a GPU: registers, spills, widths.

The bounds are those of 8 heads and 4 points; a kernel that passes them slower is caught on a GPU
alone (`make gpu-test`). Slow: all sizes; else those of Mask2Former with four levels, whose code is
that of three but for the softmax.
"""

import json

import kernel_resources
import kernel_static
import pytest
from kernel_resources import ARCHITECTURES, Case, cases, measure

from rankseg_m2f.ops import triton_kernels

OFTEN = [
    Case(kernel, dtype, architecture, offsets=offsets, levels=4)
    for architecture, dtype in ((80, "fp32"), (90, "fp32"), (90, "bf16"), (100, "bf16"))
    for offsets in (False, True)
    for kernel in (
        "from_offsets" if offsets else "forward",
        *kernel_resources.backward_kernels(architecture),
    )
]
ALL = [case for levels in (3, 4) for case in cases(levels)]
OTHERS = [case for channels in (16, 64, 128) for case in cases(3, channels)]


def name(case: Case) -> str:
    parts = (case.kernel, case.dtype, f"sm_{case.architecture}", f"L{case.levels}")
    flags = ("offsets",) * case.offsets + ("exact",) * case.exact
    return "-".join((*parts, f"D{case.channels}", *flags))


@pytest.mark.parametrize("case", OFTEN, ids=name)
def test_kernels_fit(case):
    assert_fits(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in ALL if case not in OFTEN], ids=name)
def test_all_kernels_fit(case):
    assert_fits(case)


def assert_fits(case):
    found = measure(case)
    assert found.stack == 0 and found.shared == 0 and found.barriers == 0
    if case.kernel in ("forward", "from_offsets"):
        assert found.registers <= 64 and found.instructions <= 900
        # Four corners of four points; eight bytes where eight channels to a thread would spill.
        narrow = case.offsets and case.dtype == "bf16" and case.architecture == 100
        assert found.loads[64 if narrow else 128] >= 16
    else:
        assert found.registers <= 80 and found.instructions <= 1300
        assert found.atomics == atomics(case)
        if case.kernel != "value":
            assert found.loads[128 if case.dtype == "fp32" else 64] >= 17


def atomics(case) -> dict[str, int]:
    """Four corners of four points, a thread's four channels at once where the GPU can."""
    if case.kernel in ("forward", "from_offsets", "points"):
        return {}
    return {"64" if case.exact else "F32x4" if case.kernel == "backward" else "F32": 16}


@pytest.mark.slow
@pytest.mark.parametrize("case", OTHERS, ids=name)
def test_other_sizes_neither_spill_nor_load_single_numbers(case):
    found = measure(case)
    assert found.stack == 0 and found.registers <= 80
    if case.kernel != "value":
        assert found.loads.get(128, 0) + found.loads.get(64, 0) >= 16
    assert found.atomics == atomics(case)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sizes_that_are_no_power_of_two_compile(architecture):
    for kernel in ("forward", *kernel_resources.backward_kernels(architecture)):
        assert measure(Case(kernel, "fp32", architecture, channels=40)).stack == 0


@pytest.mark.slow
def test_one_query_and_one_token_compile():
    """Triton takes sizes of 1 for constants."""
    for kernel in (triton_kernels._forward_kernel, triton_kernels._backward_kernel):
        sizes = {"S": 1, "Q": 1, "M": 1, "D": 2, "L": 1, "P": 1, "ROWS": 1, "LANES": 2}
        flags = {"OFFSETS": True, "TO_VALUE": True, "TO_POINTS": True, "EXACT": False}
        known = {"shapes": "*i32", "pixels": "*fp32", **sizes, **flags}
        arguments = {name: known.get(name, "*fp32") for name in kernel.arg_names}
        assert kernel_static.resources(kernel, arguments, 90, 1).stack == 0


def test_the_disassembly_is_read():
    code = """
        /*0000*/  LDC R1, c[0x0][0x28] ;  /* 0x0 */
        /*0010*/  @!P0 LDG.E.128 R4, desc[UR6][R8.64] ;
        /*0020*/  @P1 LDG.E.U16 R4, desc[UR6][R8.64] ;
        /*0030*/  LDG.E R4, desc[UR6][R8.64] ;
        /*0040*/  BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0050*/  SHFL.BFLY PT, R3, R2, 0x4, 0x1f ;
        /*0060*/  @!PT REDG.E.ADD.F32x4.FTZ.RN.STRONG.GPU desc[UR6][R8.64], R4 ;
        /*0070*/  @UP0 RED.E.ADD.64.STRONG.GPU [R4], R8 ;
"""
    found = kernel_static.parse(" REG:56 STACK:8 SHARED:16 LOCAL:0\n" + code)
    assert (found.registers, found.stack, found.shared) == (56, 8, 16)
    assert (found.instructions, found.barriers, found.shuffles) == (8, 1, 1)
    assert found.loads == {128: 1, 16: 1, 32: 1}
    assert found.atomics == {"F32x4": 1, "64": 1}


def test_a_broken_binary_is_an_error():
    with pytest.raises(RuntimeError, match="cuobjdump failed"):
        kernel_static.read(b"no binary")


def test_integers_are_known_as_a_launch_knows_them():
    assert [kernel_static.integer(n) for n in (1, 8, 48)] == [1, "i32", "i32:16"]


def test_the_peers_strides_follow_its_sizes():
    """Names as in deformops 3.0.1: pointers, sizes, then one stride per axis of each tensor."""
    pointers = [f"{name}_ptr" for name in ("value", "shapes", "level_start_index", "loc")]
    pointers += ["attn_ptr", "output_ptr"]
    sizes = ["batch_size", "num_queries", "num_heads", "num_levels", "num_points", "dim_per_head"]
    axes = {"v": "bshd", "l": "bqhlpc", "a": "bqhlp", "o": "bqhd"}
    strides = [f"stride_{tensor}{axis}" for tensor, names in axes.items() for axis in names]
    arguments = kernel_resources.peer_arguments(
        [*pointers, *sizes, *strides], Case("deformops forward", "bf16", 90), softmax=True
    )
    assert arguments["value_ptr"] == "*bf16" and arguments["shapes_ptr"] == "*i64"
    assert arguments["batch_size"] == 1 and arguments["num_heads"] == "i32"
    # The last axis is contiguous; a head has 3 * 4 * 2 numbers of locations, a query 8 such.
    assert arguments["stride_vd"] == arguments["stride_lc"] == 1
    assert (arguments["stride_lh"], arguments["stride_lq"]) == ("i32", "i32:16")
    assert arguments["aggregate"] == 1


def test_the_table_is_printed_and_written(tmp_path, monkeypatch, capsys):
    figures = kernel_static.Resources(40, 0, 0, 500, 0, 0, {128: 16, 32: 2}, {"F32x4": 16})
    monkeypatch.setattr(kernel_resources, "measure", lambda case: figures)
    peer = (Case("deformops forward", "fp32", 90), figures)
    monkeypatch.setattr(kernel_resources, "peer_cases", lambda levels, channels: [peer])
    path = tmp_path / "figures.json"
    monkeypatch.setattr("sys.argv", ["", "--levels", "3", "--json", str(path)])
    kernel_resources.main()
    said = capsys.readouterr().out
    assert (
        "deformops forward" in said
        and "32: 2, 128: 16" in said
        and "16 x F32x4" in said
        and "backward, offsets" in said
    )
    rows = json.loads(path.read_text())["rows"]
    assert len(rows) == len(list(cases())) + 1 and rows[0]["registers"] == 40
