"""The exceptions that a user sees."""


class UserError(ValueError):
    """Wrong input, told to the person who can mend it: what was got, what is wanted, what to do.

    The command line prints it as one sentence and exits with 2; from Python it is a `ValueError`.
    """

    def __init__(self, got: str, wanted: str, remedy: str) -> None:
        self.got, self.wanted, self.remedy = got, wanted, remedy
        super().__init__(f"{got}; wanted {wanted}; {remedy}")
