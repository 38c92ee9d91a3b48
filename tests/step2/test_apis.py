"""The built-in tools: what they answer over the sandbox, what they ask of the real APIs, how they fail.

python -m pytest tests/step2/test_apis.py
"""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from step2_tool_calling.apis import CONDITIONS, SANDBOX, Endpoints, builtin_tools
from step2_tool_calling.http_client import HttpClient, Response
from step2_tool_calling.sandbox import sandbox
from step2_tool_calling.tool import Tool, ToolError, as_text, by_name

NOON = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def endpoints() -> Iterator[Endpoints]:
    with sandbox() as urls:
        yield urls


def call(endpoints: Endpoints, name: str, /, **arguments: Any) -> Any:
    """Validate the arguments as the loop does, then run the tool against the sandbox."""

    async def run() -> Any:
        async with HttpClient(allow_private=True, allow_hosts=endpoints.hosts()) as client:
            tool = by_name(builtin_tools(client, endpoints, now=lambda: NOON))[name]
            assert tool.problem(arguments) is None
            return await tool.run(arguments)

    return asyncio.run(run())


class Scripted(HttpClient):
    """A client that answers from a function and remembers what was asked."""

    def __init__(self, answer: Callable[[str], tuple[int, Any]]) -> None:
        super().__init__()
        self.answer = answer
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def request(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
    ) -> Response:
        self.asked.append((url, dict(params or {})))
        status, body = self.answer(url)
        return Response(status, body if isinstance(body, str) else _dumps(body), "api.test")


def _dumps(body: Any) -> str:
    return json.dumps(body)


def scripted(answer: Callable[[str], tuple[int, Any]], name: str, /, **arguments: Any) -> tuple[Any, Scripted]:
    client = Scripted(answer)
    tool = by_name(builtin_tools(client, Endpoints(), now=lambda: NOON))[name]
    return asyncio.run(tool.run(arguments)), client


def tools() -> list[Tool]:
    return builtin_tools(Scripted(lambda url: (500, {})), Endpoints())


# -- answers -----------------------------------------------------------------------------------------------------------


def test_weather(endpoints: Endpoints) -> None:
    oslo = call(endpoints, "get_weather", city="Oslo")
    assert oslo.pop("local_time")[:4].isdigit()
    assert oslo == {
        "place": "Oslo, Norway",
        "temperature": 3.4,
        "feels_like": 2.0,
        "unit": "celsius",
        "conditions": "light rain",
        "humidity_percent": 82,
        "wind_kmh": 14.0,
        "source": SANDBOX,
    }
    lisbon = call(endpoints, "get_weather", city="lisboa", unit="fahrenheit")
    assert (lisbon["place"], lisbon["temperature"], lisbon["unit"]) == ("Lisbon, Portugal", 64.0, "fahrenheit")


@pytest.mark.parametrize(
    ("city", "place"),
    [
        ("paris", "Paris, Île-de-France, France"),
        ("Paris, France", "Paris, Île-de-France, France"),
        ("Paris, Texas", "Paris, Texas, United States"),
        ("Paris, TX", "Paris, Texas, United States"),
        ("Paris, Texas, USA", "Paris, Texas, United States"),
        ("Paris, US", "Paris, Texas, United States"),
        ("London, UK", "London, England, United Kingdom"),
        ("New York, NY", "New York, United States"),
        (" Oslo , Norway ", "Oslo, Norway"),
        ("Oslo,", "Oslo, Norway"),
        ("Sao Paulo", "São Paulo, Brazil"),
        ("reykja", "Reykjavik, Capital Region, Iceland"),
        ("Singapore", "Singapore"),
    ],
)
def test_how_people_write_places(endpoints: Endpoints, city: str, place: str) -> None:
    assert call(endpoints, "get_weather", city=city)["place"] == place


def test_forecast(endpoints: Endpoints) -> None:
    forecast = call(endpoints, "get_forecast", city="Madrid")
    assert [sorted(day) for day in forecast["days"]] == [["conditions", "date", "high", "low", "rain_percent"]] * 3
    first = forecast["days"][0]
    assert (first["high"], first["low"], first["conditions"], first["rain_percent"]) == (20.2, 13.7, "clear sky", 5)
    dates = [datetime.fromisoformat(day["date"]) for day in forecast["days"]]
    assert [(date - dates[0]).days for date in dates] == [0, 1, 2]
    assert len(call(endpoints, "get_forecast", city="Madrid", days=7)["days"]) == 7


def test_currency(endpoints: Endpoints) -> None:
    assert call(endpoints, "convert_currency", amount=80, from_currency="eur", to_currency=" NOK") == {
        "amount": 80,
        "from": "EUR",
        "to": "NOK",
        "result": 928.0,
        "rate": 11.6,
        "date": "2026-01-15",
        "source": SANDBOX,
    }
    back = call(endpoints, "convert_currency", amount=1000, from_currency="JPY", to_currency="USD")
    assert back["rate"] == 0.0066258
    assert back["result"] == 6.63


