"""The built-in tools: small typed functions over public APIs that need no key.

Weather and places come from Open-Meteo, exchange rates from Frankfurter (the European Central Bank's), articles from
Wikipedia. A tool's docstring is all a model learns about it, so each says when to use it and what to pass; a result is
a short flat object, because every token of it is read again on every later turn; an error says what to try next.

    python -m step2_tool_calling tools get_weather --schema

API references: open-meteo.com/en/docs, open-meteo.com/en/docs/geocoding-api, frankfurter.dev/v1,
mediawiki.org/wiki/API:REST_API, en.wikipedia.org/api/rest_v1. sandbox.py serves the same shapes from this machine.
"""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from textwrap import shorten
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field

from step2_tool_calling.calculator import calculate
from step2_tool_calling.function_tools import from_function
from step2_tool_calling.http_client import HttpClient
from step2_tool_calling.tool import Tool, ToolError
from step2_tool_calling.units import convert_units

SANDBOX = "sandbox data, not live"
MAX_EXTRACT = 700  # characters of an article, about 150 tokens
Unit = Literal["celsius", "fahrenheit"]
Days = Annotated[int, Field(ge=1, le=7)]  # in the schema, so that constrained decoding keeps to it

# WMO code table 4677 as Open-Meteo uses it (open-meteo.com/en/docs, "Weather variable documentation").
CONDITIONS = {
    0: "clear sky",
    1: "mainly clear",
    2: "partly cloudy",
    3: "overcast",
    45: "fog",
    48: "rime fog",
    51: "light drizzle",
    53: "drizzle",
    55: "heavy drizzle",
    56: "light freezing drizzle",
    57: "freezing drizzle",
    61: "light rain",
    63: "rain",
    65: "heavy rain",
    66: "light freezing rain",
    67: "freezing rain",
    71: "light snow",
    73: "snow",
    75: "heavy snow",
    77: "snow grains",
    80: "light showers",
    81: "showers",
    82: "violent showers",
    85: "light snow showers",
    86: "snow showers",
    95: "thunderstorm",
    96: "thunderstorm with hail",
    99: "thunderstorm with heavy hail",
}


@dataclass(frozen=True)
class Endpoints:
    """Base URLs of the APIs: the public ones, the sandbox's, or a mirror of your own."""

    geocoding: str = "https://geocoding-api.open-meteo.com"
    weather: str = "https://api.open-meteo.com"
    exchange: str = "https://api.frankfurter.dev"
    wikipedia: str = "https://en.wikipedia.org"

    def hosts(self) -> set[str]:
        """Their hosts, for HttpClient's allow_hosts: nothing else need be reachable."""
        return {urlsplit(url).netloc for url in astuple(self)}


