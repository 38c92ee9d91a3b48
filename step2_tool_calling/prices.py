"""What a conversation costs: tokens times a dated price list.

Providers bill per token and do not say the sum in the answer, so a money budget needs a price list of its own:
prices.toml beside this file, with a date and a source per provider. A model served on this machine is local and costs
0, and so is every endpoint on localhost, a proxy to a hosted model included. A model that no list names has no price at
all, because a wrong figure is worse than none.

    python -m step2_tool_calling log        # what each conversation cost
"""

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from shared.config import settings
from shared.errors import UserError
from step2_tool_calling.conversation import Usage

SHIPPED = Path(__file__).with_name("prices.toml")
FORM = 'must look like [provider.models] "NAME" = { input = 2.5, cached = 1.25, output = 10 } (cached may be left out)'

# What may follow a listed name: a release ("-2024-07-18", "@20250514", "-001") or "-latest". A bare prefix is not
# enough: gpt-5.6-sol costs three times gpt-5, and gpt-4o-audio-preview bills in other units.
RELEASE = re.compile(r"[-@](\d{3,}(-\d\d)*|latest)")


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens. cached: for input tokens read from the provider's cache. source: page and date."""

    input: float
    cached: float
    output: float
    source: str


def _read(path: Path) -> dict[str, Price]:
    """Read one price list. Raises UserError that names the file, the entry and the fix."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValueError: not TOML, or not UTF-8
        raise UserError(f"{path} is not readable as TOML ({error}); repair or delete it") from None
    prices: dict[str, Price] = {}
    for provider, table in document.items():
        models = table.get("models") if isinstance(table, dict) else None
        if not isinstance(models, dict):
            raise UserError(f"{path}: [{provider}] has no models; it {FORM}")
        source = f"{table.get('source', path)}, {table.get('as_of', 'undated')}"
        prices |= {name: _price(entry, f"{path}: {name!r}", source) for name, entry in models.items()}
    return prices


def _price(entry: Any, where: str, source: str) -> Price:
    if not isinstance(entry, dict) or not {"input", "output"} <= entry.keys() <= {"input", "cached", "output"}:
        raise UserError(f"{where} {FORM}")
    for key, value in entry.items():
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise UserError(f"{where}: {key} must be US dollars per million tokens, not {value!r}")
    return Price(entry["input"], entry["cached"] if "cached" in entry else entry["input"], entry["output"], source)


@lru_cache(maxsize=1)
def load_prices() -> Mapping[str, Price]:
    """Return {model: price}: ours, and over them those of LLM_ROADMAP_HOME/prices.toml. Read once per process.

    Raises UserError for a file that is not TOML or an entry that is not a price.
    """
    own = settings().llm_roadmap_home / "prices.toml"
    return _read(SHIPPED) | (_read(own) if own.exists() else {})


def find_price(model: str, prices: Mapping[str, Price]) -> Price | None:
    """Return the price under the longest listed name that `model` is, or is a dated release of; None without one.

    Names are tried as given, then without a path in front, which some endpoints add ("models/gemini-2.5-flash").
    """
    for name in (model, model.rpartition("/")[2]):
        fitting = [listed for listed in prices if _is_release(name, listed)]
        if fitting:
            return prices[max(fitting, key=len)]
    return None


def _is_release(name: str, listed: str) -> bool:
    return name == listed or (name.startswith(listed) and RELEASE.fullmatch(name[len(listed) :]) is not None)


def cost(model: str, usage: Usage, *, local: bool, prices: Mapping[str, Price] | None = None) -> float | None:
    """Return what the tokens cost in US dollars: 0 for a local model, None when the model has no known price.

    local: the model runs in this process or on this machine. prices: by default those of `load_prices()`.
    """
    if local:
        return 0.0
    price = find_price(model, load_prices() if prices is None else prices)
    if price is None:
        return None
    fresh = usage.prompt - usage.cached
    return (fresh * price.input + usage.cached * price.cached + usage.completion * price.output) / 1e6
