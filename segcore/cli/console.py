"""Lines for a person, from the first process only."""

import os

from rich.console import Console
from rich.text import Text

console = Console(highlight=False, soft_wrap=True, emoji=False)


def is_main_process() -> bool:
    """Whether this process speaks and writes for all (torchrun numbers them in RANK)."""
    return int(os.environ.get("RANK", "0")) == 0


def say(message: str) -> None:
    """A line for a person, from the first process only."""
    if is_main_process():
        console.print(shown(message), markup=False)


def complain(message: str) -> None:
    """An error, letter by letter: what a person wrote is no markup."""
    console.print(Text.assemble(("error", "bold red"), f": {shown(message)}"))


def shown(text: str) -> str:
    """A text that a terminal shows and does not obey; bytes of file names that are no UTF-8 are spelled out."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(one if one.isprintable() or one in "\n\t " else ascii(one)[1:-1] for one in text)
