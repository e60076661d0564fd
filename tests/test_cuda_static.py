"""What the compiler says of the CUDA kernels: registers, spills, occupancy, instructions.

Needs nvcc, no GPU. The checks of machine code need cuobjdump as well: on PATH, in the toolkit, in
its pip package (with nvidia-cuda-nvdisasm) or triton, or named by CWT_CUOBJDUMP. `pytest -s` prints
the tables of benchmarks/README.md.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import compiled
import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "csrc/chunk_loss/cuda/launch.cu"
ARCHS = ("sm_80", "sm_90", "sm_100")
TYPES = {"d": "float64", "f": "float32", "13__nv_bfloat16": "bfloat16", "6__half": "float16"}
MODES = {"0": "loss", "1": "gradient", "2": "general"}

# Registers allowed and threads of the largest block that a kernel is launched with.
LIMITS = {
    "rows loss": (64, 512),
    "rows gradient": (64, 1024),
    "rows general": (128, 512),
    "backward": (64, 512),
    "mean_grad": (128, 256),
    "plan": (40, 256),
    "weigh": (48, 256),
    "row_weight": (40, 256),
    "sum": (56, 256),
    # As many blocks as launch.cu wants are resident.
    **{f"cluster {threads}": (128, threads) for threads in (256, 128, 64)},
}
# Share of the warps of a multiprocessor that registers leave room for, at least.
OCCUPANCY = {"rows loss": 0.5, "rows gradient": 0.5, "rows general": 0.25, "backward": 0.5}
# Here a whole row on its way hides the latency, not the warps: what counts is the share of the
# registers that packs take.
OCCUPANCY |= {"mean_grad": 0.25} | {kernel: 0.25 for kernel in LIMITS if "cluster" in kernel}

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc on PATH")
pytestmark = needs_nvcc


class Usage(NamedTuple):
    """What ptxas says of a kernel on one architecture."""

    registers: int
    stack: int
    spills: int
    shared: int


def short_name(mangled):
    """Returns e.g. ("rows gradient", "bfloat16") for a kernel's mangled name."""
    kind = re.search(r"chunk_(?:loss_)?(\w+?)_kernel", mangled)[1]
    dtypes = "d|f|13__nv_bfloat16|6__half"
    shape = r"Li(\d+)ELi\d+ELi\d+E"  # threads, blocks, packs
    found = re.search(rf"kernelI({dtypes})(?:LNS_7RowModeE(\d)E|{shape})?E", mangled)
    if found and found[3]:
        return (f"{kind} {found[3]}", TYPES[found[1]])
    dtype, mode = (TYPES[found[1]], found[2]) if found else ("", None)
    return (f"{kind} {MODES[mode]}" if mode else kind, dtype)


@pytest.fixture(scope="module")
def cubins(tmp_path_factory):
    """{arch: (cubin, what ptxas said)}, compiled side by side where no earlier build is kept."""
    folder = tmp_path_factory.mktemp("cubin")
    builds, out = {}, {}
    for arch in ARCHS:
        cubin = folder / f"{arch}.cubin"
        flags = ["-std=c++17", "-O3", "-cubin", f"-arch={arch}", "-Xptxas", "-v"]
        flags += ["-Werror", "all-warnings"]
        kept = compiled.place(["g++", "nvcc"], flags, [ROOT / "csrc"])
        if (said := compiled.find(kept)) is not None:
            out[arch] = (kept, said)
            continue
        command = ["nvcc", *flags, str(SOURCE), "-o", str(cubin)]
        build = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        builds[arch] = (cubin, kept, build)
    for arch, (cubin, kept, build) in builds.items():
        log = build.communicate()[1]
        assert build.returncode == 0, f"{arch} does not compile:\n{log}"
        compiled.keep(cubin, kept, log)
        out[arch] = (cubin, log)
    return out


@pytest.fixture(scope="module")
def usage(cubins):
    """{(arch, kernel, dtype): Usage} of every kernel."""
    out = {}
    for arch, (_, log) in cubins.items():
        for part in log.split("Compiling entry function '")[1:]:
            stack, stores, loads = map(
                int,
                re.search(
                    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", part
                ).groups(),
            )
            shared = re.search(r"(\d+) bytes smem", part)
            registers = int(re.search(r"Used (\d+) registers", part)[1])
            key = (arch, *short_name(part.split("'")[0]))
            out[key] = Usage(registers, stack, stores + loads, int(shared[1]) if shared else 0)
    return out


