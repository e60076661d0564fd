"""Export: training rows for other trainers, as text; needs no model.

A row trains one chunk (chunk-wise training, CWT) or what stays of a whole rationale. Every format
keeps the text exactly: white space between two units belongs to the later one. What each trainer
does with the rows, and what does not survive, is in the docstring of the format's function.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from cwt.data.example import Example

Format = Literal["trl", "messages", "alpaca", "axolotl", "jsonl"]
What = Literal["chunks", "rationales"]


@dataclass(frozen=True)
class Wording:
    """The text that stands around a rationale.

    Attributes:
        template: of the prompt, with {question} in it.
        bos: text of the token that begins a sequence; empty where the tokenizer adds none.
        eos: text of the token that ends a sequence.
        turn: the user's turn alone, with {question} in it, for formats whose trainer puts a chat
            template around it; empty: the template.
        system: the system's turn of a chat; empty: none.
    """

    template: str = "{question}\n"
    bos: str = ""
    eos: str = ""
    turn: str = ""
    system: str = ""

    def prompt(self, example: Example) -> str:
        """Returns the prompt that asks the example's question."""
        return self.template.replace("{question}", example.question)

    def asked(self, example: Example) -> str:
        """Returns the user's turn that asks the example's question."""
        return (self.turn or self.template).replace("{question}", example.question)

    @property
    def opening(self) -> list[dict[str, object]]:
        """The turns before the user's."""
        return [_says("system", self.system)] if self.system else []


@dataclass(frozen=True)
class Sample:
    """What one row trains.

    Attributes:
        example: with its chunks and the units that stay.
        chunk: the chunk that is trained, with what stays before it as context; None: all that
            stays is trained.
    """

    example: Example
    chunk: int | None = None

    @cached_property
    def trained(self) -> frozenset[int]:
        """The units that are trained."""
        of_unit = self.example.chunk_of_units()
        return frozenset(u for u in self.example.kept if self.chunk in (None, of_unit[u]))

    @property
    def end(self) -> int:
        """The number of units up to the end of what is trained."""
        return max(self.trained) + 1

    @property
    def ends(self) -> bool:
        """Whether the end of the sequence follows what is trained: after the last unit only."""
        return self.end == len(self.example.units)

    @property
    def context(self) -> str:
        """The units that stay before what is trained."""
        return self._joined(trained=False)

    @property
    def target(self) -> str:
        """The units that are trained."""
        return self._joined(trained=True)

    def _joined(self, trained: bool) -> str:
        kept = _kept(self.example, self.end)
        return "".join(self.example.units[u] for u in kept if (u in self.trained) == trained)


def samples(examples: Iterable[Example], what: What) -> Iterator[Sample]:
    """Yields the rows of some examples, in order; a chunk of which no unit stays has none.

    Example:
        >>> whole = Example("a", "1 + 1?", ("One.", " Two.", " The answer is 2"), "2")
        >>> [s.target for s in samples([whole.chunked([0, 2, 3])], "chunks")]
        ['One. Two.', ' The answer is 2']
    """
    for example in examples:
        if what == "rationales":
            yield Sample(example)
            continue
        of_unit = example.chunk_of_units()
        yield from (Sample(example, m) for m in sorted({of_unit[u] for u in example.kept}))


def trl_row(sample: Sample, wording: Wording) -> dict[str, Any]:
    """Returns {id, prompt, completion, ends} for the SFTTrainer of TRL and what reads the like.

    The prompt is the question's with the context, the completion is what is trained; SFTTrainer
    masks the prompt by itself. What does not survive: SFTTrainer (seen in 1.16) appends the
    end-of-sequence token to every completion and has no option against it. It is wrong where
    `ends` is false; docs/exporting.md shows how to heed it, and rows in tokens need nothing.
    """
    return {
        "id": sample.example.id,
        "prompt": wording.prompt(sample.example) + sample.context,
        "completion": sample.target,
        "ends": sample.ends,
    }


