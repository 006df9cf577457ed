"""What a user can mend: one exception type, shown without a traceback."""

import difflib
from collections.abc import Iterable, Sequence

EXAMPLES = 3
"""Of many things that are wrong alike, so many are named."""

MOST_LINES = 100
"""Problems that a message lists; it counts the others."""


class Problem(Exception):
    """Something a user can mend: the message says what was found, what is allowed, where, and what to do.

    `made_by` names the stage whose output is at fault, where running it again may be the cure: how that is done only
    the command line knows, which adds it (see `cli.command.start`).
    """

    def __init__(self, message: str, *, made_by: str | None = None) -> None:
        super().__init__(message)
        self.made_by = made_by


class Problems(Problem):
    """Several problems found together, listed one per line so that all can be mended in one go."""

    def __init__(self, heading: str, problems: list[str], *, made_by: str | None = None) -> None:
        self.problems = list(problems)
        lines = [f"  - {problem}" for problem in self.problems[:MOST_LINES]]
        lines += [f"  ... and {len(self.problems) - MOST_LINES} more"] if len(self.problems) > MOST_LINES else []
        super().__init__("\n".join([heading, *lines]), made_by=made_by)


class About(str):
    """A sentence on one of many things, `<what>: <rest>`, which `together` tells once for all that it is true of."""

    what: str
    rest: str

    def __new__(cls, what: object, rest: str) -> "About":
        self = super().__new__(cls, f"{what}: {rest}")
        self.what, self.rest = str(what), rest
        return self


def together(sentences: Iterable[str]) -> list[str]:
    """The sentences in their order, those that say the same of more than a few things told once, with examples."""
    same: dict[str, list[str]] = {}
    for sentence in sentences:
        same.setdefault(sentence.rest if isinstance(sentence, About) else sentence, []).append(sentence)
    told: list[str] = []
    for rest, of in same.items():
        whats = [sentence.what for sentence in of if isinstance(sentence, About)]
        told += [f"{len(of)} times, {', '.join(whats[:EXAMPLES])} among them: {rest}"] if len(whats) > EXAMPLES else of
    return told


def some(names: Sequence[object], most: int = EXAMPLES) -> str:
    """A few of the names, quoted, and how many others there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"'{name}'" for name in names[:most]) + more


def hint(found: object, allowed: Iterable[str]) -> str:
    """The end of a message about a name that is not known: the one that was probably meant."""
    close = difflib.get_close_matches(str(found), list(allowed), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
