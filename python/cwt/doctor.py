"""`cwt doctor`: the library's doctor, then what the application needs, and what to do about it."""

import os
import shutil
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from cwt.errors import UserError

# Packages that single features need, and which.
OPTIONAL = {
    "peft": "students with LoRA",
    "sentence-transformers": "--chunk.embeddings with such a folder",
    "scikit-learn": "--chunk.embeddings tfidf",
    "trl": "training on what `cwt export --to trl` wrote",
}
LITTLE_SPACE = 2 << 30  # bytes: one student of 135 M parameters and its checkpoint
QUESTION = "Zoe has 16 apples. Max gives 9 more. How many apples does Zoe have?"
ANSWER = "The answer is 25"


def diagnose_installation(out: Path) -> int:
    """Prints what this installation has; returns 0 where everything works, else 1.

    Args:
        out: where runs would be written; its disk is looked at.
    """
    from cwt_ext import doctor

    works = doctor.main() == 0
    for title, check in (
        ("packages", report_packages),
        ("device", report_device),
        ("disk", lambda: report_disk(out)),
        ("student", check_student),
    ):
        works &= _attempt(title, check)
    print("cwt: all good" if works else "cwt: something is wrong: see FAILED above")
    return 0 if works else 1


def _line(name: str, value: object) -> None:
    print(f"  {name:<22} {value}")


def _attempt(title: str, check: Callable[[], None]) -> bool:
    print(f"cwt: {title}")
    try:
        check()
    except (UserError, ImportError, OSError, RuntimeError) as error:
        print(f"FAILED {title}: {error}")
        return False
    return True


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def report_packages() -> None:
    """Prints the versions of what the extra `app` asks for, and of optional packages.

    Raises:
        UserError: one is missing or of a version that is not supported.
    """
    wrong = []
    names = set()
    for requirement in _requirements():
        found = _version(requirement.name)
        names.add(requirement.name)
        _line(requirement.name, found or "missing")
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name}{requirement.specifier} (found: {found or 'none'})")
    for name, purpose in OPTIONAL.items():
        if name not in names:
            _line(name, _version(name) or f"not installed; only for {purpose}")
    if wrong:
        raise UserError(f"wanted {', '.join(wrong)}; run pip install 'cwt-ext[app]'.")


def _requirements() -> list[Requirement]:
    """Returns what the extra `app` asks for; nothing where cwt-ext is not installed."""
    try:
        lines = metadata.requires("cwt-ext") or []
    except metadata.PackageNotFoundError:
        _line("cwt-ext", "not installed as a package: versions are not compared")
        return []
    found = map(Requirement, lines)
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": "app"})]


def report_device() -> None:
    """Prints where accelerate would train, and the memory that is free there."""
    import torch
    from accelerate import Accelerator

    device = Accelerator().device
    _line("training runs on", device)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        _line("GPU memory", f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    elif hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        _line("memory", f"{free / 2**30:.1f} GiB free, caches not counted")


def report_disk(out: Path) -> None:
    """Prints the space where runs would be written.

    Raises:
        UserError: nothing can be written there.
    """
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    _line("free for runs", f"{free / 2**30:.1f} GiB in {folder}")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{folder}: cannot be written to ({reason}); give another --out.") from None
    if free < LITTLE_SPACE:
        print("  hint: every row of the table keeps a student's weights, and while it trains three")
        print("        times as much in a checkpoint. Give --out on a larger disk.")


def check_student() -> None:
    """Lets the embedded student answer a question of one step, which it knows.

    Raises:
        UserError: it answers something else.
    """
    from cwt.students.load import load_student, quiet_libraries

    quiet_libraries()
    student = load_student("tiny")
    written = student.text(student.generate([student.prompt(QUESTION)], 60)[0]).strip()
    _line("tiny answers", f"...{written[-len(ANSWER) :]}")
    if not written.endswith(ANSWER):
        raise UserError(
            f"asked {QUESTION!r}, wanted {ANSWER!r}, got {written!r}. Was the folder of the "
            "embedded student changed? Else one of the packages above computes it otherwise: "
            "install the versions of .ci/requirements.lock."
        )