def messages_row(sample: Sample, wording: Wording) -> dict[str, Any]:
    """Returns {id, messages}: the user gives the prompt, the assistant what is trained.

    Read by every trainer of chat models; the mask is theirs (TRL's assistant_only_loss, others by
    default). What does not survive in chunk samples: their context stands in the user's message,
    so that it is not trained; the chat template puts its own marks between context and chunk and
    ends the turn after every chunk. Whole rationales keep their meaning.
    """
    asked = _says("user", wording.asked(sample.example) + sample.context)
    return {
        "id": sample.example.id,
        "messages": [*wording.opening, asked, _says("assistant", sample.target)],
    }


def alpaca_row(sample: Sample, wording: Wording) -> dict[str, Any]:
    """Returns {id, instruction, input, output}: prompt, context, what is trained.

    Read by LLaMA-Factory, axolotl (`type: alpaca`) and others, which train the output alone.
    What does not survive in chunk samples: the format has no mask inside the output, so the context
    is the input; the trainer's template puts its own words between the three, and ends the sequence
    after every chunk. Whole rationales have an empty input and keep their meaning.
    """
    return {
        "id": sample.example.id,
        "instruction": wording.asked(sample.example),
        "input": sample.context,
        "output": sample.target,
        **({"system": wording.system} if wording.system else {}),
    }


def axolotl_row(sample: Sample, wording: Wording) -> dict[str, Any]:
    """Returns {segments, messages}; axolotl reads the one or the other, as its `type` says.

    segments (`type: input_output`, no template): each unit with its label. axolotl tokenizes every
    segment by itself, and adds no special token: those of the wording are segments. What does not
    survive: a token that reaches from one unit into the next.

    messages (`type: chat_template`, roles_to_train: [assistant]): the assistant's content in parts
    with `train`. The parts after the chunk are there, untrained, so that the turn ends where the
    rationale does. What does not survive: axolotl trains the end of the turn in every row of a
    rationale in place of the last alone, and masks a token that straddles two parts.
    """
    example = sample.example
    segments = [(False, wording.bos), (False, wording.prompt(example))]
    segments += [(u in sample.trained, example.units[u]) for u in _kept(example, sample.end)]
    segments += [(True, wording.eos)] if sample.ends else []
    kept = _kept(example, len(example.units))
    parts = [
        {"type": "text", "text": "".join(example.units[u] for u in units), "train": train}
        for train, units in itertools.groupby(kept, sample.trained.__contains__)
    ]
    # axolotl counts a message any part of which has `train` as trained, even if it says false:
    # it would then train the end of the user's turn. The user's part says nothing.
    asked = [{"type": "text", "text": wording.asked(example)}]
    return {
        "segments": [{"label": label, "text": text} for label, text in segments if text],
        "messages": [*wording.opening, _says("user", asked), _says("assistant", parts)],
    }


def jsonl_row(sample: Sample, wording: Wording) -> dict[str, Any]:
    """Returns {id, question, prompt, segments, answer, ends}: everything, for your own loop.

    A segment is a unit {text, train, chunk, kept}, up to the end of what is trained. The sequence
    is the prompt and the segments with `kept`, the end-of-sequence token after them if `ends`; the
    loss is on those with `train`.
    """
    example, of_unit = sample.example, sample.example.chunk_of_units()
    return {
        "id": example.id,
        "question": example.question,
        "prompt": wording.prompt(example),
        "segments": [
            {
                "text": text,
                "train": u in sample.trained,
                "chunk": of_unit[u],
                "kept": u in example.kept,
            }
            for u, text in enumerate(example.units[: sample.end])
        ],
        "answer": example.answer,
        "ends": sample.ends,
    }


def _kept(example: Example, end: int) -> list[int]:
    return [u for u in range(end) if u in example.kept]


def _says(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


ROWS: dict[Format, Callable[[Sample, Wording], dict[str, Any]]] = {
    "trl": trl_row,
    "messages": messages_row,
    "alpaca": alpaca_row,
    "axolotl": axolotl_row,
    "jsonl": jsonl_row,
}
