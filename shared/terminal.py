"""One look and one set of manners for every command line of the project.

People get colour on terminals only, machines get exactly one JSON document on stdout (`--json`), mistakes get one
line on stderr and an exit code: 0 ok, 1 failed, 2 bad usage or bad input, 130 Ctrl-C.
"""

import json
import shutil
import sys
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shared.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

# Okabe & Ito's palette (jfly.uni-koeln.de/color): distinguishable with every common colour-vision deficiency.
# The same names are used by the plots and the HTML pages.
PALETTE = {
    "blue": "#0072B2",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "orange": "#E69F00",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
    "grey": "#7F7F7F",
}


def console(*, stderr: bool = False) -> "Console":
    """Return a rich console; it colours only when it writes to a terminal and NO_COLOR is unset."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=False)


def say(message: str, indent: int = 0) -> None:
    """Print a progress remark for people, on stderr, so that stdout stays parseable.

    indent: columns that further lines are indented by, where a terminal is too narrow for one.
    """
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        message = textwrap.fill(message, width, subsequent_indent=" " * indent, break_long_words=False)
    print(message, file=sys.stderr, flush=True)


def print_json(document: Any) -> None:
    """Print one JSON document on stdout. Non-finite floats are a bug and raise ValueError (JSON has no NaN)."""
    print(json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False, default=str))


def run(app: Callable[[], Any]) -> None:
    """Run a Typer app as a program: turn UserError, Ctrl-C and a closed pipe into exit codes, never a traceback."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `... | head` closed our stdout; the shell's convention is to leave quietly
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        import errno

        if error.errno != errno.ENOSPC:
            raise
        print("error: the disk is full; free some space and run the same command again", file=sys.stderr)
        sys.exit(1)
