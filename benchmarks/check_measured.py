"""Fails where a declared case was neither measured nor skipped with a reason.

    python benchmarks/check_measured.py build/bench.json

Takes what `pytest benchmarks --benchmark-only --benchmark-json=build/bench.json` wrote. The cases
are those of cases.py, with --quick the small ones.
"""

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cases import declared


def problems(results: dict[str, Any], wanted: Iterable[str]) -> list[str]:
    """Returns a sentence for each case that was not measured as it should.

    Args:
        results: the JSON of pytest-benchmark, with our `skipped`: case -> reason.
        wanted: the ids of the cases.
    """
    found = []
    skipped = results["skipped"]
    measured = {b["extra_info"].get("case"): b for b in results["benchmarks"]}
    for case in wanted:
        if case in measured:
            seconds = measured[case]["stats"]["median"]
            figures = [seconds, *(measured[case]["extra_info"].get(k, 0) for k in FIGURES)]
            if not all(math.isfinite(value) and value > 0 for value in figures):
                found.append(f"{case}: not all of median, {', '.join(FIGURES)} > 0: {figures}")
        elif case not in skipped:
            found.append(f"{case}: neither measured nor skipped")
        elif not skipped[case].strip():
            found.append(f"{case}: skipped without a reason")
    return found


FIGURES = ("times_ours", "bytes", "copy_share")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    path = Path(sys.argv[1])
    if not path.exists():
        sys.exit(f"{path} is not there: nothing was measured.")
    results = json.loads(path.read_text())
    wanted = [case.id for case in declared(results["quick"])]
    found = problems(results, wanted)
    if found:
        sys.exit("\n".join([*found, f"{path}: {len(found)} of {len(wanted)} cases are missing."]))
    skipped = sum(case in results["skipped"] for case in wanted)
    print(f"{path}: {len(wanted) - skipped} cases measured, {skipped} skipped with a reason.")


if __name__ == "__main__":
    main()
