"""The machine that executes the CUDA kernels on a CPU finds bugs: one planted after the other.

The bugs are planted in a copy of the kernels, all of them in one build, and CWT_PLANTED picks one.
"""

import shutil
from typing import NamedTuple

import pytest
import torch

from tests.simt.harness import NO_GRAD, ROOT, SANITIZERS, Case, Output, Runner, encode, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"CUDA kernels on the CPU: {missing()}")


class Bug(NamedTuple):
    """What is replaced where, by what, and which build must say what of it."""

    file: str
    good: str
    bad: str
    build: str
    says: str


BUGS = {
    "missing barrier before a read": Bug(
        "block_reduce.cuh",
        "    __syncthreads();\n    const bool has_warp",
        "    if (!PLANTED) __syncthreads();\n    const bool has_warp",
        "tsan",
        "data race",
    ),
    "missing barrier before a write": Bug(
        "block_reduce.cuh", "turn_ ^= 1;", "turn_ ^= !PLANTED;", "tsan", "data race"
    ),
    "divergent barrier": Bug(
        "block_reduce.cuh",
        "    __syncthreads();\n    return warp_max",
        "    if (!PLANTED || warp_of_thread() != 1) __syncthreads();\n    return warp_max",
        "plain",
        "divergent __syncthreads",
    ),
    "global memory out of bounds": Bug(
        "row_span.cuh",
        "if (i + u * step < packs) bits[u]",
        "if (i + u * step < packs + PLANTED) bits[u]",
        "asan",
        "heap-buffer-overflow",
    ),
    "shared memory out of bounds": Bug(
        "rows.cuh",
        "if (again && slot < cached_)",
        "if (again && slot < cached_ + PLANTED)",
        "asan",
        "heap-buffer-overflow",
    ),
    "misaligned 16-byte store": Bug(
        "row_span.cuh",
        "(((at ^ to) & 15) != 0 || grad_stride != 1)",
        "((((at ^ to) & 15) != 0 && !PLANTED) || grad_stride != 1)",
        "asan",
        "misaligned address",
    ),
    "wrong shuffle mask": Bug(
        "block_reduce.cuh",
        "x += __shfl_xor_sync(kFullWarp, x, offset)",
        "x += __shfl_xor_sync(PLANTED ? 0x7fffffffu : kFullWarp, x, offset)",
        "plain",
        "mask",
    ),
    "lost update": Bug(
        "plan.cuh",
        "  return static_cast<int64_t>(atomicAdd(",
        "  if (PLANTED) return (*counter += n) - n;\n  return static_cast<int64_t>(atomicAdd(",
        "tsan",
        "data race",
    ),
    "missing fence before the last block": Bug(
        "plan.cuh",
        "    __threadfence();  // this block's results",
        "    if (!PLANTED) __threadfence();  // this block's results",
        "tsan",
        "data race",
    ),
    "sums read before they are told": Bug(
        "cluster_exchange.cuh",
        "if (shape_.cluster > 1 && warp_of_thread() == 0)",
        "if (shape_.cluster > 1 && warp_of_thread() == 0 && !PLANTED)",
        "plain",
        "shared memory of a block that has exited",
    ),
    "all but one warp do not wait": Bug(
        "cluster_exchange.cuh",
        "    __syncthreads();\n",
        "    if (shape_.cluster == 1 || !PLANTED) __syncthreads();\n",
        "tsan",
        "data race",
    ),
    "missing first barrier of a cluster": Bug(
        "rows_cluster.cuh",
        "  if (shape.cluster > 1)\n    cluster_sync();",
        "  if (shape.cluster > 1 && PLANTED)\n    __syncthreads();\n"
        "  else if (shape.cluster > 1)\n    cluster_sync();",
        "plain",
        "may not have started",
    ),
    "told before all lanes have read": Bug(
        "cluster_exchange.cuh",
        "    __syncwarp();  // who",
        "    if (!PLANTED) __syncwarp();  // who",
        "tsan",
        "data race",
    ),
    "wrong rank": Bug(
        "cluster_exchange.cuh",
        "tell_rank(to, rank, v,",
        "tell_rank(to, rank + PLANTED, v,",
        "plain",
        "there is no block 2 in the cluster",
    ),
    "exit before a peer has done": Bug(
        "rows_cluster.cuh",
        "    exchange.wait();\n",
        "    if (PLANTED && cluster_rank() == 1) return;\n    exchange.wait();\n",
        "plain",
        "exited",
    ),
    "a row read before it has arrived": Bug(
        "rows_cluster.cuh",
        "    incoming.wait(row);\n",
        "    if (!PLANTED || warp_of_thread() == 0) incoming.wait(row);\n",
        "plain",
        "differs between schedules",
    ),
    "too few bytes announced": Bug(
        "rows_cluster.cuh",
        "(slice.packs + before + after)",
        "(slice.packs + before + after - PLANTED)",
        "plain",
        "more bytes are copied than were announced",
    ),
    "too many bytes announced": Bug(
        "cluster_exchange.cuh",
        "16 * (count() + 2)",
        "16 * (count() + 2 + PLANTED)",
        "plain",
        "deadlock",
    ),
    "a copy from before the row": Bug(
        "rows_cluster.cuh",
        "copy_async(packs_ + 2, whole + slice.first,",
        "copy_async(packs_ + 2, PLANTED ? whole + slice.first - 1 : whole + slice.first,",
        "asan",
        "heap-buffer-overflow",
    ),
    "a grid of one block": Bug(
        "launch.cu",
        "std::min<int64_t>(a.layout.rows, clusters);",
        "std::min<int64_t>(a.layout.rows, PLANTED ? 1 : clusters);",
        "plain",
        "leave multiprocessors idle",
    ),
    "the two halves of the exchange not in turns": Bug(
        "cluster_exchange.cuh",
        "row_.half() * (count()",
        "row_.half() * !PLANTED * (count()",
        "tsan",
        "race",
    ),
    "unwritten result": Bug(
        "rows.cuh",
        "out[kEntropy * rows] = stats",
        "if (!PLANTED) out[kEntropy * rows] = stats",
        "plain",
        "differs between schedules",
    ),
}


