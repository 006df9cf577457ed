"""Lines for a person, from the first process only."""

import os

from rich.console import Console

console = Console(highlight=False, soft_wrap=True)


def is_main_process() -> bool:
    """Whether this process speaks and writes for all (torchrun numbers them in RANK)."""
    return int(os.environ.get("RANK", "0")) == 0


def say(message: str) -> None:
    """A line for a person, from the first process only."""
    if is_main_process():
        console.print(message, markup=False)


def escaped(text: str) -> str:
    return text.replace("[", r"\[")
