"""The one exception that means: the user's input is at fault, and here is what to do."""


class UserError(Exception):
    """What is wrong, where, and what to do about it.

    The command line prints the problems without a traceback and exits with code 2.
    """

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = problems


class FileError(UserError):
    """The file system refuses: a full disk, a folder that cannot be written. What was written before is
    whole.
    """
