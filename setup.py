"""Builds the native parts with ninja: what to compile, with which flags, and nothing else.

cwt_ext/libcwt_ext.so       tensor operators on PyTorch's stable ABI; no Python, no CUDA
cwt_ext/libcwt_ext_cuda.so  their CUDA kernels, where there is nvcc; needs no GPU, no CUDA torch
cwt_ext/_segment*.so        the segmenter, a pybind11 module; no torch

CWT_CUDA=0 builds no CUDA, 1 insists on it, auto (default) looks for nvcc (csrc/cuda_toolkit.py);
TORCH_CUDA_ARCH_LIST as in torch, CXX the C++ compiler, also nvcc's. CWT_DEBUG=1 builds with -O0 -g,
CWT_SANITIZE=address,undefined (or thread) with these sanitizers (tests/test_sanitizers.py).
*_avx2.cpp, *_avx512.cpp and *_neon.cpp are compiled for that instruction set and called only where
the processor has it; nothing is built with -march=native.
"""

import importlib.util
import os
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))
from cuda_toolkit import find_nvcc  # noqa: E402

DEBUG = os.environ.get("CWT_DEBUG") == "1"
SANITIZE = os.environ.get("CWT_SANITIZE", "")
MACHINE = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())

OPS = "cwt_ext.libcwt_ext"
CUDA = "cwt_ext.libcwt_ext_cuda"
SEGMENT = "cwt_ext._segment"

