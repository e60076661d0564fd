"""Prompt styles: a template file each, rendered into the messages of a request."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta

from cwt.data.example import Example
from cwt.errors import UserError
from cwt.teaching.teacher import Message

FOLDER = Path(__file__).parent / "prompts"
VARIABLES = {"question", "answer", "shots"}
_ENVIRONMENT = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)


@dataclass(frozen=True)
class Style:
    """A prompt style.

    Attributes:
        name: the style's name, or the path of the user's template.
        source: the template's text.
        shots: solved examples for a template that shows some.
        shot_count: how many of them are shown.
    """

    name: str
    source: str
    shots: tuple[Example, ...] = ()
    shot_count: int = 4

    @property
    def tells_the_answer(self) -> bool:
        """Whether the template shows the teacher the answer."""
        return "answer" in _variables(self.source)

    def messages(self, question: Example) -> list[Message]:
        """Returns the messages of a question.

        A template's blocks `system` and `user` are one message each; a template without blocks is
        the user's message as a whole. An example that is the question itself is never shown.
        """
        asked = _same_words(question.question)
        shots = [shot for shot in self.shots if _same_words(shot.question) != asked]
        values = {
            "question": question.question,
            "answer": question.answer,
            "shots": shots[: self.shot_count],
        }
        template = _ENVIRONMENT.from_string(self.source)
        if "user" not in template.blocks:
            return [{"role": "user", "content": template.render(values)}]
        return [
            {"role": role, "content": _render_block(template, role, values)}
            for role in ("system", "user")
            if role in template.blocks
        ]


def load_styles(names: str, shots: Sequence[Example], shot_count: int) -> list[Style]:
    """Returns the styles of a comma-separated list of names and paths.

    Raises:
        UserError: an unknown name, no such file, a repeated style, or a template that is no
            jinja2, does not show the question, or wants a variable that there is not.
    """
    found = [name.strip() for name in names.split(",")]
    if repeated := sorted({name for name in found if found.count(name) > 1}):
        raise UserError(f"style names {', '.join(repeated)} more than once.")
    styles = [Style(name, _read(name), tuple(shots), shot_count) for name in found]
    for style in styles:
        _check(style)
    if shots and not any("shots" in _variables(style.source) for style in styles):
        raise UserError(f"shots are for a template that shows them; style {names} does not.")
    return styles


def known_styles() -> list[str]:
    """Returns the names of the styles that ship with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.j2"))


def _read(name: str) -> str:
    path = FOLDER / f"{name}.j2" if name in known_styles() else Path(name)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"style must be {', '.join(known_styles())} or the path of a template, got {name!r}: "
            f"{error}."
        ) from None


def _check(style: Style) -> None:
    try:
        variables = _variables(style.source)
        blocks = set(_ENVIRONMENT.from_string(style.source).blocks)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{style.name}, line {error.lineno}: no jinja2: {error.message}") from None
    if unknown := sorted(variables - VARIABLES):
        raise UserError(
            f"{style.name}: there is no {', '.join(unknown)}; a template may use "
            f"{', '.join(sorted(VARIABLES))}."
        )
    if "question" not in variables:
        raise UserError(f"{style.name}: the template never shows {{{{ question }}}}.")
    if blocks and ("user" not in blocks or blocks - {"system", "user"}):
        raise UserError(
            f"{style.name}: a template has the blocks user and, if it likes, system; got "
            f"{', '.join(sorted(blocks))}."
        )
    try:
        style.messages(Example("", "question", (), "answer"))
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise UserError(f"{style.name}: cannot be rendered: {error}") from None


def _variables(source: str) -> set[str]:
    return jinja2.meta.find_undeclared_variables(_ENVIRONMENT.parse(source))


def _render_block(template: jinja2.Template, name: str, values: dict[str, Any]) -> str:
    return "".join(template.blocks[name](template.new_context(values)))


def _same_words(text: str) -> str:
    return " ".join(text.casefold().split())