def builtin_tools(
    client: HttpClient, endpoints: Endpoints, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> list[Tool]:
    """Every built-in tool, over this client and these endpoints. now: the clock of get_time, with a time zone."""
    apis = Apis(client, endpoints, now)
    functions: list[Callable[..., Any]] = [
        apis.get_weather,
        apis.get_forecast,
        apis.convert_currency,
        apis.get_time,
        apis.search_place,
        apis.search_wikipedia,
        apis.wikipedia_summary,
        calculate,
        convert_units,
    ]
    return [from_function(function) for function in functions]


@dataclass(frozen=True)
class Apis:
    """The tools that need the network; methods, so that a model sees only the parameters that are its own."""

    client: HttpClient
    endpoints: Endpoints
    now: Callable[[], datetime]

    async def get_weather(self, city: str, unit: Unit = "celsius") -> dict[str, Any]:
        """Get the current weather in a city: temperature, conditions, humidity and wind.

        Args:
            city: The name of the city, for example "Oslo" or "Paris, Texas".
            unit: The unit of the temperature.
        """
        place, _ = await self._place(city)
        wanted = "temperature_2m,apparent_temperature,relative_humidity_2m,weather_code,wind_speed_10m"
        answer = await self._weather(place, current=wanted, temperature_unit=unit)
        with _expecting("the weather service"):
            current = answer["current"]
            return {
                "place": _label(place),
                "temperature": current["temperature_2m"],
                "feels_like": current["apparent_temperature"],
                "unit": unit,
                "conditions": _conditions(current["weather_code"]),
                "humidity_percent": current["relative_humidity_2m"],
                "wind_kmh": current["wind_speed_10m"],
                "local_time": current["time"],
                "source": _source(answer, "open-meteo.com"),
            }

    async def get_forecast(self, city: str, days: Days = 3, unit: Unit = "celsius") -> dict[str, Any]:
        """Get the weather forecast for a city, day by day, today first.

        Args:
            city: The name of the city, for example "Oslo" or "Paris, Texas".
            days: How many days, 1 to 7.
            unit: The unit of the temperatures.
        """
        place, _ = await self._place(city)
        wanted = "weather_code,temperature_2m_max,temperature_2m_min,precipitation_probability_max"
        answer = await self._weather(place, daily=wanted, forecast_days=days, temperature_unit=unit)
        with _expecting("the weather service"):
            daily = answer["daily"]
            columns = zip(daily["time"], *(daily[name] for name in wanted.split(",")), strict=True)
            return {
                "place": _label(place),
                "unit": unit,
                "days": [
                    {"date": date, "conditions": _conditions(code), "high": high, "low": low, "rain_percent": rain}
                    for date, code, high, low, rain in columns
                ],
                "source": _source(answer, "open-meteo.com"),
            }

    async def convert_currency(self, amount: float, from_currency: str, to_currency: str) -> dict[str, Any]:
        """Convert an amount of money from one currency to another at the latest reference rate.

        Args:
            amount: The amount of money.
            from_currency: The currency it is in, as a three-letter ISO code, for example "EUR".
            to_currency: The currency to convert to, as a three-letter ISO code, for example "NOK".
        """
        if not math.isfinite(amount):
            raise ToolError("the amount must be a finite number")
        source, target = (code.strip().upper() for code in (from_currency, to_currency))
        for code in (source, target):
            if not re.fullmatch("[A-Z]{3}", code):
                raise ToolError(f"{code!r} is not a currency; use a three-letter ISO code such as EUR, USD or NOK")
        if source == target:
            raise ToolError(f"both currencies are {source}; name two different ones")
        answer = await self._get(
            f"{self.endpoints.exchange}/v1/latest",
            {"base": source, "symbols": target},
            missing=f"there is no exchange rate from {source} to {target}; check the ISO codes",
        )
        with _expecting("the exchange rate service"):
            rate = answer["rates"][target]
            return {
                "amount": amount,
                "from": source,
                "to": target,
                "result": round(amount * rate, 2),
                "rate": rate,
                "date": answer["date"],
                "source": _source(answer, "frankfurter.dev"),
            }

    async def get_time(self, city: str) -> dict[str, Any]:
        """Get the current date and time in a city.

        Args:
            city: The name of the city, for example "Tokyo".
        """
        place, source = await self._place(city)
        with _expecting("the place search"):
            name = place["timezone"]
        try:  # ValueError: not a name that could be a zone's
            local = self.now().astimezone(ZoneInfo(name))
        except (ZoneInfoNotFoundError, ValueError):
            raise ToolError(f"this machine does not know the time zone {name!r}") from None
        return {
            "place": _label(place),
            "time": local.strftime("%H:%M"),
            "date": local.strftime("%A %Y-%m-%d"),
            "timezone": name,
            "utc_offset": local.strftime("%z"),
            "source": source,
        }

    async def search_place(self, name: str) -> dict[str, Any]:
        """Find a city or place on the map: its country, coordinates and time zone.

        Args:
            name: The name of the place, for example "Oslo" or "Paris, Texas".
        """
        place, source = await self._place(name)
        with _expecting("the place search"):
            return {
                "name": place["name"],
                "region": place.get("admin1"),
                "country": place.get("country"),
                "latitude": place["latitude"],
                "longitude": place["longitude"],
                "timezone": place["timezone"],
                "population": place.get("population"),
                "source": source,
            }

    async def search_wikipedia(self, query: str) -> dict[str, Any]:
        """Search Wikipedia for articles on a subject; read one of them with wikipedia_summary.

        Args:
            query: Words to search for.
        """
        url = f"{self.endpoints.wikipedia}/w/rest.php/v1/search/page"
        answer = await self._get(url, {"q": query, "limit": 3})
        with _expecting("Wikipedia"):
            pages = [
                # Without a description, the excerpt; it marks the words it found with <span>.
                {"title": page["title"], "description": page["description"] or re.sub("<[^>]*>", "", page["excerpt"])}
                for page in answer["pages"]
            ]
        if not pages:
            raise ToolError(f"Wikipedia has nothing on {query!r}; try fewer or other words")
        return {"articles": pages, "source": _source(answer, "wikipedia.org")}

    async def wikipedia_summary(self, title: str) -> dict[str, Any]:
        """Read the beginning of a Wikipedia article.

        Args:
            title: The title of the article, for example "Grace Hopper".
        """
        # One path segment whatever the title holds: a title of "../../x" must not choose another endpoint.
        segment = quote(title.strip().replace(" ", "_"), safe="")
        if segment.strip(".") == "":
            raise ToolError("give the title of an article")
        answer = await self._get(
            f"{self.endpoints.wikipedia}/api/rest_v1/page/summary/{segment}",
            missing=f"Wikipedia has no article called {title!r}; find the right title with search_wikipedia",
        )
        with _expecting("Wikipedia"):
            if answer["type"] == "disambiguation":
                raise ToolError(f"{title!r} may mean several things; choose one with search_wikipedia")
            return {
                "title": answer["title"],
                "description": answer.get("description"),
                "summary": shorten(answer["extract"], MAX_EXTRACT, placeholder=" …"),
                "source": _source(answer, "wikipedia.org"),
            }

    async def _place(self, name: str) -> tuple[dict[str, Any], str]:
        """Look up a place. Returns the geocoder's entry and the source.

        The geocoder knows names only, and people write "Paris, Texas" or "Oslo, Norway": what follows the comma
        chooses among the places of that name (the largest first).
        """
        wanted, region = [part.strip() for part in f"{name},".split(",")][:2]
        if not wanted:
            raise ToolError("give the name of a place")
        answer = await self._get(
            f"{self.endpoints.geocoding}/v1/search",
            {"name": wanted, "count": 10 if region else 1, "language": "en", "format": "json"},
        )
        with _expecting("the place search"):
            places: list[dict[str, Any]] = answer.get("results") or []
            if not places:
                raise ToolError(f"no place called {wanted!r}; check the spelling, and pass the name alone")
            if region:
                matching = [place for place in places if _lies_in(place, region)]
                if not matching:
                    known = "; ".join(dict.fromkeys(_label(place) for place in places[:4]))
                    raise ToolError(f"no {wanted} in {region!r}; known places: {known}")
                places = matching
            return dict(places[0]), _source(answer, "open-meteo.com")

    async def _weather(self, place: dict[str, Any], **params: str | int) -> dict[str, Any]:
        where = {"latitude": place.get("latitude"), "longitude": place.get("longitude"), "timezone": "auto"}
        return await self._get(f"{self.endpoints.weather}/v1/forecast", where | params)

    async def _get(self, url: str, params: dict[str, Any] | None = None, *, missing: str = "") -> dict[str, Any]:
        """GET a JSON object. missing: what 404 means to the caller. Raises ToolError for every other failure."""
        response = await self.client.request("GET", url, params=params)
        if response.status in (404, 422) and missing:
            raise ToolError(missing)
        if response.status >= 400:
            raise ToolError(f"{response.host} answered with status {response.status}; try again later")
        answer = response.json()
        if not isinstance(answer, dict):
            raise ToolError(f"{response.host} answered in an unexpected form")
        return answer


@contextmanager
def _expecting(service: str) -> Iterator[None]:
    """Turn what a changed API would cause into a sentence: the fields used below were there when this was written."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise ToolError(f"{service} answered in an unexpected form") from None


def _source(answer: dict[str, Any], live: str) -> str:
    """Where the figures come from, said in every result: a model cannot see by itself that they are made up."""
    return SANDBOX if answer.get("sandbox") is True else live


def _label(place: dict[str, Any]) -> str:
    """ "Paris, Texas, United States"; the region is left out where it repeats the name."""
    parts = [place["name"], place.get("admin1"), place.get("country")]
    return ", ".join(dict.fromkeys(part for part in parts if part))


def _lies_in(place: dict[str, Any], region: str) -> bool:
    """Whether a place lies in the country or region named: in full, by its beginning, or by initials (TX, NY, UK)."""
    wanted = re.sub(r"[^\w ]", "", region).casefold()
    names = [str(place.get(key) or "").casefold() for key in ("country_code", "country", "admin1")]
    if any(name.startswith(wanted) for name in names if name):
        return True
    letters = ".*".join(map(re.escape, wanted.replace(" ", "")))
    return len(wanted) <= 3 and any(re.match(letters, name) for name in names)


def _conditions(code: Any) -> str:
    return CONDITIONS.get(code, f"weather code {code}")
