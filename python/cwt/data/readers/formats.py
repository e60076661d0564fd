"""The formats of a row, in the order in which they are tried."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from cwt.data.readers import (
    alpaca,
    columns,
    finetune_cot,
    gsm8k,
    messages,
    prompt_completion,
    sharegpt,
)

# Each has NAME, matches(row) and read(row); the first that matches reads the row.
FORMATS: tuple[ModuleType, ...] = (
    finetune_cot,
    messages,
    sharegpt,
    prompt_completion,
    gsm8k,
    alpaca,
    columns,
)


def of(row: Mapping[str, Any]) -> ModuleType | None:
    """Returns the format of a row, None where it is none of them."""
    return next((module for module in FORMATS if module.matches(row)), None)
