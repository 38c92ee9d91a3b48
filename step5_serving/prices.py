"""Money for tokens: prices.toml, where hosted models have a price and local engines a machine and a speed.

    python -m step5_serving usage --by model

The arithmetic for local engines is in prices.toml.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import UserError
from step5_serving.database import home

SHIPPED = Path(__file__).with_name("prices.toml")
ANY = "*"
HOSTED = {"input", "cached", "output"}
LOCAL = {"prefill_per_second", "cached_per_second", "decode_per_second"}


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens. cached: for prompt tokens found in the prefix cache."""

    input: float
    cached: float
    output: float

    def cost(self, prompt: int, cached: int, completion: int) -> float:
        """US dollars for a request; `prompt` includes `cached`."""
        return ((prompt - cached) * self.input + cached * self.cached + completion * self.output) / 1e6


def load_prices() -> dict[str, Price]:
    """Return {model: price}: ours, and over them those of LLM_ROADMAP_HOME/step5/prices.toml.

    Raises UserError for a file that is not TOML or an entry that is not a price.
    """
    own = home() / "prices.toml"
    return _read(SHIPPED) | (_read(own) if own.exists() else {})


def find_price(model: str, prices: Mapping[str, Price]) -> Price | None:
    """The model's own price, or the one of every other model, or None."""
    return prices.get(model) or prices.get(ANY)


def _read(path: Path) -> dict[str, Price]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable as TOML ({error}); repair or delete it") from None
    prices: dict[str, Price] = {}
    for provider, table in document.items():
        models = table.get("models") if isinstance(table, dict) else None
        if not isinstance(models, dict):
            raise UserError(f"{path}: [{provider}] has no models; see the form at the top of {SHIPPED}")
        for name, entry in models.items():
            prices[name] = _price(entry, table.get("dollars_per_hour"), f"{path}: {name!r}")
    return prices


def _price(entry: Any, dollars_per_hour: Any, where: str) -> Price:
    keys = set(entry) if isinstance(entry, dict) else set()
    hosted, local = {"input", "output"} <= keys <= HOSTED, {"prefill_per_second"} <= keys <= LOCAL
    figures: list[Any] = [*entry.values(), *([dollars_per_hour] if local else [])] if hosted or local else [None]
    if any(type(figure) not in (int, float) or not 0 <= figure < math.inf for figure in figures):
        raise UserError(
            f"{where} needs input and output in dollars per million tokens, or prefill_per_second and "
            "decode_per_second with dollars_per_hour in the table above; see prices.toml"
        )
    if hosted:
        return Price(entry["input"], entry.get("cached", entry["input"]), entry["output"])

    def per_million(tokens_per_second: float) -> float:
        if tokens_per_second == 0:
            raise UserError(f"{where}: a speed of 0 tokens a second has no price; measure it")
        return float(dollars_per_hour) / 3600 / tokens_per_second * 1e6

    fresh = per_million(entry["prefill_per_second"])
    cached = per_million(entry["cached_per_second"]) if "cached_per_second" in entry else fresh
    return Price(fresh, cached, per_million(entry["decode_per_second"]) if "decode_per_second" in entry else 0.0)