@pytest.fixture(scope="module")
def runners(tmp_path_factory):
    """Three builds of the planted copy, bfloat16 only."""
    folder = tmp_path_factory.mktemp("planted")
    for part in ("csrc", "tests/simt"):
        shutil.copytree(ROOT / part, folder / part)
    for number, bug in enumerate(BUGS.values(), 1):
        file = folder / "csrc/chunk_loss/cuda" / bug.file
        text = file.read_text()
        assert text.count(bug.good) == 1, f"{bug.file} holds {text.count(bug.good)} x {bug.good!r}"
        planted = bug.bad.replace("PLANTED", f"(planted == {number})")
        file.write_text(text.replace(bug.good, planted))
    platform = folder / "csrc/chunk_loss/cuda/platform.cuh"
    variable = (
        "#include <cstdlib>\n"
        'inline const int planted = std::atoi(std::getenv("CWT_PLANTED"));\nnamespace cwt {\n'
    )
    platform.write_text(platform.read_text().replace("namespace cwt {\n", variable, 1))
    launcher = folder / "csrc/chunk_loss/cuda/launch.cu"
    text = launcher.read_text()
    for dtype in ("__half()", "float()", "double()"):
        assert text.count(f"return run({dtype});") == 1
        text = text.replace(f"return run({dtype});", "break;")
    launcher.write_text(text)
    source = folder / "tests/simt/run_chunk_loss.cpp"
    builds = {name: Runner(folder, name, source) for name in SANITIZERS}
    yield builds
    for build in builds.values():
        build.stop()


def cases():
    """Cases that between them pass every planted line."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 72, generator=g).to(torch.bfloat16)
    labels, ids = torch.arange(6), torch.tensor([0, 1, 0, 1, 0, 1])
    base = Case(logits, labels, ids, 2, schedules=4, shared_bytes=4096 + 64 * 16)
    two = torch.randn(9, 8000, generator=g).to(torch.bfloat16)  # of a cluster of two blocks
    nine = (torch.arange(9), torch.arange(9) % 2)
    wide = torch.randn(2, 800, generator=g).to(torch.bfloat16)
    return [
        base,
        Case(logits, labels, ids, 2, schedules=2, offset=1, grad_mode=NO_GRAD),
        Case(logits, labels, ids, 2, schedules=2, offset=4),
        Case(wide, labels[:2], ids[:2], 2, schedules=2, shared_bytes=4096 + 64 * 16),
        Case(two, *nine, 2, schedules=3),
        Case(two[:, :4000].contiguous(), *nine, 2, schedules=2, offset=3, grad_offset=3),
    ]


def findings(runner, number):
    """Returns everything that a run has to complain about."""
    stdout, stderr, _ = runner.run(b"".join(map(encode, cases())), {"CWT_PLANTED": str(number)})
    output, found = Output(stdout), stderr
    for case in cases():
        if output.at >= len(stdout):
            break
        start = output.at
        error = output.error()
        found += error
        if not error:
            output.at = start
            output.results(case)
    return found


@pytest.mark.parametrize("build", list(SANITIZERS))
def test_nothing_is_found_where_nothing_is_planted(runners, build):
    assert findings(runners[build], 0) == ""


@pytest.mark.parametrize("name", list(BUGS))
def test_planted_bug_is_found(runners, name):
    bug = BUGS[name]
    found = findings(runners[bug.build], list(BUGS).index(name) + 1)
    assert bug.says in found, f"the {bug.build} build says only: {found[-2000:]!r}"
