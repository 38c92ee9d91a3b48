"""Alert rules and dashboard: they name what is exported, promtool accepts them, a real Prometheus finds the data."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from conftest import chat_body, eventually, new_key
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from step5_serving.admission import Admission
from step5_serving.engines import Engines
from step5_serving.launch import Launch, free_port
from step5_serving.metrics import LATENCY, Metrics
from step5_serving.service import Options, serve_in_thread

PACKAGE = Path(__file__).parents[2] / "step5_serving"
DEPLOY = PACKAGE / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text("utf-8"))["groups"] for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text("utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
# node_exporter's, from its collector/filesystem_common.go; the rest is ours or vLLM's and looked up.
NODE = {"node_filesystem_avail_bytes", "node_filesystem_size_bytes"}


def series_of(kind: str, name: str) -> list[str]:
    if kind == "histogram":
        return [f"{name}_{suffix}" for suffix in ("bucket", "count", "sum")]
    return [name if name.endswith("_total") else f"{name}_total"] if kind == "counter" else [name]


def vllm_metrics() -> list[tuple[str, str]]:
    lines = (PROMETHEUS / "vllm_metrics.txt").read_text("utf-8").splitlines()
    return [(name, kind) for name, kind in (line.split() for line in lines if not line.startswith("#"))]


def exported() -> set[str]:
    """Every series name of the gateway's /metrics, of vLLM and of node_exporter, and what the rules record."""
    metrics = Metrics()
    metrics.watch(Admission(0, 4.0, 300.0), Engines([], lambda: None))
    types = re.findall(r"^# TYPE (\S+) (\w+)$", metrics.text().decode(), re.M)
    ours = {series for name, kind in types for series in series_of(kind, name)}
    vllm = {series for name, kind in vllm_metrics() for series in series_of(kind, name)}
    return ours | vllm | NODE | {"up"} | {rule["record"] for rule in RULES if "record" in rule}


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:gateway_|node_|vllm:|slo:)[\w:]+|\bup\b", re.sub(r'"[^"]*"', '""', expression)))


@pytest.mark.parametrize(
    "expression", [rule["expr"] for rule in RULES] + [query for _, query in QUERIES], ids=lambda text: text[:60]
)
def test_every_metric_that_is_asked_for_exists(expression: str) -> None:
    names = names_in(expression)
    assert names
    assert names <= exported()


def test_the_first_token_objective_is_a_bucket_and_every_error_kind_is_one_of_the_code() -> None:
    text = "".join(rule["expr"] for rule in RULES) + "".join(query for _, query in QUERIES)
    assert {float(bound) for bound in re.findall(r'le="([^"]+)"', text)} <= set(LATENCY)
    source = "".join(path.read_text("utf-8") for path in PACKAGE.glob("*.py"))
    kinds = {kind for match in re.findall(r'kind=~?"([a-z_|]+)"', text) for kind in match.split("|")}
    assert "engine_lost" in kinds
    assert {kind for kind in kinds if f'"{kind}"' not in source} == set()


def test_every_alert_has_a_severity_a_place_in_the_runbook_and_a_unit_test_that_sees_it_fire() -> None:
    runbook = (DEPLOY / "README.md").read_text("utf-8")
    headings = {line.lstrip("# ").strip().lower() for line in runbook.splitlines() if line.startswith("#")}
    tests = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text("utf-8"))["tests"]
    fired = {check["alertname"] for test in tests for check in test["alert_rule_test"] if check.get("exp_alerts")}
    assert fired == set(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["runbook"] == f"step5_serving/deploy/README.md#{name.lower()}"
        assert name.lower() in headings


def test_the_dashboard_leaves_the_choice_of_prometheus_to_a_variable_and_no_panel_hides_another() -> None:
    assert [v["name"] for v in DASHBOARD["templating"]["list"] if v["type"] == "datasource"] == ["datasource"]
    identities = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identities)) == len(identities)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        box = panel["gridPos"]
        cells = {(box["x"] + x, box["y"] + y) for x in range(box["w"]) for y in range(box["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells
        for part in [panel, *panel.get("targets", [])] if panel["type"] != "row" else []:
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        assert not os.environ.get("CI"), f"{name} must be there in CI (Debian's package prometheus)"
        pytest.skip(f"{name} is not installed (Debian's package prometheus)")
    return found


@pytest.mark.real
def test_promtool_accepts_the_rules_their_tests_pass_and_the_configuration_is_valid() -> None:
    for arguments in (
        ("check", "rules", "rules.yml"),
        ("check", "config", "--syntax-only", "prometheus.yml"),
        ("test", "rules", "rules_test.yml"),
    ):
        done = subprocess.run([program("promtool"), *arguments], cwd=PROMETHEUS, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def vllm_exporter() -> Iterator[int]:
    """vLLM's metrics by their real names, growing as under load; yields the port."""
    registry = CollectorRegistry()
    wanted = {name for _, query in QUERIES for name in names_in(query)}
    made: list[Any] = []
    for name, kind in vllm_metrics():
        if wanted & set(series_of(kind, name)):
            made.append(
                {"gauge": Gauge, "counter": Counter, "histogram": Histogram}[kind](name, name, registry=registry)
            )
    port = free_port()
    server, thread = start_http_server(port, "127.0.0.1", registry)
    ending = threading.Event()

    def grow() -> None:
        while not ending.wait(0.2):
            for metric in made:
                metric.set(0.5) if isinstance(metric, Gauge) else metric.inc()

    growing = threading.Thread(target=grow, daemon=True)
    growing.start()
    try:
        yield port
    finally:
        ending.set()
        growing.join()
        server.shutdown()
        thread.join()


@contextmanager
def prometheus(folder: Path, targets: dict[str, str]) -> Iterator[httpx.Client]:
    """A real Prometheus that scrapes every second and evaluates the rules; yields a client of its API."""
    shutil.copy(PROMETHEUS / "rules.yml", folder)
    ours = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    relabel = {job["job_name"]: job.get("metric_relabel_configs", []) for job in ours}
    jobs = [
        {"job_name": name, "static_configs": [{"targets": [target]}], "metric_relabel_configs": relabel[name]}
        for name, target in targets.items()
    ]
    config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": ["rules.yml"]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config | {"scrape_configs": jobs}))
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log,
        )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, verify=False, timeout=10) as client:
            yield client
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.real
def test_every_query_of_the_dashboard_finds_data_in_a_real_prometheus(home: Path, tmp_path: Path) -> None:
    program("prometheus")
    key, port = new_key(), free_port()
    command = [sys.executable, str(Path(__file__).with_name("fake_engine.py")), "--port", str(port)]
    launch = Launch("fake", "fake-model", command, {}, f"http://127.0.0.1:{port}", 8, 1.0)
    options = Options(port=0, launches=[launch])
    with serve_in_thread(options) as (url, parts), vllm_exporter() as exporter:
        targets = {"gateway": url.removeprefix("http://"), "engine": f"127.0.0.1:{exporter}"}
        eventually(lambda: parts.engines.all[0].ready)
        (tmp_path / "prometheus").mkdir()
        with (
            prometheus(tmp_path / "prometheus", targets) as api,
            httpx.Client(base_url=url, trust_env=False, verify=False, headers={"authorization": f"Bearer {key}"}) as to,
        ):

            def traffic() -> None:
                for stream in (True, False):
                    to.post("/v1/chat/completions", json=chat_body(stream=stream, max_tokens=5))
                to.post("/v1/chat/completions", content=b"{")  # an error, for the charts of errors

            def missing() -> dict[str, str]:
                traffic()
                return {query: title for title, query in QUERIES if not finds_data(api, query)}

            pid = parts.supervisors[0].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)  # for the chart of restarts
            end = time.monotonic() + 60
            while left := missing():
                assert time.monotonic() < end, f"no data for {left}"
                time.sleep(0.5)
            names = api.get("/api/v1/label/model/values", params={"match[]": "gateway_tokens_total"}).json()["data"]
            assert names == ["fake-model"]  # what the dashboard's variable offers
            state = api.get("/api/v1/rules").json()["data"]["groups"]
            assert [rule for group in state for rule in group["rules"] if rule["health"] == "err"] == []


def finds_data(api: httpx.Client, query: str) -> bool:
    query = query.replace("$__rate_interval", "10s").replace("$model", ".*")
    try:
        answer = api.get("/api/v1/query", params={"query": query}).json()
    except httpx.TransportError:  # it is starting
        return False
    assert answer["status"] == "success", (query, answer)
    return any(sample["value"][1] != "NaN" for sample in answer["data"]["result"])
