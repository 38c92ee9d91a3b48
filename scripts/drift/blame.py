"""Which of the changed packages broke it: hold some back at their locked versions, and see whether it works again.

Holding back all of them is the locked environment, holding none the newest. Between the two lies a smallest beginning
of the list that helps, found by doubling and then halving; its last package is to blame. Doubling makes it cheap when
the list starts with the suspects (those that the traceback names). Where one package alone does not help, it stays held
and the search goes on among those before it. With 40 changed packages that is 2 tries for the first of the list, 4
for the second, and at most 12 for any other.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

# found: `packages` are to blame. locked: it fails without any newer package. unsteady: it passed when repeated.
# unfinished: no tries were left, and more than `packages` is needed, out of `suspects`. skipped: not looked for.
Verdict = Literal["found", "locked", "unsteady", "unfinished", "skipped"]


@dataclass(frozen=True)
class Blame:
    """What the search came to. packages: to blame. suspects: those not cleared yet. tries: runs of the check."""

    verdict: Verdict
    packages: list[str] = field(default_factory=list)
    suspects: list[str] = field(default_factory=list)
    tries: int = 0


class _SpentError(Exception):
    """No tries are left."""


def search(names: Sequence[str], passes: Callable[[frozenset[str]], bool], tries: int) -> Blame:
    """Find the packages that have to be held back for a check to pass, which fails when none is.

    names: all that changed, the likeliest first. passes: whether the check passes with these held back.
    tries: how often `passes` may be asked.
    """
    known: dict[frozenset[str], bool] = {}

    def helps(held: Iterable[str]) -> bool:
        key = frozenset(held)
        if key not in known:
            if len(known) == tries:
                raise _SpentError
            known[key] = passes(key)
        return known[key]

    found: list[str] = []
    suspects, low = list(names), 0
    try:
        if not names or not helps(names):
            return Blame("locked", tries=len(known))
        while not (found and helps(found)):
            # Besides `found`, holding suspects[:low] does not help and holding all suspects does.
            while len(suspects) - low > 1:
                middle = min(max(1, 2 * low), (low + len(suspects)) // 2)
                if helps([*found, *suspects[:middle]]):
                    del suspects[middle:]
                else:
                    low = middle
            found.append(suspects.pop())
            low = 0
    except _SpentError:
        return Blame("unfinished", found, suspects[low:], len(known))
    return Blame("found", found, tries=len(known))
