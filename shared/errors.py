"""The one error type that reaches a person.

Anything a user can cause or fix is raised as `UserError` with a sentence that names the fix; the command line
(shared/terminal.py) prints it without a traceback, the HTTP server turns it into an OpenAI-shaped 4xx.
"""


class UserError(Exception):
    """A failure the user can understand and repair.

    exit_code: 2 for bad usage or bad input (the default), 1 when the input was fine but the work failed
    (a download broke off, a server died).
    """

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code
