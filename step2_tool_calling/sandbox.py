"""The built-in APIs without a network: a loopback server with the same paths and shapes and a small made-up data set.

For demonstrations, lessons and tests: the tools run unchanged, over real HTTP, and answer the same every time. Every
response carries "sandbox": true, and the tools name it as the source in every result, so neither a model nor its reader
can take the figures for live ones.

    python -m step2_tool_calling ask "Is it warmer in Lisbon or in Oslo?" --sandbox

    with sandbox() as endpoints:
        async with HttpClient(allow_private=True, allow_hosts=endpoints.hosts()) as client: ...
"""

import asyncio
import json
import re
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from zoneinfo import ZoneInfo

from step2_tool_calling.apis import Endpoints
from step2_tool_calling.http_client import HttpClient
from step2_tool_calling.tool import ToolError

PROBE_SECONDS = 2.0
# Degrees by which the days of a forecast differ from today's temperature; fixed, so that examples stay true.
TREND = (1.5, 2.3, 0.4, -1.8, -0.9, 1.1, 2.0)
UNITS = {
    "time": "iso8601",
    "interval": "seconds",
    "weather_code": "wmo code",
    "wind_speed_10m": "km/h",
    "relative_humidity_2m": "%",
    "precipitation_probability_max": "%",
}
Params = dict[str, str]
Answer = tuple[int, dict[str, Any]]


