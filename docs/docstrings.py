"""What mkdocstrings does not read in our docstrings: `Example:`, `::`, comments of fields."""

import linecache
import re
from typing import Any

import griffe


class OurDocstrings(griffe.Extension):
    """Shows examples and code as code, and the comment behind a field as its description."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Changes the docstring of one object."""
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"::$", ":", text, flags=re.MULTILINE)
        elif obj.is_attribute and obj.lineno and isinstance(obj.parent, griffe.Class):
            _, mark, comment = linecache.getline(str(obj.filepath), obj.lineno).partition("  # ")
            if mark:
                obj.docstring = griffe.Docstring(comment.strip(), parent=obj)
