"""Builds the native parts with ninja: what to compile, with which flags, and nothing else.

cwt_ext/libcwt_ext.so       tensor operators on PyTorch's stable ABI; no Python, no CUDA
cwt_ext/libcwt_ext_cuda.so  their CUDA kernels, where there is nvcc; needs no GPU, no CUDA torch
cwt_ext/_segment*.so        the segmenter, a pybind11 module; no torch

CWT_CUDA=0 builds no CUDA, 1 insists on it, auto (default) looks for nvcc; TORCH_CUDA_ARCH_LIST as
in torch. CWT_DEBUG=1 builds with -O0 -g. *_avx2.cpp and *_avx512.cpp are compiled for that
instruction set and called only where the processor has it; nothing is built with -march=native.
"""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
DEBUG = os.environ.get("CWT_DEBUG") == "1"
X86 = platform.machine() in ("x86_64", "AMD64")

COMMON = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter"]
COMMON += ["-fno-math-errno"]  # a square root is one instruction
COMMON += ["-O0", "-g"] if DEBUG else ["-O3", "-DNDEBUG"]
ISA = {"_avx2": ["-mavx2", "-mfma", "-mf16c"], "_avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq",
       "-mavx512vl", "-mfma", "-mf16c", "-mavx2"]} if X86 else {}  # fmt: skip
OPS, SEGMENT, CUDA = "cwt_ext.libcwt_ext", "cwt_ext._segment", "cwt_ext.libcwt_ext_cuda"
CUDA_ARCHS = "8.0;9.0;10.0+PTX"
NVCC_FLAGS = ["-std=c++17", "-O3", "-t 2", "-Xcompiler=-fPIC,-fvisibility=hidden"]


def package_dir(name: str) -> Path:
    """Returns the folder of an installed package without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(
            f"setup.py: building cwt_ext needs the package {name!r}, and {sys.executable} has "
            f"none. Use `pip install .`, or install {name} first for --no-build-isolation."
        )
    return Path(spec.origin).parent


def sources(*folders: str) -> list[str]:
    """Returns the sources in csrc/<folder>, less those for instruction sets not of this machine."""
    kinds = [f"csrc/{folder}/*.{kind}" for folder in folders for kind in ("cpp", "cu")]
    files = [f for kind in kinds for f in sorted(ROOT.glob(kind.replace("//", "/")))]
    wrong = () if X86 else ("_avx2", "_avx512")
    return [str(f.relative_to(ROOT)) for f in files if not f.stem.endswith(wrong or "\0")]


def cuda() -> tuple[str, Path, list[str]] | None:
    """Returns (nvcc, toolkit as nvcc itself names it, architecture flags); None: do without."""
    want, home = os.environ.get("CWT_CUDA", "auto"), os.environ.get("CUDA_HOME", "")
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    if want not in ("auto", "0", "1") or (want == "1" and nvcc is None):
        raise SystemExit(f"setup.py: CWT_CUDA={want}: must be auto, 0, or 1 with nvcc on PATH.")
    if want == "0" or nvcc is None:
        return None
    answer = subprocess.run([nvcc, "-dryrun", "x.cu"], capture_output=True, text=True).stderr
    include = re.search(r'^#\$ INCLUDES="-I([^"]+)"', answer, re.MULTILINE)
    if include is None:
        raise SystemExit(f"setup.py: {nvcc} -dryrun names no toolkit. CWT_CUDA=0 does without.")
    archs = []
    for arch in re.split("[; ]+", os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHS):
        number = re.sub(r"\.|\+PTX", "", arch)
        code = f"[sm_{number},compute_{number}]" if arch.endswith("+PTX") else f"sm_{number}"
        archs.append(f"-gencode=arch=compute_{number},code={code}")
    return nvcc, Path(include[1]).parent, archs


def flags(library: str) -> tuple[list[str], list[str]]:
    """Returns (compile flags, link flags) of one library."""
    if library in (OPS, CUDA):
        torch = package_dir("torch")
        include = [torch / "include", torch / "include/torch/csrc/api/include"]
        compile_flags = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]  # any torch >= 2.10
        link = [f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"]
        if library == CUDA:
            include.append(NVCC[1] / "include")
            compile_flags.append("-DUSE_CUDA")
            link += [f"-L{NVCC[1] / 'lib'}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    else:
        include = [package_dir("pybind11") / "include", sysconfig.get_path("include")]
        compile_flags, link = [], ["-pthread"]
    compile_flags += [f"-I{ROOT / 'csrc'}", *(f"-isystem{path}" for path in include)]
    return COMMON + compile_flags, ["-shared", *link]


def escape(text: str) -> str:
    """Returns text as a ninja file wants a path."""
    return text.replace("$", "$$").replace(":", "$:").replace(" ", "$ ")


class NinjaBuild(build_ext):
    """Compiles every source that changed, in parallel, and links the libraries."""

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.split(".")[-1].startswith("lib"):  # setuptools asks by either name
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)

    def build_extensions(self) -> None:
        build = ROOT / "build" / f"native-{sysconfig.get_platform()}-{sys.version_info[1]}"
        build.mkdir(parents=True, exist_ok=True)
        cxx = os.environ.get("CXX", "g++")
        rules = [
            "rule cc\n  command = $cc -MD -MF $out.d $flags -c $in -o $out\n"
            "  depfile = $out.d\n  deps = gcc",
            f"rule link\n  command = {cxx} $in $flags -o $out",
        ]
        stub = escape(str(build / "libtorch_cuda.so"))  # a CPU build of torch has none to link with
        rules.append(f"build {stub}: link {escape(str(ROOT / 'csrc/cuda/stub/torch_cuda.cpp'))}")
        rules.append("  flags = -shared -fPIC -Wl,-soname,libtorch_cuda.so")
        for extension in self.extensions:
            compile_flags, link_flags = flags(extension.name)
            objects = []
            for source in extension.sources:
                isa = next((f for s, f in ISA.items() if Path(source).stem.endswith(s)), [])
                obj = str(build / source.replace("/", "_")) + ".o"
                objects.append(escape(obj))
                rules.append(f"build {escape(obj)}: cc {escape(str(ROOT / source))}")
                nvcc, given = source.endswith(".cu"), compile_flags + isa
                rules.append("  flags = " + " ".join(NVCC_FLAGS + NVCC[2] if nvcc else given))
                rules.append(f"  cc = {NVCC[0] if nvcc else cxx}")
            objects += [stub] if extension.name == CUDA else []
            target = Path(self.get_ext_fullpath(extension.name)).resolve()
            target.parent.mkdir(parents=True, exist_ok=True)
            rules.append(f"build {escape(str(target))}: link {' '.join(objects)}")
            rules.append("  flags = " + " ".join(link_flags))
        (build / "build.ninja").write_text("\n".join(rules) + "\n")
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        subprocess.run([sys.executable, "-m", "ninja", "-C", str(build), *jobs], check=True)


NVCC = cuda()
setup(
    ext_modules=[
        *([Extension(CUDA, sources("cuda"))] if NVCC else []),
        Extension(OPS, sources("", "cpu")),
        Extension(SEGMENT, sources("segment")),
    ],
    cmdclass={"build_ext": NinjaBuild},
)
