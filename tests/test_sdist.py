"""The source distribution holds everything that a build needs."""

import subprocess
import sys
import tarfile
from pathlib import Path

import cwt_ext

ROOT = Path(__file__).resolve().parents[1]


def test_the_source_distribution_holds_every_native_file(tmp_path):
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    command += ["sdist", "--dist-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [archive] = tmp_path.glob("*.tar.gz")
    assert archive.name == f"cwt_ext-{cwt_ext.__version__}.tar.gz"
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[-1] for name in tar.getnames()}
    wanted = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    wanted += [*(ROOT / "cwt_ext").glob("*.py*"), ROOT / "setup.py", ROOT / "pyproject.toml"]
    wanted += [ROOT / "python/cwt/py.typed"]
    assert {str(path.relative_to(ROOT)) for path in wanted if path.suffix != ".pyc"} <= names
