"""A terminal for tests: what is written to it, and what its screen would show."""

import io
import re

from rich.cells import cell_len


class Terminal(io.StringIO):
    """Stands in for stdout and stderr on one terminal, and knows what its screen would show."""

    columns = 80

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """The rows after everything that was written, for the few sequences that the trace uses."""
        rows: list[list[str]] = [[]]
        row = column = 0
        for part in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|[^\x1b]", self.getvalue()):
            if part == "\n":
                row, column = row + 1, 0
            elif part == "\r":
                column = 0
            elif part == "\x1b[1A":
                row -= 1
            elif part == "\x1b[2K":
                rows[row] = []
            elif part.endswith("m") and len(part) > 1:
                continue
            else:
                assert not part.startswith("\x1b"), f"unexpected sequence {part!r}"
                if column + cell_len(part) > self.columns:
                    row, column = row + 1, 0
                rows += [[] for _ in range(row - len(rows) + 1)]
                rows[row] += [" "] * (column - len(rows[row]))
                rows[row][column : column + 1] = part
                column += cell_len(part)
            rows += [[] for _ in range(row - len(rows) + 1)]
        return ["".join(characters).rstrip() for characters in rows]
