"""Bad rows of a data file: all named in one error, or left out and listed where the user asks for that."""

from loratune.errors import UserError

MAX_LISTED = 20  # problems that an error names before it only counts the rest


class BadRows:
    """Collects what is wrong with single rows while a file is read.

    Readers and forms `add` a problem and go on with the next row. `refuse` raises one UserError with all of
    them, up to a limit, unless they may be left out (`skip`); then they stay in `problems`, for the report.
    """

    def __init__(self, skip: bool = False):
        self.skip = skip
        self.problems: list[str] = []  # "file, line 3: what is wrong", one a row
        self.remedies: dict[str, None] = {}  # of certain problems, in the order in which they came up

    def add(self, where: str, problem: object, remedy: str = "") -> None:
        """Note a problem; its own remedy is named once, however many rows have it."""
        self.problems.append(f"{where}: {problem}")
        if remedy:
            self.remedies[remedy] = None

    def refuse(self, remedy: str = "") -> None:
        """Raise UserError, with the remedy, if there are bad rows and they may not be left out."""
        if not self.skip:
            raise_problems(self.problems, *self.remedies, remedy)


def raise_problems(problems: list[str], *remedies: str) -> None:
    """Raise UserError with the first problems, a count of the rest, and the remedies once; nothing where
    there are none.
    """
    if problems:
        more = len(problems) - MAX_LISTED
        rest = [f"... and {more:,} more like these"] if more > 0 else []
        raise UserError(*problems[:MAX_LISTED], *rest, *filter(None, remedies))
