"""Bad rows of a data file: report all of them in one error, or skip and list them."""

from loratune.errors import UserError

MAX_LISTED = 20  # problems that an error names; the rest are only counted


class BadRows:
    """The problems of single rows, collected while a file is read.

    A reader adds each problem and goes on with the next row. `refuse` raises one UserError with all of them,
    up to a limit, unless bad rows may be left out (`skip`): then they stay in `problems`, for the report.
    """

    def __init__(self, skip: bool = False):
        self.skip = skip
        self.problems: list[str] = []  # one for each row, such as "file, line 3: output is blank"
        self.remedies: dict[str, None] = {}  # as keys: distinct, in the order of their problems

    def add(self, where: str, problem: object, remedy: str = "") -> None:
        """Add a problem. A remedy is shown only once, however many rows need it."""
        self.problems.append(f"{where}: {problem}")
        if remedy:
            self.remedies[remedy] = None

    def refuse(self, remedy: str = "") -> None:
        """Raise UserError if there are bad rows that may not be left out."""
        if not self.skip:
            raise_problems(self.problems, *self.remedies, remedy)


def raise_problems(problems: list[str], *remedies: str) -> None:
    """Raise UserError if there are problems, with the first ones, a count of the rest, and the remedies."""
    if problems:
        unlisted = len(problems) - MAX_LISTED
        rest = [f"... and {unlisted:,} more like these"] if unlisted > 0 else []
        raise UserError(*problems[:MAX_LISTED], *rest, *filter(None, remedies))
