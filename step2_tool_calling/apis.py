"""The built-in tools: small typed functions over public APIs that need no key.

Weather and places come from Open-Meteo, exchange rates from Frankfurter (the European Central Bank's), articles from
Wikipedia. A tool's docstring is all a model learns about it, so each says when to use it and what to pass; a result is
a sentence with its source, because a small model repeats sentences rightly and echoes JSON; an error says what to try.

    python -m step2_tool_calling tools get_weather --schema

API references: open-meteo.com/en/docs, open-meteo.com/en/docs/geocoding-api, frankfurter.dev/v1,
mediawiki.org/wiki/API:REST_API, en.wikipedia.org/api/rest_v1. sandbox.py serves the same shapes from this machine.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from decimal import Decimal
from html import unescape
from textwrap import shorten
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field

from step2_tool_calling.calculator import calculate, in_digits
from step2_tool_calling.function_tools import from_function
from step2_tool_calling.http_client import HttpClient
from step2_tool_calling.tool import Tool, ToolError
from step2_tool_calling.units import convert_units

SANDBOX = "sandbox data, not live"
MAX_EXTRACT = 700  # characters of an article, about 150 tokens
MAX_AMOUNT = 1e18  # of money; more than anything costs, in any currency
Unit = Literal["celsius", "fahrenheit"]
DEGREES = {"celsius": "°C", "fahrenheit": "°F"}
# The European Central Bank's reference rates. As an enum, because a small model left free writes "LISB" for euros.
# fmt: off
Currency = Literal[
    "AUD", "BRL", "CAD", "CHF", "CNY", "CZK", "DKK", "EUR", "GBP", "HKD", "HUF", "IDR", "ILS", "INR", "ISK",
    "JPY", "KRW", "MXN", "MYR", "NOK", "NZD", "PHP", "PLN", "RON", "SEK", "SGD", "THB", "TRY", "USD", "ZAR",
]
# fmt: on
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

    async def get_weather(self, city: str, unit: Unit = "celsius") -> str:
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
            return (
                f"{_label(place)}: {_figure(current['temperature_2m'], DEGREES[unit])} "
                f"(feels like {_figure(current['apparent_temperature'])}), {_conditions(current['weather_code'])}, "
                f"humidity {_figure(current['relative_humidity_2m'], '%')}, "
                f"wind {_figure(current['wind_speed_10m'], 'km/h')} "
                f"({_source(answer, 'open-meteo.com')})"
            )

    async def get_forecast(self, city: str, days: Days = 3, unit: Unit = "celsius") -> str:
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
            lines = [
                f"{date}: {_figure(low)} to {_figure(high, DEGREES[unit])}, {_conditions(code)}, "
                f"rain {_figure(rain, '%')}"
                for date, code, high, low, rain in columns
            ]
            return "\n".join([f"{_label(place)} ({_source(answer, 'open-meteo.com')})", *lines])

    async def convert_currency(self, amount: float, from_: Currency, to: Currency) -> str:
        """Convert an amount of money from one currency to another at the latest reference rate.

        Args:
            amount: The amount of money.
            from_: The currency it is in.
            to: The currency to convert to.
        """
        if not abs(amount) <= MAX_AMOUNT:  # nor not-a-number
            raise ToolError(f"the amount must be a number up to {MAX_AMOUNT:g}")
        if from_ == to:
            raise ToolError(f"both currencies are {from_}; name two different ones")
        answer = await self._get(
            f"{self.endpoints.exchange}/v1/latest",
            {"base": from_, "symbols": to},
            missing=f"there is no exchange rate from {from_} to {to}; try another currency",
        )
        with _expecting("the exchange rate service"):
            rate = answer["rates"][to]
            result = Decimal(in_digits(amount)) * Decimal(in_digits(rate))  # floats add cents to large sums
            # Cents would make 100 rupiah 0.01 euros, and 10 rupiah nothing.
            money = f"{result:.2f}" if abs(result) >= 0.1 else in_digits(float(f"{result:.2g}"))
            return (
                f"{in_digits(amount)} {from_} = {money} {to} "
                f"(rate {in_digits(rate)} of {answer['date']}, {_source(answer, 'frankfurter.dev')})"
            )

    async def get_time(self, city: str) -> str:
        """Get the current date and time in a city.

        Args:
            city: The name of the city, for example "Tokyo".
        """
        place, source = await self._place(city)
        with _expecting("the place search"):
            label, name = _label(place), str(place["timezone"])
        try:  # ValueError, OSError: not a name that could be a zone's ("../x"; "Europe", a folder of zones)
            local = self.now().astimezone(ZoneInfo(name))
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ToolError(f"this machine does not know the time zone {name!r}") from None
        return f"{label}: {local:%H:%M} on {local:%A %Y-%m-%d} (UTC{local:%z}, {name}; place from {source})"

    async def search_place(self, name: str) -> str:
        """Find a city or place on the map: its country, coordinates and time zone.

        Args:
            name: The name of the place, for example "Oslo" or "Paris, Texas".
        """
        place, source = await self._place(name)
        with _expecting("the place search"):
            # The geocoder leaves out what it does not know; a continent has no time zone.
            zone = f", time zone {place['timezone']}" if place.get("timezone") else ""
            people = f", population {place['population']:,}" if place.get("population") else ""
            return (
                f"{_label(place)}: latitude {in_digits(place['latitude'])}, "
                f"longitude {in_digits(place['longitude'])}{zone}{people} ({source})"
            )

    async def search_wikipedia(self, query: str) -> str:
        """Search Wikipedia for articles on a subject; read one of them with wikipedia_summary.

        Args:
            query: Words to search for.
        """
        url = f"{self.endpoints.wikipedia}/w/rest.php/v1/search/page"
        answer = await self._get(url, {"q": query, "limit": 3})
        with _expecting("Wikipedia"):
            pages = [_article(page) for page in answer["pages"]]
        if not pages:
            raise ToolError(f"Wikipedia has nothing on {query!r}; try fewer or other words")
        return "\n".join([f"Articles ({_source(answer, 'wikipedia.org')})", *pages])

    async def wikipedia_summary(self, title: str) -> str:
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
            extract = shorten(answer["extract"], MAX_EXTRACT, placeholder=" …")
            return f"{answer['title']}: {extract} ({_source(answer, 'wikipedia.org')})"

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
    """Where the figures come from, said in every result: nobody can see by themselves that they are made up."""
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


def _figure(value: float | None, unit: str = "") -> str:
    """ "3.4 °C"; the weather service has null where its model computes no value."""
    return "unknown" if value is None else f"{in_digits(value)} {unit}".rstrip()


def _conditions(code: int | None) -> str:
    return "conditions unknown" if code is None else CONDITIONS.get(code, f"weather code {code}")


def _article(page: dict[str, Any]) -> str:
    """ "Oslo: capital of Norway"; without a description, the excerpt, which is HTML and may be missing too."""
    about = page["description"] or unescape(re.sub("<[^>]*>", "", page["excerpt"] or ""))
    return f"{page['title']}: {about}".removesuffix(": ")
