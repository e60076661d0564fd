"""The CUDA compiler that setup.py builds with: where it is, and for which architectures."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

OLDEST = 80  # the kernels steer the L2 cache with instructions of this generation
DEFAULT_ARCHS = ("8.0", "9.0", "10.0")
# The names that torch knows, of generations that the kernels run on.
NAMED_ARCHS = {"Ampere": "8.0;8.6", "Ada": "8.9", "Hopper": "9.0", "Blackwell": "10.0;10.3;12.0"}
_ARCH = re.compile(r"(\d+)\.(\d)([af]?)(\+PTX)?")


class Nvcc(NamedTuple):
    """The CUDA compiler, its toolkit as it names it itself, and its flags for the architectures."""

    path: str
    toolkit: Path
    version: str  # as in 13.0
    archs: list[str]


def find_nvcc() -> Nvcc | None:
    """Returns the CUDA compiler that CWT_CUDA asks for; None: do without."""
    want, home = os.environ.get("CWT_CUDA", "auto"), os.environ.get("CUDA_HOME", "")
    path = shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    if want not in ("auto", "0", "1") or (want == "1" and path is None):
        raise SystemExit(f"setup.py: CWT_CUDA={want}: must be auto, 0, or 1 with nvcc on PATH.")
    if want == "0" or path is None:
        return None
    include = re.search(r'^#\$ INCLUDES="-I([^"]+)"', _ask(path, "-dryrun", "x.cu"), re.MULTILINE)
    version = re.search(r"release (\d+\.\d+)", _ask(path, "--version"))
    if include is None or version is None:
        raise SystemExit(f"setup.py: {path} names no toolkit. CWT_CUDA=0 does without.")
    known = {int(n) for n in re.findall(r"compute_(\d+)", _ask(path, "--list-gpu-arch"))}
    archs = arch_flags(os.environ.get("TORCH_CUDA_ARCH_LIST", ""), known, version[1])
    return Nvcc(path, Path(include[1]).parent, version[1], archs)


def _ask(path: str, *arguments: str) -> str:
    done = subprocess.run([path, *arguments], capture_output=True, text=True)
    return done.stdout + done.stderr


def arch_flags(asked: str, known: set[int], version: str) -> list[str]:
    """Returns nvcc's flags for a TORCH_CUDA_ARCH_LIST; "" stands for the default.

    The default is what this nvcc knows of DEFAULT_ARCHS, and code for later architectures (PTX).

    Args:
        asked: entries as torch spells them (9.0, 9.0a, 10.0+PTX, Hopper), apart by ; or blanks.
        known: the architectures of this nvcc, as in 90.
        version: of nvcc, for the messages.

    Raises:
        SystemExit: an entry means nothing, or this nvcc does not know it, or all are too old.
    """
    if not asked.strip():
        usable = [arch for arch in DEFAULT_ARCHS if int(arch.replace(".", "")) in known]
        if not usable:
            raise SystemExit(
                f"setup.py: nvcc {version} knows none of {', '.join(DEFAULT_ARCHS)}: CUDA 11.8 or "
                "later is needed, or CWT_CUDA=0 to do without."
            )
        usable[-1] += "+PTX"
        return [_flag(arch, known, version) for arch in usable]
    entries = [e for name in re.split("[; ]+", asked.strip()) for e in _entries(name)]
    flags = [_flag(entry, known, version) for entry in entries if not _too_old(entry)]
    if not flags:
        raise SystemExit(
            f"setup.py: TORCH_CUDA_ARCH_LIST={asked!r} names no architecture of 8.0 or later, "
            "which the kernels need. Add one, or CWT_CUDA=0 to do without."
        )
    return flags


def _entries(name: str) -> list[str]:
    base, ptx = name.removesuffix("+PTX"), name.endswith("+PTX")
    entries = NAMED_ARCHS.get(base, base).split(";")
    entries[-1] += "+PTX" if ptx else ""
    return entries


def _number(entry: str) -> tuple[int, str, bool]:
    match = _ARCH.fullmatch(entry)
    if match is None:
        raise SystemExit(
            f"setup.py: TORCH_CUDA_ARCH_LIST has {entry!r}: wanted entries such as 9.0, 9.0a, "
            f"10.0+PTX or one of {', '.join(NAMED_ARCHS)}."
        )
    return int(match[1] + match[2]), match[3], match[4] is not None


def _too_old(entry: str) -> bool:
    old = _number(entry)[0] < OLDEST
    if old:
        print(f"setup.py: TORCH_CUDA_ARCH_LIST: {entry} is left out, the kernels need 8.0 or later")
    return old


def _flag(entry: str, known: set[int], version: str) -> str:
    number, variant, ptx = _number(entry)
    if number not in known:
        raise SystemExit(
            f"setup.py: nvcc {version} does not know the architecture {entry} of "
            f"TORCH_CUDA_ARCH_LIST. It knows {', '.join(str(n) for n in sorted(known))}."
        )
    name = f"{number}{variant}"
    code = f"[sm_{name},compute_{name}]" if ptx else f"sm_{name}"
    return f"-gencode=arch=compute_{name},code={code}"