def test_time_is_the_zones_own(endpoints: Endpoints) -> None:
    tokyo = call(endpoints, "get_time", city="Tokyo")
    assert (tokyo["time"], tokyo["date"], tokyo["utc_offset"]) == ("21:00", "Wednesday 2026-07-01", "+0900")
    assert call(endpoints, "get_time", city="Oslo")["time"] == "14:00"  # summer time
    auckland = call(endpoints, "get_time", city="Auckland")
    assert (auckland["time"], auckland["date"]) == ("00:00", "Thursday 2026-07-02")


def test_place(endpoints: Endpoints) -> None:
    place = call(endpoints, "search_place", name="Cape Town")
    assert (place["country"], place["latitude"], place["longitude"]) == ("South Africa", -33.9258, 18.4232)
    assert place["timezone"] == "Africa/Johannesburg"


def test_wikipedia(endpoints: Endpoints) -> None:
    found = call(endpoints, "search_wikipedia", query="who wrote the first compiler")
    assert found["articles"][0] == {
        "title": "Grace Hopper",
        "description": "American computer scientist (1906–1992)",
    }
    assert len(found["articles"]) == 3
    summary = call(endpoints, "wikipedia_summary", title="Grace Hopper")
    assert "COBOL" in summary["summary"]
    assert call(endpoints, "wikipedia_summary", title="Einstein")["title"] == "Albert Einstein"  # a redirect
    assert call(endpoints, "wikipedia_summary", title="Python (programming language)")["source"] == SANDBOX


def test_the_others(endpoints: Endpoints) -> None:
    assert call(endpoints, "calculate", expression="15% of 80") == 12
    assert call(endpoints, "convert_units", value=60, from_unit="mph", to_unit="km/h")["result"] == 96.5606


def test_every_sandbox_result_says_so_and_is_short(endpoints: Endpoints) -> None:
    calls: dict[str, dict[str, Any]] = {
        "get_weather": {"city": "Oslo"},
        "get_forecast": {"city": "Oslo"},
        "convert_currency": {"amount": 1, "from_currency": "EUR", "to_currency": "USD"},
        "get_time": {"city": "Oslo"},
        "search_place": {"name": "Oslo"},
        "search_wikipedia": {"query": "Oslo"},
        "wikipedia_summary": {"title": "Oslo"},
    }
    assert {tool.name for tool in tools()} == {*calls, "calculate", "convert_units"}
    for name, arguments in calls.items():
        result = call(endpoints, name, **arguments)
        assert result["source"] == "sandbox data, not live"
        assert len(as_text(result)) < 600


# -- errors a model can act on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("get_weather", {"city": "Oslooo"}, "no place called 'Oslooo'; check the spelling"),
        ("get_weather", {"city": " "}, "give the name of a place"),
        ("get_time", {"city": "Paris, Germany"}, "no Paris in 'Germany'; known places: Paris, Île-de-France, France;"),
        (
            "convert_currency",
            {"amount": 1, "from_currency": "euro", "to_currency": "USD"},
            "'EURO' is not a currency; use a three-letter ISO code",
        ),
        (
            "convert_currency",
            {"amount": 1, "from_currency": "EUR", "to_currency": "XXX"},
            "no exchange rate from EUR to XXX",
        ),
        ("convert_currency", {"amount": 1, "from_currency": "EUR", "to_currency": "eur"}, "name two different ones"),
        ("convert_currency", {"amount": float("nan"), "from_currency": "EUR", "to_currency": "USD"}, "finite"),
        ("search_wikipedia", {"query": "qqqqq"}, "Wikipedia has nothing on 'qqqqq'; try fewer or other words"),
        ("wikipedia_summary", {"title": "Grace Hoper"}, "no article called 'Grace Hoper'; find the right title"),
        ("wikipedia_summary", {"title": "Mercury"}, "'Mercury' may mean several things"),
        ("wikipedia_summary", {"title": ".."}, "give the title"),
        ("wikipedia_summary", {"title": " "}, "give the title"),
        ("calculate", {"expression": "__import__('os')"}, "is not arithmetic"),
        ("convert_units", {"value": 1, "from_unit": "kg", "to_unit": "m"}, "cannot be converted"),
    ],
)
def test_errors_say_what_to_try(endpoints: Endpoints, name: str, arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ToolError, match=reason):
        call(endpoints, name, **arguments)


def test_days_and_units_are_bounded_by_the_schema() -> None:
    forecast = by_name(tools())["get_forecast"]
    assert forecast.problem({"city": "Oslo", "days": 3}) is None
    assert "8 is greater than the maximum of 7" in str(forecast.problem({"city": "Oslo", "days": 8}))
    assert "is not one of ['celsius', 'fahrenheit']" in str(forecast.problem({"city": "Oslo", "unit": "kelvin"}))


