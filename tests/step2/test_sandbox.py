"""The sandbox: the same paths and key names as the real APIs, marked in every response; and the probe of the network.

The keys below are those of the APIs' own documentation: open-meteo.com/en/docs and /en/docs/geocoding-api,
frankfurter.dev/v1, mediawiki.org/wiki/API:REST_API/Reference ("Search result object") and
mediawiki.org/wiki/Specs/Summary.

python -m pytest tests/step2/test_sandbox.py
"""

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_args
from zoneinfo import ZoneInfo

import pytest

from step2_tool_calling import apis
from step2_tool_calling import sandbox as sandbox_module
from step2_tool_calling.apis import CONDITIONS, Endpoints
from step2_tool_calling.http_client import HttpClient, Response
from step2_tool_calling.sandbox import network_answers, sandbox
from step2_tool_calling.tool import ToolError

DATA = json.loads(Path(sandbox_module.__file__).with_name("sandbox_data.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def endpoints() -> Iterator[Endpoints]:
    with sandbox() as urls:
        yield urls


def get(endpoints: Endpoints, path: str, **params: Any) -> Response:
    async def run() -> Response:
        async with HttpClient(allow_private=True, allow_hosts=endpoints.hosts(), retries=0) as client:
            return await client.request("GET", endpoints.weather + path, params=params)

    return asyncio.run(run())


def test_place_search_has_the_documented_shape(endpoints: Endpoints) -> None:
    answer = get(endpoints, "/v1/search", name="Oslo", count=1, language="en", format="json").json()
    assert set(answer) == {"sandbox", "results", "generationtime_ms"}
    documented = {
        *("id", "name", "latitude", "longitude", "elevation", "timezone", "feature_code", "country_code"),
        *("country", "country_id", "population", "postcodes", "admin1", "admin2", "admin3", "admin4"),
    }
    assert set(answer["results"][0]) <= documented
    assert {"id", "name", "latitude", "longitude", "timezone", "country", "country_code"} <= set(answer["results"][0])
    # No match: the key is missing, not empty.
    assert set(get(endpoints, "/v1/search", name="Oslooo").json()) == {"sandbox", "generationtime_ms"}


def test_forecast_has_the_documented_shape(endpoints: Endpoints) -> None:
    answer = get(
        endpoints,
        "/v1/forecast",
        latitude=59.9,
        longitude=10.7,
        current="temperature_2m,weather_code,wind_speed_10m",
        daily="temperature_2m_max,weather_code",
        forecast_days=2,
    ).json()
    outer = {
        *("latitude", "longitude", "generationtime_ms", "utc_offset_seconds", "timezone", "timezone_abbreviation"),
        *("elevation", "current_units", "current", "daily_units", "daily"),
    }
    assert set(answer) == outer | {"sandbox"}
    assert set(answer["current"]) == {"time", "interval", "temperature_2m", "weather_code", "wind_speed_10m"}
    assert set(answer["current_units"]) == set(answer["current"])
    assert answer["current_units"]["temperature_2m"] == "°C"
    assert {name: len(column) for name, column in answer["daily"].items()} == {
        "time": 2,
        "temperature_2m_max": 2,
        "weather_code": 2,
    }
    missing = get(endpoints, "/v1/forecast")
    assert (missing.status, set(missing.json())) == (400, {"sandbox", "error", "reason"})


def test_rates_have_the_documented_shape(endpoints: Endpoints) -> None:
    answer = get(endpoints, "/v1/latest", base="USD", symbols="EUR,NOK").json()
    assert set(answer) == {"sandbox", "amount", "base", "date", "rates"}
    assert (answer["amount"], answer["base"], set(answer["rates"])) == (1.0, "USD", {"EUR", "NOK"})
    assert answer["rates"]["NOK"] == pytest.approx(11.6 / 1.08, rel=1e-4)
    everything = get(endpoints, "/v1/latest").json()
    assert everything["base"] == "EUR"
    assert "EUR" not in everything["rates"]
    assert (get(endpoints, "/v1/latest", base="XXX").status, get(endpoints, "/v1/latest", symbols="XXX").status) == (
        404,
        404,
    )


def test_wikipedia_has_the_documented_shape(endpoints: Endpoints) -> None:
    answer = get(endpoints, "/w/rest.php/v1/search/page", q="jupiter moon", limit=2).json()
    assert set(answer) == {"sandbox", "pages"}
    keys = {"id", "key", "title", "excerpt", "matched_title", "description", "thumbnail"}
    assert [set(page) for page in answer["pages"]] == [keys] * 2
    summary = get(endpoints, "/api/rest_v1/page/summary/Marie_Curie").json()
    assert {"type", "title", "displaytitle", "titles", "lang", "dir", "description", "extract", "extract_html"} <= set(
        summary
    )
    assert summary["type"] == "standard"
    assert get(endpoints, "/api/rest_v1/page/summary/EU").json()["title"] == "European Union"
    assert get(endpoints, "/api/rest_v1/page/summary/Nothing_Here").status == 404
    assert get(endpoints, "/api/rest_v1/page/summary/Mercury").json()["type"] == "disambiguation"


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("/v1/search", {"name": "Oslo"}),
        ("/v1/search", {"name": "Oslo", "count": "many"}),
        ("/v1/search", {}),
        ("/v1/forecast", {}),
        ("/v1/forecast", {"latitude": 1, "longitude": 2, "daily": "weather_code", "forecast_days": "x"}),
        ("/v1/latest", {}),
        ("/v1/latest", {"base": "?"}),
        ("/w/rest.php/v1/search/page", {}),
        ("/api/rest_v1/page/summary/", {}),
        ("/api/rest_v1/page/summary/Einstein", {}),
        ("/nothing", {}),
        ("/", {}),
    ],
)
def test_every_response_is_marked(endpoints: Endpoints, path: str, params: dict[str, Any]) -> None:
    response = get(endpoints, path, **params)
    assert response.json()["sandbox"] is True
    assert response.status in (200, 400, 404)


