"""What a user can mend: one exception type, shown without a traceback."""


class Problem(Exception):
    """Something a user can mend: the message says what was found, what is allowed, where, and what to do."""


class Problems(Problem):
    """Several problems found together, listed one per line so that all can be mended in one go."""

    def __init__(self, heading: str, problems: list[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join([heading, *(f"  - {problem}" for problem in self.problems)]))
