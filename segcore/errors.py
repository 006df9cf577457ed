"""What a user can mend: one exception type, shown without a traceback."""

import difflib
from collections.abc import Iterable


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
        super().__init__("\n".join([heading, *(f"  - {problem}" for problem in self.problems)]), made_by=made_by)


def hint(found: object, allowed: Iterable[str]) -> str:
    """The end of a message about a name that is not known: the one that was probably meant."""
    close = difflib.get_close_matches(str(found), list(allowed), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