COMMON = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter"]
COMMON += ["-fno-math-errno"]  # a square root is one instruction
SANITIZERS = [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"] if SANITIZE else []
if SANITIZE:
    COMMON += ["-O1", "-g", "-fno-omit-frame-pointer", *SANITIZERS]
else:
    COMMON += ["-O0", "-g"] if DEBUG else ["-O3", "-DNDEBUG"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", *AVX2]
INSTRUCTION_SETS = {  # by the ending of a source's name: the machine that may have it, its flags
    "_avx2": ("x86_64", AVX2),
    "_avx512": ("x86_64", AVX512),
    "_neon": ("aarch64", []),  # every 64-bit Arm processor has it
}

NVCC_FLAGS = ["-std=c++17", "-O3", "-t 2", "-Xcompiler=-fPIC,-fvisibility=hidden"]
CUDA_STUB = "csrc/chunk_loss/cuda/stub/torch_cuda.cpp"  # a CPU build of torch has none to link with


def package_dir(name: str) -> Path:
    """Returns the folder of an installed package without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(
            f"setup.py: building cwt_ext needs the package {name!r}, and {sys.executable} has "
            f"none. Use `pip install .`, or install {name} first for --no-build-isolation."
        )
    return Path(spec.origin).parent


def instruction_set(source: Path) -> list[str] | None:
    """Returns the flags of a source for one instruction set, [] for others; None: not here."""
    for ending, (machine, set_flags) in INSTRUCTION_SETS.items():
        if source.stem.endswith(ending):
            return set_flags if machine == MACHINE else None
    return []


def sources(*folders: str) -> list[str]:
    """Returns the sources in csrc/<folder>, less those for instruction sets not of this machine."""
    found = []
    for folder in folders:
        for ending in ("*.cpp", "*.cu"):
            found += sorted((ROOT / "csrc" / folder).glob(ending))
    return [str(f.relative_to(ROOT)) for f in found if instruction_set(f) is not None]


def torch_flags() -> tuple[list[str], list[str], list[str]]:
    """Returns (defines, include folders, link flags) of what uses torch's stable ABI."""
    torch = package_dir("torch")
    defines = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]  # any torch >= 2.10
    include = [str(torch / "include"), str(torch / "include/torch/csrc/api/include")]
    return defines, include, [f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"]


def flags(library: str) -> tuple[list[str], list[str]]:
    """Returns (compile flags, link flags) of one library."""
    if library == SEGMENT:
        defines, link = [], ["-pthread"]
        include = [str(package_dir("pybind11") / "include"), sysconfig.get_path("include")]
        if sys.platform == "darwin":
            link += ["-undefined", "dynamic_lookup"]  # Python's own symbols
    else:
        defines, include, link = torch_flags()
    if library == CUDA:
        defines.append("-DUSE_CUDA")
        include.append(str(NVCC.toolkit / "include"))
        link += [f"-L{NVCC.toolkit / 'lib'}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    folders = [f"-I{ROOT / 'csrc'}", *(f"-isystem{path}" for path in include)]
    return COMMON + defines + folders, ["-shared", *SANITIZERS, *link]


def escape(path: Path) -> str:
    """Returns a path as a ninja file wants it."""
    return str(path).replace("$", "$$").replace(":", "$:").replace(" ", "$ ")


class NinjaFile:
    """The text of a build.ninja: one object a source, one library of objects."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cxx = os.environ.get("CXX", "g++")
        self.lines = [
            "rule cc",
            "  command = $cc -MD -MF $out.d $flags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = {self.cxx} $in $flags -o $out",
        ]

    def compile(self, source: str, compile_flags: list[str]) -> Path:
        """Adds an object and returns its path."""
        target = self.folder / (source.replace("/", "_") + ".o")
        compiler = self.cxx
        given = compile_flags + (instruction_set(Path(source)) or [])
        if source.endswith(".cu"):
            compiler, given = NVCC.path, NVCC_FLAGS + NVCC.archs
            if "CXX" in os.environ:
                given = [f"-ccbin={self.cxx}", *given]
        self.lines += [
            f"build {escape(target)}: cc {escape(ROOT / source)}",
            f"  cc = {compiler}",
            "  flags = " + " ".join(given),
        ]
        return target

    def link(self, target: Path, inputs: list[Path], link_flags: list[str]) -> None:
        """Adds a library."""
        self.lines += [
            f"build {escape(target)}: link {' '.join(map(escape, inputs))}",
            "  flags = " + " ".join(link_flags),
        ]

    def run(self) -> None:
        """Writes the file and builds what changed; MAX_JOBS limits how many at a time."""
        (self.folder / "build.ninja").write_text("\n".join(self.lines) + "\n")
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        ninja = [sys.executable, "-m", "ninja", "-C", str(self.folder), *jobs]
        subprocess.run(ninja, check=True)


class NinjaBuild(build_ext):
    """Compiles every source that changed, in parallel, and links the libraries."""

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.split(".")[-1].startswith("lib"):  # setuptools asks by either name
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)

    def build_extensions(self) -> None:
        variant = "-".join(
            [sysconfig.get_platform(), str(sys.version_info[1]), *SANITIZE.split(",")]
        )
        folder = ROOT / "build" / f"native-{variant.rstrip('-')}"
        folder.mkdir(parents=True, exist_ok=True)
        ninja = NinjaFile(folder)
        stub = folder / "libtorch_cuda.so"
        if NVCC:
            soname = ["-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so"]
            ninja.link(stub, [ROOT / CUDA_STUB], soname)
        for extension in self.extensions:
            compile_flags, link_flags = flags(extension.name)
            objects = [ninja.compile(source, compile_flags) for source in extension.sources]
            if extension.name == CUDA:
                objects.append(stub)
            target = Path(self.get_ext_fullpath(extension.name)).resolve()
            target.parent.mkdir(parents=True, exist_ok=True)
            ninja.link(target, objects, link_flags)
        ninja.run()


NVCC = find_nvcc()
EXTENSIONS = [
    Extension(OPS, sources("", "chunk_loss/cpu")),
    Extension(SEGMENT, sources("segment")),
]
if NVCC:
    EXTENSIONS.append(Extension(CUDA, sources("chunk_loss/cuda")))
setup(ext_modules=EXTENSIONS, cmdclass={"build_ext": NinjaBuild})
