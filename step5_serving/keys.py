"""API keys: made by the command line, shown once, kept as hashes, checked in constant time.

    python -m step5_serving keys create "web shop" --models smollm2-135m --requests-per-minute 60 --cap 5
    python -m step5_serving keys revoke "web shop"

A key is `sk-ID-SECRET`. The id finds the row; of the secret only the SHA-256 is stored. A slow password hash would add
nothing: the secret has 256 random bits, so nobody guesses it however fast the hash is, and the check runs per request.
"""

import hmac
import json
import secrets
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from shared.errors import UserError
from step5_serving.limits import Account, Bucket, Clock
from step5_serving.refusals import Refusal

NOBODY = sha256(b"nobody").digest()  # compared with when the id is unknown, so that the answer takes as long
COLUMNS = "id, name, created, revoked, models, requests_per_minute, tokens_per_minute, cap"


@dataclass(frozen=True)
class Key:
    """One row of the list. created, revoked: Unix seconds. models: None for all. cap: US dollars in all."""

    id: str
    name: str
    created: float
    revoked: float | None
    models: list[str] | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    cap: float | None


def create(
    database: sqlite3.Connection,
    name: str,
    *,
    models: Sequence[str] | None = None,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    cap: float | None = None,
) -> str:
    """Store a new key and return it: the only time it can be seen. Raises UserError when the name is taken."""
    name = name.strip()
    if not name:
        raise UserError("the name of a key is empty; say what it is for")
    identity, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    scope = None if models is None else json.dumps(sorted(set(models)))
    digest = sha256(secret.encode()).digest()
    try:
        database.execute(
            "INSERT INTO keys (id, name, digest, created, models, requests_per_minute, tokens_per_minute, cap) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (identity, name, digest, time.time(), scope, requests_per_minute, tokens_per_minute, cap),
        )
    except sqlite3.IntegrityError:
        raise UserError(f"a key called {name!r} exists (revoked ones keep their name); choose another name") from None
    return f"sk-{identity}-{secret}"


def list_keys(database: sqlite3.Connection) -> list[Key]:
    """Every key, oldest first, revoked ones included."""
    rows = database.execute(f"SELECT {COLUMNS} FROM keys ORDER BY created").fetchall()
    return [
        Key(identity, name, created, revoked, json.loads(scope) if scope else None, requests, tokens, cap)
        for identity, name, created, revoked, scope, requests, tokens, cap in rows
    ]


def usable(database: sqlite3.Connection) -> int:
    """How many keys are not revoked."""
    return int(database.execute("SELECT count(*) FROM keys WHERE revoked IS NULL").fetchone()[0])


def revoke(database: sqlite3.Connection, which: str) -> Key:
    """Make a key useless from the next second on. which: its name or id. Raises UserError when there is none."""
    found = [key for key in list_keys(database) if which in (key.id, key.name)]
    if not found or found[0].revoked is not None:
        raise UserError(f"no usable key is called {which!r}; `keys list` shows them")
    database.execute("UPDATE keys SET revoked = ? WHERE id = ?", (time.time(), found[0].id))
    return next(key for key in list_keys(database) if key.id == found[0].id)


class KeyRing:
    """The usable keys, in memory: id → account. `read` may run in a thread; `update` belongs to the event loop."""

    def __init__(self, database: sqlite3.Connection, clock: Clock = time.monotonic) -> None:
        self._database, self._clock = database, clock
        self._accounts: dict[str, Account] = {}

    def read(self) -> list[tuple[bytes, Key]]:
        """The rows as they are now: a key made or revoked on the command line counts a second later."""
        digests = dict(self._database.execute("SELECT id, digest FROM keys WHERE revoked IS NULL"))
        return [(digests[key.id], key) for key in list_keys(self._database) if key.id in digests]

    def update(self, rows: Sequence[tuple[bytes, Key]], spent: Mapping[str, float] = {}) -> None:
        """Take over what `read` found. Known accounts keep their buckets. spent: dollars so far, for new ones."""
        known, self._accounts = self._accounts, {}
        for digest, key in rows:
            self._accounts[key.id] = known.get(key.id) or Account(
                key.id,
                key.name,
                digest,
                None if key.models is None else frozenset(key.models),
                Bucket(key.requests_per_minute, self._clock) if key.requests_per_minute else None,
                Bucket(key.tokens_per_minute, self._clock) if key.tokens_per_minute else None,
                key.cap,
                spent.get(key.id, 0.0),
            )

    def authenticate(self, authorization: bytes | None) -> Account:
        """Return the account of an Authorization header. Raises Refusal 401 for anything else than a usable key."""
        if authorization is None:
            raise Refusal(401, "invalid_api_key", "No API key: send the header `Authorization: Bearer sk-…`.")
        scheme, _, key = authorization.strip().partition(b" ")
        prefix, _, rest = key.strip().partition(b"-")
        identity, _, secret = rest.partition(b"-")
        account = self._accounts.get(identity.decode("latin-1"))
        # The id is no secret; what is compared in constant time is the hash of the rest.
        right = hmac.compare_digest(sha256(secret).digest(), account.digest if account else NOBODY)
        if not right or account is None or prefix != b"sk" or scheme.lower() != b"bearer":
            raise Refusal(401, "invalid_api_key", "Incorrect API key provided, or it was revoked.")
        return account
