"""The built-in tools and the real APIs: what they ask, and what they make of answers the sandbox never gives.

python -m pytest tests/step2/test_apis_live.py
"""

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from json import dumps
from typing import Any

import pytest

from step2_tool_calling.apis import CONDITIONS, Endpoints, builtin_tools
from step2_tool_calling.http_client import HttpClient, Response
from step2_tool_calling.tool import ToolError, by_name

NOON = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
PLACE = {
    "name": "X",
    "latitude": 1.0,
    "longitude": 2.0,
    "timezone": "Europe/Oslo",
    "country": "Y",
    "country_code": "YY",
}


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
        return Response(status, body if isinstance(body, str) else dumps(body), "api.test")


def scripted(answer: Callable[[str], tuple[int, Any]], name: str, /, **arguments: Any) -> Any:
    tool = by_name(builtin_tools(Scripted(answer), Endpoints(), now=lambda: NOON))[name]
    return asyncio.run(tool.run(arguments))


# -- what is asked -----------------------------------------------------------------------------------------------------


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
        ("convert_currency", {"amount": 1, "from": "EUR", "to": "NOK"}),
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


# -- answers the sandbox never gives -----------------------------------------------------------------------------------


def test_a_rate_in_the_hundred_thousandths_has_digits_and_no_exponent() -> None:
    answer = scripted(
        lambda url: (200, {"rates": {"EUR": 5.2e-05}, "date": "2026-01-15"}),
        "convert_currency",
        amount=100000,
        **{"from": "IDR"},
        to="EUR",
    )
    assert answer == "100000 IDR = 5.20 EUR (rate 0.000052 of 2026-01-15, frankfurter.dev)"


def test_a_currency_without_a_rate() -> None:
    with pytest.raises(ToolError, match="no exchange rate from ISK to THB; try another currency"):
        scripted(lambda url: (404, {}), "convert_currency", amount=1, **{"from": "ISK"}, to="THB")


@pytest.mark.parametrize("empty", [{}, {"admin1": None, "country": None, "population": None, "timezone": None}])
def test_what_the_place_search_does_not_know_is_left_out(empty: dict[str, None]) -> None:
    place = {"name": "Antarctica", "latitude": -90.0, "longitude": 0.0, **empty}
    result = scripted(lambda url: (200, {"results": [place]}), "search_place", name="Antarctica")
    assert result == "Antarctica: latitude -90, longitude 0 (open-meteo.com)"


def test_wikipedia_without_descriptions_and_at_length() -> None:
    excerpt = 'wrote &quot;the <span class="searchmatch">compiler</span>&quot;'
    pages = [
        {"title": "A", "description": None, "excerpt": excerpt},
        {"title": "B", "description": None, "excerpt": None},
    ]
    found = scripted(lambda url: (200, {"pages": pages}), "search_wikipedia", query="compiler")
    assert found == 'Articles (wikipedia.org)\nA: wrote "the compiler"\nB'
    page = {"type": "standard", "title": "A", "extract": "word " * 1000}
    summary = scripted(lambda url: (200, page), "wikipedia_summary", title="A")
    assert summary.endswith("word … (wikipedia.org)")
    assert 690 < len(summary) < 730


def test_weather_that_changed_its_form_and_unknown_codes() -> None:
    def answer(url: str) -> tuple[int, Any]:
        return 200, {"results": [PLACE]} if "geocoding" in url else {"current": {"temperature_2m": 1}}

    with pytest.raises(ToolError, match="the weather service answered in an unexpected form"):
        scripted(answer, "get_weather", city="X")

    def strange(url: str) -> tuple[int, Any]:
        values = dict.fromkeys(("temperature_2m", "apparent_temperature", "relative_humidity_2m", "wind_speed_10m"), 1)
        current = {**values, "weather_code": 42, "time": "2026-01-01T00:00"}
        return 200, {"results": [PLACE]} if "geocoding" in url else {"current": current}

    result = scripted(strange, "get_weather", city="X")  # a live answer is not called sandbox data
    assert result == "X, Y: 1 °C (feels like 1), weather code 42, humidity 1 %, wind 1 km/h (open-meteo.com)"
    assert len(CONDITIONS) == 28


def test_figures_the_weather_service_does_not_have() -> None:
    nothing = {"temperature_2m": 1.5, "apparent_temperature": None, "relative_humidity_2m": None}
    current = {**nothing, "weather_code": None, "wind_speed_10m": None}
    names = ("weather_code", "temperature_2m_max", "temperature_2m_min", "precipitation_probability_max")
    answer = {
        "results": [PLACE],
        "current": current,
        "daily": {"time": ["2026-01-01"], **{name: [None] for name in names}},
    }
    result = scripted(lambda url: (200, answer), "get_weather", city="X")
    assert result == (
        "X, Y: 1.5 °C (feels like unknown), conditions unknown, humidity unknown, wind unknown (open-meteo.com)"
    )
    forecast = scripted(lambda url: (200, answer), "get_forecast", city="X")
    assert forecast == "X, Y (open-meteo.com)\n2026-01-01: unknown to unknown, conditions unknown, rain unknown"


def test_an_unknown_time_zone() -> None:
    for zone in ("Mars/Olympus", "../../etc/passwd", "", "Europe", None, 5):
        with pytest.raises(ToolError, match="does not know the time zone"):
            scripted(lambda url, zone=zone: (200, {"results": [{**PLACE, "timezone": zone}]}), "get_time", city="X")


# -- answers that are none ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (500, {"reason": "down"}, "api.test answered with status 500; try again later"),
        (429, {}, "status 429"),
        (200, "<html>login</html>", "api.test did not answer in JSON"),
        (200, [1], "unexpected form"),
        (200, {"results": [{"nothing": 1}], "current": {}, "pages": [{}], "rates": {}, "type": "x"}, "unexpected form"),
        (200, {"results": 5, "pages": 5, "rates": 5}, "unexpected form"),
        (200, {"results": [{"timezone": "Europe/Oslo"}], "rates": {"USD": "1.1"}, "extract": 1}, "unexpected form"),
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
        ("convert_currency", {"amount": 1, "from": "EUR", "to": "USD"}),
        ("search_wikipedia", {"query": "X"}),
        ("wikipedia_summary", {"title": "X"}),
    ],
)
def test_a_broken_api_is_a_sentence(name: str, arguments: dict[str, Any], status: int, body: Any, reason: str) -> None:
    with pytest.raises(ToolError, match=reason):
        scripted(lambda url: (status, body), name, **arguments)
