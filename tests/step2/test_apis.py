"""The built-in tools over the sandbox: their answers, sentence by sentence, and errors that say what to try.

python -m pytest tests/step2/test_apis.py
"""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from step2_tool_calling.apis import Endpoints, builtin_tools
from step2_tool_calling.http_client import HttpClient
from step2_tool_calling.sandbox import sandbox
from step2_tool_calling.tool import Tool, ToolError, by_name

MADE_UP = "sandbox data, not live"
NOON = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def endpoints() -> Iterator[Endpoints]:
    with sandbox() as urls:
        yield urls


def call(endpoints: Endpoints, name: str, /, **arguments: Any) -> str:
    """Validate the arguments as the loop does, then run the tool against the sandbox."""

    async def run() -> str:
        async with HttpClient(allow_private=True, allow_hosts=endpoints.hosts()) as client:
            tool = by_name(builtin_tools(client, endpoints, now=lambda: NOON))[name]
            assert tool.problem(arguments) is None
            result = await tool.run(arguments)
            assert isinstance(result, str)
            return result

    return asyncio.run(run())


def tools() -> list[Tool]:
    return builtin_tools(HttpClient(), Endpoints())


# -- answers -----------------------------------------------------------------------------------------------------------


def test_weather(endpoints: Endpoints) -> None:
    assert call(endpoints, "get_weather", city="Oslo") == (
        "Oslo, Norway: 3.4 °C (feels like 2), light rain, humidity 82 %, wind 14 km/h (sandbox data, not live)"
    )
    assert call(endpoints, "get_weather", city="lisboa", unit="fahrenheit") == (
        "Lisbon, Portugal: 64 °F (feels like 60.7), mainly clear, humidity 66 %, wind 18.4 km/h "
        "(sandbox data, not live)"
    )
    assert "Helsinki, Uusimaa, Finland: -1.2 °C" in call(endpoints, "get_weather", city="Helsinki")


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
    assert call(endpoints, "get_weather", city=city).split(": ")[0] == place


def test_forecast(endpoints: Endpoints) -> None:
    place, *days = call(endpoints, "get_forecast", city="Madrid").split("\n")
    assert place == f"Madrid, Spain ({MADE_UP})"
    dates, weather = zip(*(day.split(": ", 1) for day in days), strict=True)
    assert weather == (
        "13.7 to 20.2 °C, clear sky, rain 5 %",
        "14.5 to 21 °C, partly cloudy, rain 10 %",
        "12.6 to 19.1 °C, clear sky, rain 5 %",
    )
    first = datetime.fromisoformat(dates[0])
    assert abs(datetime.now(ZoneInfo("Europe/Madrid")).replace(tzinfo=None) - first) < timedelta(days=1, minutes=5)
    assert [(datetime.fromisoformat(date) - first).days for date in dates] == [0, 1, 2]
    week = call(endpoints, "get_forecast", city="Madrid", days=7, unit="fahrenheit").split("\n")
    assert len(week) == 8
    assert "56.7 to 68.4 °F" in week[1]


@pytest.mark.parametrize(
    ("amount", "source", "target", "result"),
    [
        (80, "EUR", "NOK", "80 EUR = 928.00 NOK (rate 11.6 of 2026-01-15, sandbox data, not live)"),
        (1000, "JPY", "USD", "1000 JPY = 6.63 USD (rate 0.0066258 of"),
        (80.50, "EUR", "JPY", "80.5 EUR = 13121.50 JPY (rate 163 of"),
        (1234567, "EUR", "USD", "1234567 EUR = 1333332.36 USD (rate 1.08 of"),
        (1234567.89, "EUR", "USD", "1234567.89 EUR = 1333333.32 USD"),
        (1e18, "EUR", "USD", "1000000000000000000 EUR = 1080000000000000000.00 USD"),
        (0.1, "EUR", "USD", "0.1 EUR = 0.11 USD"),
        (10, "KRW", "EUR", "10 KRW = 0.0068 EUR (rate 0.00067568 of"),
        (0.01, "KRW", "EUR", "0.01 KRW = 0.0000068 EUR"),
        (0, "EUR", "USD", "0 EUR = 0 USD"),
        (-5, "EUR", "USD", "-5 EUR = -5.40 USD"),
    ],
)
def test_currency(endpoints: Endpoints, amount: float, source: str, target: str, result: str) -> None:
    answer = call(endpoints, "convert_currency", amount=amount, **{"from": source}, to=target)
    assert answer.startswith(result)


def test_time_is_the_zones_own(endpoints: Endpoints) -> None:
    assert call(endpoints, "get_time", city="Tokyo") == (
        f"Tokyo, Japan: 21:00 on Wednesday 2026-07-01 (UTC+0900, Asia/Tokyo; place from {MADE_UP})"
    )
    assert "14:00 on Wednesday 2026-07-01 (UTC+0200" in call(endpoints, "get_time", city="Oslo")  # summer time
    assert "00:00 on Thursday 2026-07-02 (UTC+1200" in call(endpoints, "get_time", city="Auckland")


