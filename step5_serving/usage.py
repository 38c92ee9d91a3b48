"""Questions to the accounts: tokens and money by key, model and day.

python -m step5_serving usage --days 7 --by key,model,day
"""

import sqlite3
import time
from collections.abc import Sequence
from typing import Any

from shared.errors import UserError

# A day is UTC's. Keys are shown by name; a key whose row is gone by its id.
GROUPS = {
    "key": "coalesce(keys.name, requests.key)",
    "model": "requests.model",
    "day": "date(requests.started, 'unixepoch')",
}
SUMS = """count(*) AS requests, sum(prompt) AS prompt, sum(cached) AS cached, sum(completion) AS completion,
    sum(cost) AS cost, sum(cost IS NULL) AS unpriced, sum(estimated) AS estimated"""


def usage_rows(
    database: sqlite3.Connection, by: Sequence[str], *, days: int | None = None, key: str | None = None
) -> list[dict[str, Any]]:
    """Sums per group. by: some of key, model, day. days: only the last ones. key: only this one, by id or name.

    cost: US dollars of the requests that have a price; `unpriced` is how many have none. estimated: how many requests'
    tokens could not be counted exactly. Raises UserError for an unknown group.
    """
    unknown = [name for name in by if name not in GROUPS]
    if unknown:
        raise UserError(f"usage cannot be grouped by {unknown[0]!r}; use {', '.join(GROUPS)}")
    columns = [f"{GROUPS[name]} AS {name}" for name in by]
    query = f"SELECT {', '.join([*columns, SUMS])} FROM requests LEFT JOIN keys ON keys.id = requests.key WHERE 1"
    values: list[Any] = []
    if days is not None:
        query += " AND requests.started >= ?"
        values.append(time.time() - days * 86_400)
    if key is not None:
        query += " AND (requests.key = ? OR keys.name = ?)"
        values += [key, key]
    if by:
        numbers = ", ".join(str(index) for index in range(1, len(by) + 1))
        query += f" GROUP BY {numbers} ORDER BY {numbers}"
    cursor = database.execute(query, values)
    names = [column[0] for column in cursor.description]
    rows = [dict(zip(names, row, strict=True)) for row in cursor]
    for row in rows:
        for name, value in row.items():
            row[name] = 0 if value is None and name not in by else value
    return rows


def request_row(database: sqlite3.Connection, identity: str, key: str) -> dict[str, Any] | None:
    """One request of a key, by the id in its x-request-id header; None when there is none."""
    cursor = database.execute("SELECT * FROM requests WHERE id = ? AND key = ?", (identity, key))
    row = cursor.fetchone()
    return None if row is None else dict(zip([column[0] for column in cursor.description], row, strict=True))
