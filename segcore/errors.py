"""What a user can mend: one exception type, shown without a traceback."""

import difflib
from collections.abc import Iterable


class Problem(Exception):
    """Something a user can mend: the message says what was found, what is allowed, where, and what to do."""


class Problems(Problem):
    """Several problems found together, listed one per line so that all can be mended in one go."""

    def __init__(self, heading: str, problems: list[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join([heading, *(f"  - {problem}" for problem in self.problems)]))


def hint(found: object, allowed: Iterable[str]) -> str:
    """The end of a message about a name that is not known: the one that was probably meant."""
    close = difflib.get_close_matches(str(found), list(allowed), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
