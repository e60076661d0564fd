"""Who writes the answers of a student of a run: the model in this process, or a server."""

from collections.abc import Sequence

from cwt.data.example import Example
from cwt.evaluation.generators import Generator, LocalGenerator
from cwt.evaluation.server import ServerGenerator, ServerOptions
from cwt.files import read_json
from cwt.pipeline.fit import (
    answer_tokens,
    checked_source,
    generation_limits,
    open_to_write,
    prompt_style,
)
from cwt.pipeline.workspace import Workspace
from cwt.students.load import load_tokenizer


def open_generator(
    ws: Workspace, name: str, questions: Sequence[Example], served: str = ""
) -> tuple[Generator, int]:
    """Returns who writes the answers of a student of the run, and how many tokens at most.

    Args:
        ws: the run; its eval.generator says who.
        name: the student; a server's is loaded as a tokenizer alone.
        questions: that will be asked.
        served: the student's name on the server; by default its folder.
    """
    c = ws.config.eval
    if c.generator == "hf":
        student = open_to_write(ws, name)
        limits = generation_limits(ws, student, questions)
        local = LocalGenerator(student, limits.batch_size, limits.batch_tokens)
        return local, limits.max_new_tokens
    folder = checked_source(ws, name)
    tokenizer = load_tokenizer(folder, prompt_style(ws.config))
    longest = max(len(tokenizer.prompt(e.question)) for e in questions)
    facts = read_json(ws.chunks_record) if ws.chunks_record.exists() else {}
    tokens = answer_tokens(ws, longest, facts.get("student", {}).get("positions", 0))
    options = ServerOptions(c.base_url, served or folder, c.concurrency, c.timeout)
    return ServerGenerator(tokenizer, options), tokens