def test_the_data_are_whole() -> None:
    assert len(DATA["cities"]) >= 40
    assert len(DATA["rates_per_eur"]) >= 20
    assert {"EUR", *DATA["rates_per_eur"]} == set(get_args(apis.Currency))  # every one that a model may ask for
    assert len(DATA["articles"]) == 30
    for city in DATA["cities"]:
        ZoneInfo(city["timezone"])
        assert -90 <= city["latitude"] <= 90
        assert -180 <= city["longitude"] <= 180
        assert city["weather"]["weather_code"] in CONDITIONS
    titles = {page["title"] for page in DATA["articles"]}
    assert len(titles) == 30
    assert set(DATA["redirects"].values()) <= titles
    assert all(len(page["extract"]) < apis.MAX_EXTRACT for page in DATA["articles"])


def test_two_sandboxes_live_side_by_side_and_end() -> None:
    with sandbox() as one, sandbox() as two:
        assert one != two
        assert get(one, "/v1/latest").json() == get(two, "/v1/latest").json()
    with pytest.raises(ToolError, match="could not connect"):
        get(one, "/v1/latest")


# -- is there a network? -----------------------------------------------------------------------------------------------


def answers(endpoints: Endpoints) -> bool:
    async def run() -> bool:
        async with HttpClient(allow_private=True) as client:
            return await network_answers(client, endpoints)

    return asyncio.run(run())


class Login(BaseHTTPRequestHandler):
    """A hotel's login page: status 200 to everything."""

    body = b"<html>"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: Any) -> None: ...


class Silent(Login):
    def do_GET(self) -> None:
        threading.Event().wait(0.4)


@pytest.mark.parametrize(
    ("handler", "body"), [(Login, b"<html>"), (Login, b"[]"), (Login, b'{"results": []}'), (Silent, b"")]
)
def test_a_network_that_does_not_answer_properly(
    handler: type[Login], body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox_module, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(Login, "body", body)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        assert answers(Endpoints(geocoding=f"http://127.0.0.1:{server.server_port}")) is False
    finally:
        server.shutdown()
        server.server_close()


def test_a_network_that_answers_and_one_that_is_not_there(
    endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answers(endpoints) is True
    monkeypatch.setattr(sandbox_module, "PROBE_SECONDS", 0.5)
    assert answers(Endpoints(geocoding="http://127.0.0.1:9")) is False


def test_offline_is_a_plain_no(no_network: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_module, "PROBE_SECONDS", 0.5)
    assert answers(Endpoints()) is False
    assert set(no_network) == {"geocoding-api.open-meteo.com"}
    no_network.clear()
