"""A storm of random and hostile requests on a gateway, and whether everything adds up after it.

    python tests/step5/step5_fuzz.py --requests 2000                                    # a look, about a minute
    python tests/step5/step5_fuzz.py --requests 100000 --output step5_serving/results/fuzz.json

schemathesis makes requests from the gateway's own OpenAPI document, half of them valid and half of them not, and holds
the answers to it. Few of those name a model that is served, so most are given one, and a key. To ten of them comes one
that a generator of JSON does not think of (step5_hostile.py). Every request has an id of its own, so that client, log,
accounts and engine are compared one by one (step5_fuzz_check.py).

The gateway is a process of its own (step5_fuzz_gateway.py): what it holds after the storm is then its own, too.
"""

import queue
import random
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import requests
import schemathesis
import typer
from fake_engine import ADAPTER, MODEL
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy
from schemathesis import Case, GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks
from step5_fuzz_check import Sent, Storm, accounted, complaints, counted, held, log_lines, rows_of
from step5_fuzz_world import Gateway, gateway_process, strict_engine
from step5_hostile import HOSTILE, Hostile, Raw, as_expected, attack

from shared.errors import UserError
from shared.results import Row, format_metric, metric, write_results
from shared.terminal import console, say
from shared.terminal import run as run_program
from step5_serving.embeddings import MODEL as EMBEDDER

SENDERS = 16
MIXED = 8  # runs of Hypothesis, each for one route, whose requests are shuffled
CHECKS = [
    checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance,
    checks.response_headers_conformance,
]  # fmt: skip


def cases(document: Mapping[str, Any], batch: int, chance: random.Random) -> "Iterator[Case[Any]]":
    """Requests to the routes of a document, without end: eight to one that costs for each to one that does not.

    batch: requests from one run of Hypothesis, which itself costs about as much as 30 requests do.
    """
    schema = schemathesis.openapi.from_dict(dict(document), config=schemathesis.Config())
    operations = [found.ok() for found in schema.get_all_operations()]
    weights = [8 if operation.method == "post" else 1 for operation in operations]
    known: dict[tuple[str, GenerationMode], SearchStrategy[Case[Any]]] = {}
    while True:
        found: list[Case[Any]] = []
        for operation in chance.choices(operations, weights, k=MIXED):
            plain = not (any(operation.iter_parameters()) or operation.body)  # there is nothing to get wrong
            mode = GenerationMode.POSITIVE if plain else chance.choice(list(GenerationMode))
            if (which := (operation.label, mode)) not in known:
                known[which] = operation.as_strategy(generation_mode=mode)
            found += _examples(known[which], batch, chance.getrandbits(32))
        chance.shuffle(found)
        yield from found