def test_place(endpoints: Endpoints) -> None:
    assert call(endpoints, "search_place", name="Cape Town") == (
        "Cape Town, Western Cape, South Africa: latitude -33.9258, longitude 18.4232, "
        f"time zone Africa/Johannesburg, population 4,710,000 ({MADE_UP})"
    )


def test_wikipedia(endpoints: Endpoints) -> None:
    head, *found = call(endpoints, "search_wikipedia", query="who wrote the first compiler").split("\n")
    assert head == f"Articles ({MADE_UP})"
    assert found[0] == "Grace Hopper: American computer scientist (1906–1992)"
    assert len(found) == 3
    summary = call(endpoints, "wikipedia_summary", title="Grace Hopper")
    assert summary.startswith("Grace Hopper: Grace Hopper was an American computer scientist")
    assert summary.endswith(f"shaped COBOL. ({MADE_UP})")
    assert call(endpoints, "wikipedia_summary", title="Einstein").startswith("Albert Einstein: ")  # a redirect
    assert MADE_UP in call(endpoints, "wikipedia_summary", title="Python (programming language)")


def test_the_others(endpoints: Endpoints) -> None:
    assert call(endpoints, "calculate", expression="15% of 80") == "15% of 80 = 12"
    assert call(endpoints, "convert_units", value=60, **{"from": "mph"}, to="km/h") == "60 mph = 96.5606 km/h"


def test_every_sandbox_result_says_so_and_is_short(endpoints: Endpoints) -> None:
    calls: dict[str, dict[str, Any]] = {
        "get_weather": {"city": "Oslo"},
        "get_forecast": {"city": "Oslo"},
        "convert_currency": {"amount": 1, "from": "EUR", "to": "USD"},
        "get_time": {"city": "Oslo"},
        "search_place": {"name": "Oslo"},
        "search_wikipedia": {"query": "Oslo"},
        "wikipedia_summary": {"title": "Oslo"},
    }
    assert {tool.name for tool in tools()} == {*calls, "calculate", "convert_units"}
    for name, arguments in calls.items():
        result = call(endpoints, name, **arguments)
        assert MADE_UP in result.split("\n")[0]
        assert len(result) < 600


# -- errors a model can act on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("get_weather", {"city": "Oslooo"}, "no place called 'Oslooo'; check the spelling"),
        ("get_weather", {"city": " "}, "give the name of a place"),
        ("get_time", {"city": "Paris, Germany"}, "no Paris in 'Germany'; known places: Paris, Île-de-France, France;"),
        ("convert_currency", {"amount": 1, "from": "EUR", "to": "EUR"}, "name two different ones"),
        ("convert_currency", {"amount": float("nan"), "from": "EUR", "to": "USD"}, "up to 1e.18"),
        ("convert_currency", {"amount": -2e18, "from": "EUR", "to": "USD"}, "up to 1e.18"),
        ("search_wikipedia", {"query": "qqqqq"}, "Wikipedia has nothing on 'qqqqq'; try fewer or other words"),
        ("wikipedia_summary", {"title": "Grace Hoper"}, "no article called 'Grace Hoper'; find the right title"),
        ("wikipedia_summary", {"title": "Mercury"}, "'Mercury' may mean several things"),
        ("wikipedia_summary", {"title": ".."}, "give the title"),
        ("wikipedia_summary", {"title": " "}, "give the title"),
        ("calculate", {"expression": "__import__('os')"}, "is not arithmetic"),
        ("convert_units", {"value": 1, "from": "kg", "to": "m"}, "cannot be converted"),
    ],
)
def test_errors_say_what_to_try(endpoints: Endpoints, name: str, arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ToolError, match=reason):
        call(endpoints, name, **arguments)


# -- what the schema says ----------------------------------------------------------------------------------------------


def test_days_and_units_are_bounded_by_the_schema() -> None:
    forecast = by_name(tools())["get_forecast"]
    assert forecast.problem({"city": "Oslo", "days": 3}) is None
    assert "8 is greater than the maximum of 7" in str(forecast.problem({"city": "Oslo", "days": 8}))
    assert "is not one of ['celsius', 'fahrenheit']" in str(forecast.problem({"city": "Oslo", "unit": "kelvin"}))


@pytest.mark.parametrize("code", ["euro", "eur", " NOK", "XXX", "LISB", "BTC", "", None])
def test_an_unknown_currency_is_refused_by_the_schema(code: str | None) -> None:
    convert = by_name(tools())["convert_currency"]
    assert convert.problem({"amount": 1, "from": "EUR", "to": "USD"}) is None
    for one, other in [(code, "USD"), ("USD", code)]:
        problem = str(convert.problem({"amount": 1, "from": one, "to": other}))
        assert f"{code!r} is not one of ['AUD', 'BRL'," in problem


def test_every_tool_and_parameter_is_described() -> None:
    for tool in tools():
        assert 20 < len(tool.description) < 160, tool.name
        assert not tool.unsafe
        for name, schema in tool.parameters["properties"].items():
            assert schema.get("description"), f"{tool.name}.{name}"
