"""The options of `cwt teach`, checked when they are made."""

import json
import math
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from cwt.errors import UserError

Api = Literal["chat", "completion"]
Thinking = Literal["drop", "keep"]
TokensField = Literal["max_tokens", "max_completion_tokens"]


@dataclass(frozen=True)
class TeachConfig:
    """Which questions a teacher is asked, how, and at what price.

    Attributes:
        questions: file of questions with their answers, in any format that `cwt data` reads
        model: name of the model on the server; without base_url a Hugging Face folder or hub name
        columns: of a questions file with names of its own: question=NAME,answer=NAME
        first: ask only this many questions, from the start of the file; 0 for all
        base_url: OpenAI-compatible server, such as https://api.openai.com/v1; empty for a local
            transformers model
        key_env: environment variable that holds the server's key; the key is read from nowhere
            else and written nowhere. No key is sent where the variable is not set
        api: of a server: chat (/chat/completions), or completion (/completions, for base models)
        style: zero-shot, few-shot, hinted (the teacher is told the answer), or the path of a jinja2
            template. Several, separated by commas: a question without a right rationale in the
            first style is asked in the next
        shots: of few-shot: file of solved examples; empty for those in the template
        shot_count: of few-shot: how many examples of that file are shown
        samples: completions asked for each question in one style
        enough: stop asking a question after this many right rationales, 0 for never
        temperature: of sampling, 0 for greedy
        top_p: of sampling, the share of probability that tokens are drawn from
        max_tokens: most tokens of a completion
        max_tokens_field: the server's name for it; newer OpenAI models want max_completion_tokens
        seed: of sampling; sample i is asked with seed + i. -1: none is sent
        extra: JSON object of further fields of a request, such as {"reasoning_effort": "low"}
        thinking: what becomes of text that the model marks as its thinking (<think>, or the
            server's reasoning_content): drop it, or keep it at the start of the rationale
        concurrency: questions in flight at once; of a local model, the size of a batch
        device: of a local model: auto, cpu, cuda, cuda:1, mps
        timeout: seconds that one request may take
        retries: further tries after a request that failed for a passing reason
        backoff: seconds before the first further try; doubles each time, with jitter
        max_wait: longest wait between two tries, in seconds; a server that asks for a longer one
            (Retry-After) ends the run in order
        give_up: end the run after this many failed requests in a row (their tries included once)
        price_in: money per million prompt tokens, in any currency
        price_out: money per million completion tokens
        limit_tokens: prompt and completion tokens of all runs in this folder, 0 for no limit
        limit_money: money of all runs in this folder, in the currency of the prices, 0 for no limit
        limit_seconds: wall-clock seconds of all runs in this folder, 0 for no limit
    """

    questions: str
    model: str
    columns: str = ""
    first: int = 0
    base_url: str = ""
    key_env: str = "OPENAI_API_KEY"
    api: Api = "chat"
    style: str = "zero-shot"
    shots: str = ""
    shot_count: int = 4
    samples: int = 1
    enough: int = 0
    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 1024
    max_tokens_field: TokensField = "max_tokens"
    seed: int = -1
    extra: str = ""
    thinking: Thinking = "drop"
    concurrency: int = 8
    device: str = "auto"
    timeout: float = 300.0
    retries: int = 6
    backoff: float = 1.0
    max_wait: float = 120.0
    give_up: int = 10
    price_in: float = 0.0
    price_out: float = 0.0
    limit_tokens: int = 0
    limit_money: float = 0.0
    limit_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in ("questions", "model", "style"):
            if not getattr(self, name):
                raise UserError(f"{name} must not be empty.")
        self._check_numbers()
        self._check_choices()
        if self.samples > 1 and self.temperature == 0:
            raise UserError(f"samples = {self.samples} needs a temperature above 0: greedy "
                            "completions of one prompt are all the same.")  # fmt: skip
        if self.limit_money and not (self.price_in or self.price_out):
            raise UserError("limit_money needs price_in or price_out: money per million tokens.")
        _ = self.column_names  # raises where they cannot be read
        self._check_server()

    def _check_numbers(self) -> None:
        least = {
            "shot_count": 1, "samples": 1, "max_tokens": 1, "concurrency": 1, "give_up": 1,
            "first": 0, "enough": 0, "retries": 0, "temperature": 0, "backoff": 0, "max_wait": 0,
            "price_in": 0, "price_out": 0, "limit_tokens": 0, "limit_money": 0,
            "limit_seconds": 0, "seed": -1,
        }  # fmt: skip
        for name, bound in least.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= bound):
                raise UserError(f"{name} must be at least {bound}, got {value}.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, got {self.top_p}.")
        if not (math.isfinite(self.timeout) and self.timeout > 0):
            raise UserError(f"timeout must be above 0 seconds, got {self.timeout}.")

    def _check_choices(self) -> None:
        choices = {
            "api": ("chat", "completion"), "thinking": ("drop", "keep"),
            "max_tokens_field": ("max_tokens", "max_completion_tokens"),
        }  # fmt: skip
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UserError(
                    f"{name} must be {' or '.join(known)}, got {getattr(self, name)!r}."
                )

    def _check_server(self) -> None:
        fields = self.extra_fields  # raises where it is no JSON object
        if not self.base_url:
            if fields:
                raise UserError("extra is for a server (base_url); a local model has no such.")
            return
        try:
            parts = urlsplit(self.base_url)
            plain = not (parts.username or parts.password or parts.query or parts.fragment)
            _ = parts.port  # raises where it is none
            good = parts.scheme in ("http", "https") and bool(parts.hostname)
            good = good and not any(map(str.isspace, self.base_url))
        except ValueError:
            plain, good = True, False
        if not plain:  # the value itself may be a secret: it is not repeated here
            raise UserError(
                "base_url must hold neither a user, a password nor a query; the key goes into "
                "the environment variable named by key_env."
            )
        if not good:
            raise UserError(f"base_url must be an http or https address, got {self.base_url!r}.")

    @property
    def column_names(self) -> dict[str, str] | None:
        """The columns of the questions file, as `read_examples` takes them.

        Raises:
            UserError: columns is not a list of role=NAME.
        """
        if not self.columns:
            return None
        pairs = [part.partition("=") for part in self.columns.split(",")]
        if not all(role.strip() and name.strip() for role, _, name in pairs):
            raise UserError(f"columns must be question=NAME,answer=NAME, got {self.columns!r}.")
        return {role.strip(): name.strip() for role, _, name in pairs}

    @property
    def extra_fields(self) -> dict[str, Any]:
        """The further fields of a request.

        Raises:
            UserError: extra is not a JSON object, or sets a field that has an option of its own.
        """
        try:
            fields = json.loads(self.extra or "{}")
        except json.JSONDecodeError as error:
            raise UserError(f"extra must be a JSON object, got {self.extra!r}: {error}.") from None
        if not isinstance(fields, dict):
            raise UserError(f"extra must be a JSON object, got {self.extra!r}.")
        ours = ("model", "messages", "prompt", "temperature", "top_p", "seed", "stream", "n",
                "max_tokens", "max_completion_tokens")  # fmt: skip
        if taken := [name for name in ours if name in fields]:
            raise UserError(
                f"extra must not set {', '.join(taken)}: options decide these, and a completion "
                "is asked for one at a time, whole."
            )
        return fields