def _examples(strategy: "SearchStrategy[Case[Any]]", count: int, number: int) -> "list[Case[Any]]":
    found: list[Case[Any]] = []

    @seed(number)
    @settings(
        max_examples=count, database=None, phases=[Phase.generate], deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def collect(case: Case[Any]) -> None:
        found.append(case)

    collect()
    return found


def aim(case: "Case[Any]", chance: random.Random) -> None:
    """Give most bodies a model that is served, and many of them something that an engine can read."""
    body, embeds = case.body, case.path.endswith("embeddings")
    if not isinstance(body, dict):
        return
    if chance.random() < 0.9:
        body["model"] = EMBEDDER if embeds else chance.choice((MODEL, ADAPTER))
    if chance.random() < 0.7 and not embeds:
        text = "word " * chance.randint(1, 9)
        content = {"messages": [{"role": "user", "content": text}]} if "chat" in case.path else {"prompt": text}
        body.update(content, max_tokens=chance.randint(1, 12))


class Senders:
    """Threads that send what is put into `work`, each on a connection of its own, and write down what came back."""

    def __init__(self, gateway: Gateway, storm: Storm, number: int) -> None:
        self.work: queue.Queue[tuple[str, Case[Any] | Hostile] | None] = queue.Queue(2 * SENDERS)
        self._gateway, self._storm = gateway, storm
        self._address = "127.0.0.1", int(gateway.url.rpartition(":")[2])
        chances = [random.Random(f"{number} {index}") for index in range(SENDERS)]
        self._threads = [threading.Thread(target=self._send_all, args=(chance,), daemon=True) for chance in chances]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Wait until everything is sent and every connection closed."""
        for _ in self._threads:
            self.work.put(None)
        for thread in self._threads:
            thread.join()

    def _send_all(self, chance: random.Random) -> None:
        with requests.Session() as session:
            session.trust_env = False
            while (item := self.work.get()) is not None:
                identity, request = item
                try:
                    if isinstance(request, Hostile):
                        self._attack(identity, request)
                    else:
                        self._send(identity, request, session, chance)
                except Exception as error:  # the thread goes on; the storm has failed
                    self._storm.problem(f"{identity}: {type(error).__name__}: {error}")

    def _attack(self, identity: str, hostile: Hostile) -> None:
        answers = attack(self._address, hostile, Raw(identity, self._gateway.keys["plain"]))
        statuses = [200 if status == 429 else status for status, _ in answers]  # the queue may be full
        if not as_expected(hostile, statuses):
            self._storm.problem(f"{hostile.name} was answered with {statuses}")
        self._storm.sent.append(Sent(identity, None, hostile.logged))
        for status, body in answers:
            self._storm.answered(hostile.name, status, body)

    def _send(self, identity: str, case: "Case[Any]", session: requests.Session, chance: random.Random) -> None:
        aim(case, chance)
        headers = {"x-request-id": identity}
        if chance.random() < 0.9:
            headers["authorization"] = f"Bearer {chance.choice(list(self._gateway.keys.values()))}"
        answer = case.call(self._gateway.url, session, headers, timeout=60, allow_redirects=False)
        logged = (1, 1) if case.method == "POST" else (0, 0)
        self._storm.sent.append(Sent(identity, answer.status_code, logged))
        self._storm.answered(case.operation.label, answer.status_code, answer.content)
        try:
            case.validate_response(answer, checks=CHECKS)
        except FailureGroup as failures:
            for failure in failures.exceptions:
                self._storm.problem(f"{case.operation.label}: {failure.title}: {failure.message}")


def storm(count: int, number: int = 0) -> tuple[list[Row], list[str]]:
    """Send so many random requests and the hostile ones between them; return what came of it, and what is wrong.

    number: of the storm; the same number makes the same requests. Raises UserError when the gateway does not start.
    """
    chance, result = random.Random(number), Storm()
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        strict_engine() as engine,
        gateway_process(Path(folder), engine.url) as gateway,
    ):
        made = cases(gateway.get("/openapi.json").json(), max(10, min(150, count // 30)), chance)
        before, began, looks, done = gateway.quiet(), time.perf_counter(), [], 0
        for part in (count // 10, count - count // 10):  # memory is compared with that after the first tenth
            senders = Senders(gateway, result, number)
            for _ in range(part):
                done += 1
                senders.work.put((f"random-{done}", next(made)))
                if done % 10 == 0:
                    senders.work.put((f"hostile-{done}", chance.choice(HOSTILE)))
                if done % 5000 == 0:
                    say(f"{done:,} of {count:,} requests after {time.perf_counter() - began:.0f} s")
            senders.finish()
            looks.append(gateway.quiet(before))
        seconds, (warm, after) = time.perf_counter() - began, looks
        printed = [*complaints(gateway.home)]
        metrics, lines, rows = gateway.get("/metrics").text, log_lines(gateway.home), rows_of(gateway.home)
    problems = [f"{message} ({times} times)" for message, times in result.problems.most_common()]
    problems += [*printed, *held(before, warm, after), *counted(result, lines, metrics)]
    problems += accounted(rows, lines, metrics, after, engine)

    def status(first: int) -> int:
        return sum(times for code, times in result.statuses.items() if code // 100 == first)

    def growth(name: str, since: Mapping[str, Any]) -> float | None:
        return None if after[name] is None else after[name] - since[name]

    values = {
        "requests": metric(len(result.sent)),
        "of them hostile": metric(len(result.sent) - count),
        "answers 2xx": metric(status(2)),
        "4xx": metric(status(4)),
        "5xx": metric(status(5)),
        "accounted for": metric(len(rows)),
        "tokens": metric(sum(row["prompt"] + row["completion"] for row in rows)),
        "slots still taken": metric(after["running"] + after["queued"]),
        "requests still in memory": metric(sum(after["alive"].values())),
        "tasks more than before": metric(sum(after["tasks"].values()) - sum(before["tasks"].values())),
        "open files more than before": metric(growth("files", before)),
        "memory grown since the first tenth": metric(growth("rss", warm), unit="MB"),
        "problems": metric(len(problems)),
        "seconds": metric(seconds),
    }
    return [{"name": f"storm {number}", "metrics": values}], problems


def main(
    requests: Annotated[int, typer.Option(min=10, max=250_000, help="Random ones; the log holds no more.")] = 2000,
    number: Annotated[int, typer.Option(min=0, help="Of the storm: another one makes other requests.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write results JSON.")] = None,
) -> None:
    """Send random and hostile requests to a gateway; exit 1 if anything does not add up."""
    rows, problems = storm(requests, number)
    for problem in problems[:40]:
        say(problem[:1000])
    for name, value in rows[0]["metrics"].items():
        console().print(f"{name}: {format_metric(value)}", markup=False, soft_wrap=True)
    if output is not None:
        command = f"python tests/step5/step5_fuzz.py --requests {requests} --number {number} -o {output}"
        packages = ("schemathesis", "hypothesis", "uvicorn", "httptools", "aiohttp")
        write_results(output, command=command, rows=rows, n=requests, packages=packages)
    if problems:
        raise UserError(f"{len(problems)} problems", exit_code=1)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(main)
    run_program(app)
