"""What the compiler makes of a Triton kernel for a GPU that need not be here.

Triton's wheel brings NVIDIA's assembler and disassembler, so a kernel can be compiled for any
architecture and its machine code read. `kernel_resources.py` prints the table of all kernels,
tests/test_triton_static.py pins it.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

DISASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# "/*0a30*/  @!P0 LDG.E.128 R4, desc[UR6][R8.64] ;" -> "LDG.E.128"
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
_LOAD_BITS = re.compile(r"LDG\.(?:.*\.)?(?:[US])?(8|16|64|128|256)\b")
_ATOMIC = re.compile(r"(?:REDG?|ATOMG?)\.(?:E\.)?ADD\.([A-Z0-9]+x?\d*)")


@dataclass(frozen=True)
class Resources:
    """Figures of one compiled kernel.

    Attributes:
        registers: per thread.
        stack: bytes per thread, what did not fit into registers.
        shared: bytes per program.
        instructions, barriers, shuffles: in the code, not as executed.
        loads: bits of a load from global memory -> instructions.
        atomics: type of an atomic addition, such as "F32x4" -> instructions.
    """

    registers: int
    stack: int
    shared: int
    instructions: int
    barriers: int
    shuffles: int
    loads: dict[int, int]
    atomics: dict[str, int]


def resources(
    kernel: triton.JITFunction,
    arguments: Mapping[str, str | int],
    architecture: int,
    num_warps: int,
) -> Resources:
    """Compile `kernel` and read its machine code.

    Args:
        kernel: a function under `triton.jit`.
        arguments: name -> a type ("*fp32", "i32"; pointers are aligned to 16 bytes, as torch's
            are, and "i32:16" is a multiple of 16) or the value of a constexpr.
        architecture: compute capability times ten, e.g. 90.
        num_warps: warps of a program.

    Raises:
        RuntimeError: the disassembler failed; with what it said.
    """
    signature, constants, attributes = {}, {}, {}
    for position, name in enumerate(kernel.arg_names):
        given = arguments[name]
        if isinstance(given, str):
            signature[name] = given.removesuffix(":16")
            if given.startswith("*") or given.endswith(":16"):
                attributes[position,] = [["tt.divisibility", 16]]
        else:
            signature[name] = "constexpr"
            constants[position,] = given
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": num_warps},
    )
    return read(compiled.asm["cubin"])


def integer(number: int) -> str | int:
    """The argument that Triton makes of an int of a launch: it knows ones and multiples of 16."""
    if number == 1:
        return 1
    return "i32" if number % 16 else "i32:16"


def read(binary: bytes) -> Resources:
    """Figures of a binary that holds one kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [str(DISASSEMBLER), "-res-usage", "-sass", file.name]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise RuntimeError(f"{DISASSEMBLER.name} failed: {done.stderr.strip()}")
    return parse(done.stdout)


def parse(listing: str) -> Resources:
    """Figures in what the disassembler printed."""
    usage = {key: int(n) for key, n in re.findall(r"\b(REG|STACK|SHARED):(\d+)", listing)}
    names = _INSTRUCTION.findall(listing)
    atomics = [found[1] for name in names if (found := _ATOMIC.match(name))]
    loads = [_bits(name) for name in names if name.startswith("LDG.")]
    return Resources(
        registers=usage["REG"],
        stack=usage["STACK"],
        shared=usage["SHARED"],
        instructions=len(names),
        barriers=sum(name.startswith("BAR.") for name in names),
        shuffles=sum(name.startswith("SHFL.") for name in names),
        loads=dict(Counter(loads)),
        atomics=dict(Counter(atomics)),
    )


def _bits(load: str) -> int:
    """Width of a load such as "LDG.E.U16.CONSTANT" or "LDG.E", which is 32 bits."""
    found = _LOAD_BITS.match(load)
    return int(found[1]) if found else 32
