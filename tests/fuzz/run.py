"""Fuzzes one of `targets`, guided by the coverage of its Python code: run.py TARGET SECONDS.

The fuzzer is libFuzzer, in atheris. What it found worth keeping is in build/fuzz/TARGET, an input
that fails too, as crash-*; the exit status is then not 0.
"""

import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "python"), str(ROOT / "tests")]

with atheris.instrument_imports(include=["cwt", "cwt_ext"]):
    from fuzz import targets


def main() -> None:
    """Runs until the time is over or something fails."""
    name, seconds = sys.argv[1:]
    target = getattr(targets, name)
    corpus = ROOT / "build/fuzz" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(targets.SEEDS[target]):
        (corpus / f"seed-{i}").write_bytes(seed)
    words = corpus.with_suffix(".dict")
    escaped = ["".join(f"\\x{byte:02x}" for byte in word) for word in targets.HURTS]
    words.write_text("".join(f'"{word}"\n' for word in escaped))
    limits = [f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=4096", "-max_len=2000"]
    kept = [f"-dict={words}", f"-artifact_prefix={corpus}/", "-print_final_stats=1", "-verbosity=0"]
    atheris.Setup([sys.argv[0], str(corpus), *limits, *kept], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