def occupancy(registers, threads):
    """Returns the share of 64 warps that fit, registers alone counted (65536, 256 at a time)."""
    per_warp = -(-registers * 32 // 256) * 256
    warps_of_block = threads // 32
    return min(65536 // per_warp // warps_of_block * warps_of_block, 64) / 64


def test_every_kernel_is_built_for_every_architecture(usage):
    per_arch = Counter(arch for arch, _, _ in usage)
    assert per_arch == dict.fromkeys(ARCHS, 32)
    for arch, kernel, dtype in usage:
        if kernel.startswith(("rows loss", "rows gradient", "cluster")):
            assert dtype != "float64", "float64 is served by the general kernel"
        assert kernel in LIMITS, (arch, kernel)


def test_no_spills_and_no_local_memory(usage):
    bad = {key: use for key, use in usage.items() if use.stack or use.spills}
    assert bad == {}


def test_registers_and_occupancy(usage):
    rows = []
    for (arch, kernel, dtype), use in sorted(usage.items()):
        ceiling, threads = LIMITS[kernel]
        share = occupancy(use.registers, threads)
        rows.append(f"{arch:7} {kernel:19} {dtype:9} {use.registers:4} registers {share:4.0%}")
        assert use.registers <= ceiling, rows[-1]
        assert share >= OCCUPANCY.get(kernel, 0.5), rows[-1]
    print("\n" + "\n".join(rows))


def test_static_shared_memory_is_what_the_launcher_reserves(usage):
    reserved = int(re.search(r"kStaticShared = (\d+)", SOURCE.read_text())[1])
    for (arch, kernel, dtype), use in usage.items():
        if kernel.startswith("rows"):
            assert use.shared <= reserved, (arch, kernel, dtype, use)


def cuobjdump():
    """Returns the path of cuobjdump, or None."""
    spec = importlib.util.find_spec("triton")
    folders = [Path(spec.origin).parent / "backends/nvidia/bin"] if spec and spec.origin else []
    folders += sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin"))  # the pip package
    folders += [Path(shutil.which("nvcc")).resolve().parent] if shutil.which("nvcc") else []
    places = [os.environ.get("CWT_CUOBJDUMP"), shutil.which("cuobjdump")]
    places += [str(folder / "cuobjdump") for folder in folders]
    return next((p for p in places if p and Path(p).is_file()), None)


@pytest.fixture(scope="module")
def code(cubins):
    """{(arch, kernel, dtype): [(address, instruction)]} of every kernel."""
    tool = cuobjdump()
    if tool is None:
        pytest.skip("no cuobjdump: not on PATH, not in CWT_CUOBJDUMP, no package of it, no triton")
    out = {}
    for arch, (cubin, _) in cubins.items():
        text = subprocess.run(
            [tool, "-sass", str(cubin)], capture_output=True, text=True, check=True
        ).stdout
        for part in text.split("Function : ")[1:]:
            key = (arch, *short_name(part.split("\n", 1)[0]))
            found = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", part, re.MULTILINE)
            out[key] = [(int(address, 16), text) for address, text in found]
    return out


def loops(instructions):
    """Yields the instructions of each loop: from the target of a backward branch to the branch."""
    for address, text in instructions:
        branch = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if branch and int(branch[1], 16) < address:
            start = int(branch[1], 16)
            yield [text for a, text in instructions if start <= a <= address]


def count(instructions, pattern):
    return sum(bool(re.search(pattern, text)) for text in instructions)


LOAD, STORE, POWER = r"\bLDG\.E\S*\.128", r"\bSTG\.E\S*\.128", r"MUFU\.EX2"
PACK = {"float16": 8, "bfloat16": 8, "float32": 4}


def main_loops(instructions, size, packs):
    """Returns the innermost loops that work on so many packs: (instructions an element, texts)."""
    found = [body for body in loops(instructions) if count(body, POWER) >= packs * size]
    innermost = [
        b for b in found if not any(c is not b and "\n".join(c) in "\n".join(b) for c in found)
    ]
    return [(len(body) / (packs * size), body) for body in innermost]


@pytest.mark.parametrize("dtype", list(PACK))
@pytest.mark.parametrize("arch", ARCHS)
def test_loss_reads_each_logit_once_with_wide_loads(code, arch, dtype):
    """One loop, four 16-byte loads for four packs, nothing stored; one exponential an element."""
    size = PACK[dtype]
    [(per_element, body)] = main_loops(code[arch, "rows loss", dtype], size, 4)
    assert count(body, LOAD) == 4
    assert count(body, r"\bSTG|\bSTL|\bLDL|\bSTS|\bLDS") == 0
    assert count(body, POWER) == 4 * size + 4  # and one in each pack's rare rescaling
    print(f"\n{arch} {dtype} loss: {per_element:.1f} instructions an element")
    # An H100 issues 17 instructions in the time that its memory takes for two bytes.
    assert per_element <= 17 * (2 if dtype == "float32" else 1)


@pytest.mark.parametrize("dtype", list(PACK))
@pytest.mark.parametrize("arch", ARCHS)
def test_gradient_reads_once_writes_once_and_rereads_from_cache(code, arch, dtype):
    """First loop: loads (one of two cache hints) and a copy to shared memory; second: stores."""
    size, flight = PACK[dtype], 2 if arch == "sm_100" else 4  # packs that a thread works on at once
    first, second = main_loops(code[arch, "rows gradient", dtype], size, flight)
    assert count(first[1], LOAD) == 2 * flight  # half are executed: to be kept in L2, or streamed
    assert count(first[1], r"\bSTS\.128") == flight
    assert count(first[1], r"\bSTG") == 0
    assert count(second[1], r"\bLDS\.128") == flight
    assert count(second[1], LOAD) == flight  # of what shared memory has no room for
    assert count(second[1], STORE) == flight
    assert count(second[1], POWER) == flight * size
    print(f"\n{arch} {dtype} gradient: {first[0]:.1f} + {second[0]:.1f} instructions an element")
    # The time of reading and writing two bytes is that of 34 instructions on an H100; about 5 of
    # those counted here belong to the rare branches (a new maximum, the label's pack).
    assert first[0] + second[0] <= 42 * (2 if dtype == "float32" else 1)


def instructions_per_element(instructions, which, packs, size):
    """Returns the mean distance of the exponentials of a pass, the first or the last of a kernel.

    Those of a pass's first two packs and of its last are left out, and so is what lies around it.
    """
    at = [i for i, (_, text) in enumerate(instructions) if re.search(POWER, text)]
    at = at[: packs * size] if which == "first" else at[-packs * size :]
    at = at[2 * size : -size]
    return (at[-1] - at[0]) / (len(at) - 1)


@pytest.mark.parametrize("threads", [256, 128, 64])
@pytest.mark.parametrize("dtype", list(PACK))
@pytest.mark.parametrize("arch", ARCHS[1:])
def test_rows_in_registers_are_read_once(code, arch, dtype, threads):
    """A logit comes by a bulk copy, is loaded once from shared memory and stays in a register."""
    size, packs = PACK[dtype], 16
    instructions = code[arch, f"cluster {threads}", dtype]
    texts = [text for _, text in instructions]
    assert count(texts, LOAD) == 0
    assert 4 <= count(texts, r"\bUBLKCP") <= 6  # of a slice and two edges; the first row and others
    assert packs <= count(texts, r"\bLDS\.128") <= packs + 12  # and of the exchange
    stores = [text for text in texts if re.search(STORE, text) and not text.endswith("RZ")]
    assert len(stores) == packs
    # One barrier of the cluster, before the first row: it waits for all stores to memory.
    assert count(texts, r"\bUCGABAR_ARV") == 1
    first = instructions_per_element(instructions, "first", packs, size)
    second = instructions_per_element(instructions, "last", packs, size)
    print(f"\n{arch} {dtype} {threads} threads: {first:.1f} + {second:.1f} instructions an element")
    # Of the 35 (70 for float32) in whose time an H100's memory reads and writes an element.
    assert first <= 10
    assert second <= 7


def test_no_cluster_before_sm_90(code):
    """There the kernels are empty: launch.cu takes others."""
    for (arch, kernel, _), instructions in code.items():
        if arch == "sm_80" and kernel.startswith("cluster"):
            assert count([text for _, text in instructions], r"\bLD|\bST") == 0


@pytest.mark.parametrize("arch", ARCHS)
def test_no_kernel_touches_local_memory_or_adds_floats_atomically(code, arch):
    for (where, kernel, dtype), instructions in code.items():
        texts = [text for _, text in instructions]
        if where == arch:
            assert count(texts, r"\bLDL|\bSTL") == 0, (kernel, dtype)
            assert count(texts, r"\b(RED|ATOM)\w*\.\S*F(16|32|64)") == 0, (kernel, dtype)
