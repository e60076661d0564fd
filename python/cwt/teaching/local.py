"""A teacher that is a transformers model on this machine; what waits is generated as one batch."""

import asyncio
from dataclasses import dataclass
from typing import Any

from cwt.errors import UserError
from cwt.teaching.config import TeachConfig
from cwt.teaching.teacher import (
    Completion,
    Message,
    TeacherError,
    as_plain_text,
    settle_thinking,
)

# How long a batch waits for the other questions in flight, whose rows go to disk one by one.
_GATHER_SECONDS = 0.02


@dataclass(frozen=True)
class _Waiting:
    tokens: list[int]
    seed: int | None
    done: "asyncio.Future[Completion]"


class LocalTeacher:
    """A causal language model from a Hugging Face folder or the hub.

    The chat template of its tokenizer writes the prompt; a tokenizer without one gets the plain
    text. Sampled completions depend on which questions share a batch; greedy ones do not.

    Args:
        config: model, device, sampling, and in `concurrency` the size of a batch.

    Raises:
        UserError: the model cannot be loaded.
    """

    def __init__(self, config: TeachConfig) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._config = config
        device = config.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                config.model, trust_remote_code=False
            )
            model: Any = AutoModelForCausalLM.from_pretrained(
                config.model, dtype="auto", trust_remote_code=False
            )
            self._model = model.to(device).eval()
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"model {config.model!r} cannot be loaded on {device}: {reason} (a model on a "
                "server needs base_url)"
            ) from error
        self._batch: list[_Waiting] = []
        self._working = asyncio.Lock()

    async def complete(self, messages: list[Message], seed: int | None) -> Completion:
        """Returns one completion; see `Teacher.complete`."""
        tokens = self._prompt(messages)
        most = getattr(self._model.config, "max_position_embeddings", None)
        if most is not None and len(tokens) + self._config.max_tokens > most:
            raise TeacherError(
                f"prompt too long: {len(tokens)} tokens and max_tokens {self._config.max_tokens} "
                f"are more than the model's {most}",
                "question",
            )
        mine = _Waiting(tokens, seed, asyncio.get_running_loop().create_future())
        self._batch.append(mine)
        async with self._working:  # whoever comes first generates for all that wait by then
            if len(self._batch) < self._config.concurrency:
                await asyncio.sleep(_GATHER_SECONDS)
            if not mine.done.done():
                await self._generate_waiting()
        return await mine.done

    async def close(self) -> None:
        """Lets the model go."""
        self._model = None

    def _prompt(self, messages: list[Message]) -> list[int]:
        if not self._tokenizer.chat_template:
            tokens = self._tokenizer(as_plain_text(messages))["input_ids"]
        else:
            tokens = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True
            )["input_ids"]
        return list(tokens)

    async def _generate_waiting(self) -> None:
        size = self._config.concurrency
        batch, self._batch = self._batch[:size], self._batch[size:]
        try:
            completions = await asyncio.to_thread(self._generate, batch)
        except (RuntimeError, ValueError) as error:  # out of memory among them
            reason = str(error).strip().split("\n")[0]
            for waiting in batch:
                waiting.done.set_exception(TeacherError(f"generation failed: {reason}", "fatal"))
            return
        for waiting, completion in zip(batch, completions, strict=True):
            waiting.done.set_result(completion)

    def _generate(self, batch: list[_Waiting]) -> list[Completion]:
        import torch

        seed = next((waiting.seed for waiting in batch if waiting.seed is not None), None)
        if seed is not None:
            torch.manual_seed(seed)
        ends = self._ends()
        pad = self._tokenizer.pad_token_id
        pad = pad if pad is not None else min(ends, default=0)
        longest = max(len(waiting.tokens) for waiting in batch)
        holes = [longest - len(waiting.tokens) for waiting in batch]
        rows = [[pad] * hole + w.tokens for hole, w in zip(holes, batch, strict=True)]
        mask = [[0] * hole + [1] * (longest - hole) for hole in holes]
        greedy = self._config.temperature == 0
        sampling = {} if greedy else {
            "temperature": self._config.temperature, "top_p": self._config.top_p, "top_k": 0,
        }  # fmt: skip
        with torch.inference_mode():
            written = self._model.generate(
                input_ids=torch.tensor(rows, device=self._model.device),
                attention_mask=torch.tensor(mask, device=self._model.device),
                max_new_tokens=self._config.max_tokens,
                do_sample=not greedy,
                pad_token_id=pad,
                **sampling,
            )[:, longest:].tolist()
        prompts = [len(waiting.tokens) for waiting in batch]
        return [self._completion(*pair, ends) for pair in zip(prompts, written, strict=True)]

    def _ends(self) -> set[int]:
        """Returns the tokens that end a text, as the model or else its tokenizer names them."""
        ends = self._model.generation_config.eos_token_id
        if ends is None:
            ends = self._tokenizer.eos_token_id
        return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)

    def _completion(self, prompt_tokens: int, written: list[int], ends: set[int]) -> Completion:
        end = next((i for i, token in enumerate(written) if token in ends), None)
        text = self._tokenizer.decode(written[:end], skip_special_tokens=True)
        return Completion(
            settle_thinking(text, "", self._config.thinking),
            "length" if end is None else "stop",
            prompt_tokens,
            len(written) if end is None else end + 1,
        )
