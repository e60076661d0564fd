"""How a student is asked: a template of this package, or the chat template of its tokenizer.

The style is saved with a student. Its tokenizer's chat template is saved so that a server which
knows nothing of this package asks as the student was trained.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from cwt.errors import UserError
from cwt.files import read_json, write_json

STYLE = "prompt.json"  # of a saved student: its style
_BEGIN, _END = "{#- cwt: asks as trained -#}", "{#- cwt: the template of the model -#}"


@dataclass(frozen=True)
class PromptStyle:
    """How a question is asked.

    Attributes:
        template: with {question} in it; in a chat it is the user's turn, without white space
            around it.
        chat: whether the tokenizer's chat template stands around it.
        system: the system's turn of a chat; empty: none.
    """

    template: str = "{question}\n"
    chat: bool = False
    system: str = ""

    def __post_init__(self) -> None:
        if "{question}" not in self.template:
            raise UserError(f"prompt template must hold {{question}}, got {self.template!r}.")
        if self.system and not self.chat:
            raise UserError("--system is a turn of a chat: it needs --chat-template.")

    @property
    def turn(self) -> str:
        """The user's turn, with {question} in it."""
        return self.template.strip() if self.chat else self.template

    def messages(self) -> list[dict[str, str]]:
        """Returns the turns of a chat before the student's."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.turn}]


def saved_style(folder: Path) -> PromptStyle:
    """Returns the style with which a student was saved, the default where it says none."""
    path = folder / STYLE
    return PromptStyle(**read_json(path)) if path.is_file() else PromptStyle()


def chat_prompt(tokenizer: PreTrainedTokenizerBase, style: PromptStyle) -> tuple[str, int | None]:
    """Returns the prompt that a chat template makes, with {question} in it, and the turn's end.

    Args:
        tokenizer: with a chat template.
        style: the turns.

    Returns:
        The text up to where the student goes on, and the id of the token that ends its turn: the
        first added token after it; None where the template has none there.

    Raises:
        UserError: the tokenizer has no chat template, or it refuses the turns (many know no system
            turn), or changes the question.
    """
    own = _own_template(tokenizer)
    if not own:
        raise UserError(
            "--chat-template: the student's tokenizer has no chat template; use --prompt."
        )

    def rendered(messages: list[dict[str, str]], go_on: bool) -> str:
        try:
            return str(
                tokenizer.apply_chat_template(
                    messages, chat_template=own, tokenize=False, add_generation_prompt=go_on
                )
            )
        except TemplateError as error:
            roles = ", ".join(m["role"] for m in messages)
            raise UserError(f"--chat-template: turns of {roles} are refused: {error}") from error

    prompt = rendered(style.messages(), True)
    if "{question}" not in prompt:
        raise UserError("--chat-template: the template changes the question.")
    answered = [*style.messages(), {"role": "assistant", "content": "{answer}"}]
    _, found, after = rendered(answered, False).rpartition("{answer}")
    ids = tokenizer.encode(after, add_special_tokens=False) if found else []
    return prompt, next((i for i in ids if i in tokenizer.added_tokens_decoder), None)


def _own_template(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Returns the model's own chat template, without what `asking_as_trained` put before it."""
    template: Any = tokenizer.chat_template
    return template.split(_END, 1)[-1] if isinstance(template, str) else template


def save_style(
    tokenizer: PreTrainedTokenizerBase, style: PromptStyle, folder: Path, bos: bool
) -> None:
    """Writes a tokenizer, whose chat template asks in a style, and the style.

    Args:
        tokenizer: keeps its own template.
        style: the style.
        folder: of the student.
        bos: whether the token that begins a sequence stands before a prompt that is no chat.
    """
    with _asking_as_trained(tokenizer, style, bos):
        tokenizer.save_pretrained(folder)
    write_json(folder / STYLE, asdict(style))


@contextmanager
def _asking_as_trained(
    tokenizer: PreTrainedTokenizerBase, style: PromptStyle, bos: bool
) -> Iterator[None]:
    """Inside this context the chat template asks in a style.

    For a chat, the turns are rewritten before the model's own template sees them. Else a tokenizer
    without a template of its own gets one that writes the prompt.
    """
    there, own = tokenizer.chat_template, _own_template(tokenizer)
    before, after = style.turn.split("{question}", 1)
    if style.chat and isinstance(own, str):
        plain = not (before or after or style.system)
        tokenizer.chat_template = own if plain else _rewriting(style, before, after) + own
    elif not own:
        begin = "{{- bos_token -}}" if bos else ""
        tokenizer.chat_template = (
            f"{_BEGIN}{begin}{{{{- {before!r} + messages[-1]['content'] + {after!r} -}}}}{_END}"
        )
    try:
        yield
    finally:
        tokenizer.chat_template = there


def _rewriting(style: PromptStyle, before: str, after: str) -> str:
    """Returns the beginning of a template that puts a style into the turns it is given."""
    turn = f"{{'role': 'user', 'content': {before!r} + turn['content'] + {after!r}}}"
    lines = [
        _BEGIN,
        "{%- set asked = namespace(turns=[]) -%}",
        "{%- for turn in messages -%}{%- if turn['role'] == 'user' -%}",
        f"{{%- set asked.turns = asked.turns + [{turn}] -%}}",
        "{%- else -%}{%- set asked.turns = asked.turns + [turn] -%}{%- endif -%}{%- endfor -%}",
    ]
    if style.system:
        system = f"{{'role': 'system', 'content': {style.system!r}}}"
        lines += [
            "{%- if not asked.turns or asked.turns[0]['role'] != 'system' -%}",
            f"{{%- set asked.turns = [{system}] + asked.turns -%}}{{%- endif -%}}",
        ]
    return "".join([*lines, "{%- set messages = asked.turns -%}", _END])
