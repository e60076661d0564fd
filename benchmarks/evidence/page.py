"""Puts the tables and the figures of the evidence pages in their places, from the files of results.

    python benchmarks/evidence/page.py

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; page_tables.py has the names.
"""

import re

import rivals_tables
from cwt.errors import UserError
from cwt.files import write_text
from page_figure import figure
from page_tables import GENERATED_RIVALS, HERE, generated_rivals, panels, tables
from real_numbers import load

PAGES = (HERE / "README.md", HERE / "rivals.md", HERE / "real" / "README.md")
FIGURE, RIVALS_FIGURE = HERE / "figure.svg", HERE / "rivals.svg"
_TABLE = re.compile(r"<!-- table: ([\w-]+) -->\n.*?<!-- end -->", re.DOTALL)


def filled(text: str) -> str:
    """Returns a page with its tables as the files of results have them.

    Raises:
        UserError: a table of a name that there is not.
    """
    known = tables()

    def put(match: re.Match[str]) -> str:
        name = match[1]
        if name not in known:
            raise UserError(f"table: wanted one of {', '.join(known)}, got {name!r}.")
        return "\n".join([f"<!-- table: {name} -->", "", *known[name](), "", "<!-- end -->"])

    return _TABLE.sub(put, text)


def main() -> None:
    """Writes the pages and the figures."""
    for path in PAGES:
        write_text(path, filled(path.read_text(encoding="utf-8")))
    write_text(FIGURE, figure(panels(load())))
    shown = [
        p for task in GENERATED_RIVALS for p in rivals_tables.panels(generated_rivals(task), task)
    ]
    write_text(RIVALS_FIGURE, figure(shown))


if __name__ == "__main__":
    main()