@contextmanager
def sandbox() -> Iterator[Endpoints]:
    """Serve the sandbox on a free loopback port for the time of the with block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield Endpoints(geocoding=url, weather=url, exchange=url, wikipedia=url)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def network_answers(client: HttpClient, endpoints: Endpoints) -> bool:
    """Whether the place search, which most tools begin with, answers within two seconds; any failure is a no."""
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            response = await client.request(
                "GET", f"{endpoints.geocoding}/v1/search", params={"name": "Oslo", "count": 1}
            )
            # A hotel's login page answers too, but not with a place.
            return response.status == 200 and bool(response.json().get("results"))
    except (TimeoutError, ToolError, AttributeError):
        return False


@lru_cache(maxsize=1)
def _data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Path(__file__).with_name("sandbox_data.json").read_text(encoding="utf-8"))
    return data


def _folded(text: str) -> str:
    """Without case and accents: Sao Paulo finds São Paulo, as in the real search."""
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).casefold().strip()


def _search_place(params: Params) -> Answer:
    """open-meteo.com/en/docs/geocoding-api. Without a match there is no "results" at all."""
    wanted = _folded(params.get("name", ""))
    found = []
    for number, city in enumerate(_data()["cities"]):
        names = [_folded(name) for name in [city["name"], *city.get("aliases", [])]]
        # The real search wants the exact name up to two letters and takes a beginning from three on.
        if wanted in names or (len(wanted) >= 3 and any(name.startswith(wanted) for name in names)):
            entry = {key: value for key, value in city.items() if key not in ("weather", "aliases")}
            found.append({"id": number + 1, "elevation": 10.0, "feature_code": "PPL"} | entry)
    found.sort(key=lambda place: -int(place["population"]))
    answer: dict[str, Any] = {"generationtime_ms": 0.1}
    if found:
        answer["results"] = found[: int(params.get("count", "10"))]
    return 200, answer


def _forecast(params: Params) -> Answer:
    """open-meteo.com/en/docs: the parts `current` and `daily`, with the variables asked for."""
    try:
        here = float(params["latitude"]), float(params["longitude"])
    except (KeyError, ValueError):
        return 400, {
            "error": True,
            "reason": "Parameter 'latitude' and 'longitude' must have the same number of elements",
        }
    city = min(_data()["cities"], key=lambda c: (c["latitude"] - here[0]) ** 2 + (c["longitude"] - here[1]) ** 2)
    weather = city["weather"]
    fahrenheit = params.get("temperature_unit") == "fahrenheit"
    degree = "°F" if fahrenheit else "°C"
    units = UNITS | dict.fromkeys(
        ("temperature_2m", "apparent_temperature", "temperature_2m_max", "temperature_2m_min"), degree
    )

    def scale(celsius: float) -> float:
        return round(celsius * 1.8 + 32 if fahrenheit else celsius, 1)

    now = datetime.now(ZoneInfo(city["timezone"]))
    zone = now.utcoffset() or timedelta()
    answer: dict[str, Any] = {
        "latitude": city["latitude"],
        "longitude": city["longitude"],
        "generationtime_ms": 0.1,
        "utc_offset_seconds": int(zone.total_seconds()),
        "timezone": city["timezone"],
        "timezone_abbreviation": now.tzname(),
        "elevation": 10.0,
    }
    if "current" in params:
        felt = weather["temperature_2m"] - weather["wind_speed_10m"] / 10
        values = {
            "time": now.replace(minute=now.minute // 15 * 15).strftime("%Y-%m-%dT%H:%M"),
            "interval": 900,
            **weather,
            "temperature_2m": scale(weather["temperature_2m"]),
            "apparent_temperature": scale(felt),
        }
        names = ["time", "interval", *(name for name in params["current"].split(",") if name in values)]
        answer["current_units"] = {name: units[name] for name in names}
        answer["current"] = {name: values[name] for name in names}
    if "daily" in params:
        count = min(max(int(params.get("forecast_days", "7")), 1), len(TREND))
        middles = [weather["temperature_2m"] + shift for shift in TREND[:count]]
        columns = {
            "time": [(now + timedelta(days=i)).strftime("%Y-%m-%d") for i in range(count)],
            "weather_code": [weather["weather_code"] if i % 2 == 0 else 2 for i in range(count)],
            "temperature_2m_max": [scale(middle + 2.5) for middle in middles],
            "temperature_2m_min": [scale(middle - 4.0) for middle in middles],
            "precipitation_probability_max": [
                weather["precipitation_probability"] if i % 2 == 0 else 10 for i in range(count)
            ],
        }
        names = ["time", *(name for name in params["daily"].split(",") if name in columns)]
        answer["daily_units"] = {name: units[name] for name in names}
        answer["daily"] = {name: columns[name] for name in names}
    return 200, answer


def _latest_rates(params: Params) -> Answer:
    """frankfurter.dev/v1: rates per unit of the base, which itself is not among them."""
    per_eur = {"EUR": 1.0, **_data()["rates_per_eur"]}
    base = params.get("base", "EUR").upper()
    symbols = params["symbols"].upper().split(",") if "symbols" in params else list(per_eur)
    known = [code for code in symbols if code in per_eur and code != base]
    if base not in per_eur or not known:
        return 404, {"message": "not found"}
    # Five significant digits, as the real rates have.
    rates = {code: float(f"{per_eur[code] / per_eur[base]:.5g}") for code in sorted(known)}
    return 200, {"amount": 1.0, "base": base, "date": _data()["rates_date"], "rates": rates}


def _search_pages(params: Params) -> Answer:
    """mediawiki.org/wiki/API:REST_API/Reference, "Search result object". Ranked by words found, in the title first."""
    words = _words(params.get("q", ""))
    ranked = []
    for number, page in enumerate(_data()["articles"]):
        title, text = _words(page["title"]), _words(page["extract"])
        if score := 5 * len(words & title) + len({word for word in words & text if len(word) > 3}):
            ranked.append((-score, number, page))
    pages = [
        {
            "id": number + 1,
            "key": page["title"].replace(" ", "_"),
            "title": page["title"],
            "excerpt": page["extract"][:150],
            "matched_title": None,
            "description": page["description"],
            "thumbnail": None,
        }
        for _, number, page in sorted(ranked, key=lambda item: item[:2])
    ]
    return 200, {"pages": pages[: int(params.get("limit", "50"))]}


def _words(text: str) -> set[str]:
    """The words of a text; compiler and compilers are one."""
    return {word.rstrip("s") for word in re.findall(r"\w+", _folded(text))}


def _summary(title: str) -> Answer:
    """en.wikipedia.org/api/rest_v1, page/summary. Titles that redirect come back with their target's name."""
    wanted = title.replace("_", " ")
    for page in _data()["articles"]:
        if _folded(page["title"]) == _folded(wanted):
            key = page["title"].replace(" ", "_")
            return 200, {
                "type": "disambiguation" if page["description"] == "disambiguation page" else "standard",
                "title": page["title"],
                "displaytitle": page["title"],
                "titles": {"canonical": key, "normalized": page["title"], "display": page["title"]},
                "lang": "en",
                "dir": "ltr",
                "description": page["description"],
                "content_urls": {"desktop": {"page": f"https://en.wikipedia.org/wiki/{quote(key)}"}},
                "extract": page["extract"],
                "extract_html": f"<p>{page['extract']}</p>",
            }
    return 404, {"type": "Internal error", "title": "Not found.", "method": "get", "uri": f"/page/summary/{title}"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keep connections, as the real servers do
    disable_nagle_algorithm = True  # headers and body are two writes: Nagle would hold the second for 40 ms
    timeout = 30

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        params = dict(parse_qsl(url.query))
        routes = {
            "/v1/search": _search_place,
            "/v1/forecast": _forecast,
            "/v1/latest": _latest_rates,
            "/w/rest.php/v1/search/page": _search_pages,
        }
        summary = "/api/rest_v1/page/summary/"
        title = unquote(url.path.removeprefix(summary))
        if url.path.startswith(summary) and (target := _data()["redirects"].get(title)):
            self._send(302, {}, location=quote(target.replace(" ", "_"), safe=""))
        elif url.path.startswith(summary):
            self._send(*_summary(title))
        elif route := routes.get(url.path):
            try:
                self._send(*route(params))
            except ValueError:  # count=many
                self._send(400, {"error": True, "reason": "a parameter has a wrong value"})
        else:
            self._send(404, {"message": "not found"})

    def _send(self, status: int, answer: dict[str, Any], location: str | None = None) -> None:
        body = json.dumps({"sandbox": True, **answer}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Stay silent: the terminal belongs to the conversation."""