PLACE = {
    "name": "X",
    "latitude": 1.0,
    "longitude": 2.0,
    "timezone": "Europe/Oslo",
    "country": "Y",
    "country_code": "YY",
}


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (500, {"reason": "down"}, "api.test answered with status 500; try again later"),
        (429, {}, "status 429"),
        (200, "<html>login</html>", "api.test did not answer in JSON"),
        (200, [1], "unexpected form"),
        (200, {"results": [{"nothing": 1}], "current": {}, "pages": [{}], "rates": {}, "type": "x"}, "unexpected form"),
        (200, {"results": 5, "pages": 5, "rates": 5}, "unexpected form"),
        (200, {"results": [5], "pages": None, "rates": None}, "unexpected form"),
    ],
)
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("get_weather", {"city": "X"}),
        ("get_forecast", {"city": "X"}),
        ("get_time", {"city": "X"}),
        ("search_place", {"name": "X"}),
        ("convert_currency", {"amount": 1, "from_currency": "EUR", "to_currency": "USD"}),
        ("search_wikipedia", {"query": "X"}),
        ("wikipedia_summary", {"title": "X"}),
    ],
)
def test_a_broken_api_is_a_sentence(name: str, arguments: dict[str, Any], status: int, body: Any, reason: str) -> None:
    with pytest.raises(ToolError, match=reason):
        scripted(lambda url: (status, body), name, **arguments)


def test_weather_that_changed_its_form_and_unknown_codes() -> None:
    def answer(url: str) -> tuple[int, Any]:
        return 200, {"results": [PLACE]} if "geocoding" in url else {"current": {"temperature_2m": 1}}

    with pytest.raises(ToolError, match="the weather service answered in an unexpected form"):
        scripted(answer, "get_weather", city="X")

    def strange(url: str) -> tuple[int, Any]:
        values = dict.fromkeys(("temperature_2m", "apparent_temperature", "relative_humidity_2m", "wind_speed_10m"), 1)
        current = {**values, "weather_code": 42, "time": "2026-01-01T00:00"}
        return 200, {"results": [PLACE]} if "geocoding" in url else {"current": current}

    result, _ = scripted(strange, "get_weather", city="X")
    assert result["conditions"] == "weather code 42"
    assert result["source"] == "open-meteo.com"  # live answers are not called sandbox data
    assert len(CONDITIONS) == 28


def test_an_unknown_time_zone() -> None:
    for zone in ("Mars/Olympus", "../../etc/passwd", ""):
        with pytest.raises(ToolError, match="does not know the time zone"):
            scripted(lambda url, zone=zone: (200, {"results": [{**PLACE, "timezone": zone}]}), "get_time", city="X")


# -- what is asked of the real APIs ------------------------------------------------------------------------------------


def test_requests_follow_the_documentation_of_the_apis() -> None:
    def answer(url: str) -> tuple[int, Any]:
        if "geocoding" in url:
            return 200, {"results": [PLACE]}
        raise ToolError("stop here")

    client = Scripted(answer)
    index = by_name(builtin_tools(client, Endpoints()))
    for name, arguments in [
        ("get_weather", {"city": "Oslo", "unit": "fahrenheit"}),
        ("get_forecast", {"city": "Paris, Y", "days": 2}),
        ("convert_currency", {"amount": 1, "from_currency": "EUR", "to_currency": "NOK"}),
        ("search_wikipedia", {"query": "a b"}),
        ("wikipedia_summary", {"title": "../../a b?c=1#d"}),
    ]:
        with pytest.raises(ToolError, match="stop here"):
            asyncio.run(index[name].run(arguments))
    where = {"latitude": 1.0, "longitude": 2.0, "timezone": "auto"}
    now = "temperature_2m,apparent_temperature,relative_humidity_2m,weather_code,wind_speed_10m"
    daily = "weather_code,temperature_2m_max,temperature_2m_min,precipitation_probability_max"
    place = {"language": "en", "format": "json"}
    assert client.asked == [
        ("https://geocoding-api.open-meteo.com/v1/search", {"name": "Oslo", "count": 1, **place}),
        ("https://api.open-meteo.com/v1/forecast", {**where, "current": now, "temperature_unit": "fahrenheit"}),
        ("https://geocoding-api.open-meteo.com/v1/search", {"name": "Paris", "count": 10, **place}),
        (
            "https://api.open-meteo.com/v1/forecast",
            {**where, "daily": daily, "forecast_days": 2, "temperature_unit": "celsius"},
        ),
        ("https://api.frankfurter.dev/v1/latest", {"base": "EUR", "symbols": "NOK"}),
        ("https://en.wikipedia.org/w/rest.php/v1/search/page", {"q": "a b", "limit": 3}),
        ("https://en.wikipedia.org/api/rest_v1/page/summary/..%2F..%2Fa_b%3Fc%3D1%23d", {}),
    ]


def test_the_client_may_be_held_to_the_hosts_of_the_apis() -> None:
    assert Endpoints().hosts() == {
        "geocoding-api.open-meteo.com",
        "api.open-meteo.com",
        "api.frankfurter.dev",
        "en.wikipedia.org",
    }


def test_every_tool_and_parameter_is_described() -> None:
    for tool in tools():
        assert 20 < len(tool.description) < 160, tool.name
        assert not tool.unsafe
        for name, schema in tool.parameters["properties"].items():
            assert schema.get("description"), f"{tool.name}.{name}"
