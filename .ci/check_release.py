"""Checks what `make release` made: python .ci/check_release.py FOLDER.

One source distribution and one wheel of the version that the code states, the same in CITATION.cff;
the wheel holds the native libraries and the application's data. Says what is left to do by hand.
"""

import re
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IN_WHEEL = (
    "cwt_ext/libcwt_ext.so",
    "cwt_ext/_segment.",
    "cwt_ext/py.typed",
    "cwt/students/tiny/model.safetensors",
    "cwt/presets/quick.yaml",
    "cwt/report/report.html.j2",
    "cwt/report/report.css",
    "cwt/teaching/prompts/",
    "cwt/data/readers/",
)


def stated_version(file: str, pattern: str) -> str:
    """Returns the version that a file of the project states."""
    found = re.search(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise SystemExit(f"{file}: wanted a line like {pattern}, found none.")
    return found[1]


def check_wheel(path: Path) -> str:
    """Returns what a wheel holds, in one line."""
    names = zipfile.ZipFile(path).namelist()
    for wanted in IN_WHEEL:
        if not any(name.startswith(wanted) for name in names):
            raise SystemExit(f"{wanted} is not in {path}.")
    cuda = "in" if "cwt_ext/libcwt_ext_cuda.so" in names else "not in"
    return f"{path}: {len(names)} files, CUDA kernels {cuda} it"


def main(folder: Path) -> None:
    """Checks the files of one release."""
    version = stated_version("cwt_ext/__init__.py", r'^__version__ = "([^"]+)"')
    cited = stated_version("CITATION.cff", r"^version: (\S+)$")
    if cited != version:
        raise SystemExit(f"CITATION.cff says {cited}, cwt_ext/__init__.py {version}.")
    sources = [path.name for path in folder.glob("*.tar.gz")]
    if sources != [f"cwt_ext-{version}.tar.gz"]:
        raise SystemExit(f"{folder}: wanted cwt_ext-{version}.tar.gz, found {sources}.")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1 or not wheels[0].name.startswith(f"cwt_ext-{version}-"):
        raise SystemExit(f"{folder}: wanted one wheel of {version}, found {wheels}.")
    print(check_wheel(wheels[0]))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## {re.escape(version)} - \d{{4}}-\d\d-\d\d$", changes, re.MULTILINE):
        print(f"CHANGELOG.md has no section '## {version} - DATE' yet: a rehearsal, not a release.")
    if "-linux_" in wheels[0].name:
        print("The wheel fits this machine; those for everyone come from cibuildwheel.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
