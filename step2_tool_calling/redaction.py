"""Keep secrets out of what is stored: mask them in every text before it reaches the log.

    python -m pytest tests/step2/test_redaction.py      # tries to get one through

A key can come from anywhere: a header that a tool's error quotes, a URL, a question into which somebody pasted it, an
environment variable that a tool printed. Two nets catch them: the values of this process's own secrets, and the forms
that well-known keys have. No list of forms is complete; what is neither here nor in the environment passes.
"""

import json
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus

MASK = "[redacted]"
SHORTEST = 8  # characters; masking a value like "true" or "1234" would riddle the log and protect nothing
SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD)(_|$)", re.IGNORECASE)

# A hint that every match contains in lower case, and the form. The hints make this cheap: looking for a fixed text is
# thirty times faster than matching, and nearly every text has none. What introduces a secret is kept (group 1), for
# whoever reads the log has to see what stood there. No match contains a quote, so JSON around a secret stays JSON.
# Where a form can fail only after reading on ("sk-" again and again, no digit anywhere), it reads a bounded stretch
# without going back (`++`): texts come from strangers, and 24 kB of them once took 3 s.
START = r"(?:\b|(?<=\\[nrt]))"  # where a word begins, also after a line break as JSON writes it
# To its END line; a key that was cut off and has none is masked as far as it could go.
KEY_BODY = r"(?:[\w\s+/=\\-]*?-----END [A-Z ]{0,40}?PRIVATE KEY-----|[\w\s+/=\\-]*+)"
FORMS = [
    (hint, re.compile(pattern, re.ASCII))
    for hint, pattern in [
        ("authorization", r"""((?i:authorization)\\*["']?\s*[:=]\s*\\*["']?(?:[A-Za-z]+\s+)?)[\w.~+/=-]{8,}"""),
        ("bearer", START + r"((?i:bearer)\s+)[\w.~+/=-]{16,}"),
        ("://", r"""(://[^/\s:@"'\\]*:)[^/\s@"'\\]+(?=@)"""),  # https://user:password@host
        ("sk-", START + r"sk-(?=[a-zA-Z_-]{0,200}+\d)[\w-]{16,}"),  # OpenAI, Anthropic, OpenRouter
        ("gh", START + r"gh[pousr]_\w{20,}"),  # GitHub
        ("github_pat_", START + r"github_pat_\w{20,}"),
        ("glpat-", START + r"glpat-[\w-]{20,}"),  # GitLab
        ("hf_", START + r"hf_(?=[a-zA-Z_]{0,200}+\d)\w{20,}"),  # Hugging Face
        ("gsk_", START + r"gsk_(?=[a-zA-Z_]{0,200}+\d)\w{20,}"),  # Groq
        ("aiza", START + r"AIza[\w-]{35}"),  # Google
        ("akia", START + r"AKIA[0-9A-Z]{16}\b"),  # AWS, lasting
        ("asia", START + r"ASIA[0-9A-Z]{16}\b"),  # AWS, temporary
        ("xox", START + r"xox[abprs]-[\w-]{10,}"),  # Slack
        ("eyj", START + r"eyJ[\w-]{8,1000}+\.eyJ[\w-]{8,5000}+\.[\w-]+"),  # a JSON Web Token
        ("private key", r"-----BEGIN [A-Z ]{0,40}?PRIVATE KEY-----" + KEY_BODY),
    ]
]


@lru_cache(maxsize=1)
def environment_secrets() -> list[str]:
    """Return the secrets in the environment, in every spelling a text may hold them in, longest first.

    A secret is a value of 8 characters or more of a variable of whose name a word ends in KEY, TOKEN, SECRET or
    PASSWORD. It is masked as it is, in JSON, in JSON inside JSON, and in a URL. Read once per process, like the
    settings: going through the environment for each text would take longer than everything else here.
    """
    values = {value for name, value in os.environ.items() if len(value) >= SHORTEST and SECRET_NAME.search(name)}
    spellings = values | {quote(value, safe="") for value in values} | {quote_plus(value) for value in values}
    for _ in range(2):
        values = {json.dumps(text, ensure_ascii=escape)[1:-1] for text in values for escape in (True, False)}
        spellings |= values
    return sorted(spellings, key=len, reverse=True)


def redact(text: str) -> str:
    """Return the text with secrets masked: the environment's, Authorization headers, passwords in URLs, known keys."""
    for secret in environment_secrets():
        text = text.replace(secret, MASK)
    lowered = text.lower()
    for hint, form in FORMS:
        if hint in lowered:
            text = form.sub(lambda match: (match[1] if match.re.groups else "") + MASK, text)
    return text


def safe(text: str) -> str:
    """Return a text as it may be stored: without secrets, and without lone surrogates.

    Half a surrogate pair comes from a stream cut inside an emoji, or from JSON's backslash-u; UTF-8 cannot hold it.
    """
    return redact(text).encode("utf-8", "backslashreplace").decode("utf-8")


def safe_json(value: Any) -> str:
    """Return a JSON value as it may be stored. Its strings are cleaned one by one, so no mask breaks the JSON."""

    def clean(part: Any) -> Any:
        if isinstance(part, str):
            return safe(part)
        if isinstance(part, Mapping):
            return {safe(str(key)): clean(item) for key, item in part.items()}
        return [clean(item) for item in part] if isinstance(part, list | tuple) else part

    return json.dumps(clean(value), ensure_ascii=False)
