"""The whole service for the length of two requests, asked by the official client: what `make step5-demo` runs.

python -m step5_serving demo
"""

import time
from contextlib import closing
from typing import Any

from shared.errors import UserError
from shared.terminal import say
from step5_serving import keys
from step5_serving.database import connect, home
from step5_serving.launch import Launch
from step5_serving.service import Options, Parts, serve_in_thread
from step5_serving.supervisor import START

QUESTION = "Why is the sky blue? Answer in two sentences."
TOOL_QUESTION = "What is the weather in Oslo?"
ADAPTER = "tools"  # the published adapter that has learned to call tools (step 4)
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city"}},
            "required": ["city"],
        },
    },
}
LONGEST = 80  # tokens of an answer


def demo(launch: Launch, quiet: bool = False) -> dict[str, Any]:
    """Serve on a free port, ask, and stop; return what came of it. quiet: print nothing on stdout.

    Raises UserError (exit code 1) when the engine does not start.
    """
    with closing(connect()) as database:
        key = keys.create(database, f"demo {time.time_ns()}")
    began = time.monotonic()
    try:
        with serve_in_thread(Options(port=0, launches=[launch])) as (url, parts):
            say(f"gateway on {url}/v1")
            _wait(parts)
            ready = time.monotonic() - began
            answers = _ask(url, key, launch.model, ADAPTER in parts.engines.models(), quiet)
    finally:
        with closing(connect()) as database:
            keys.revoke(database, key.split("-")[1])
    say("stopped; the accounts stay: python -m step5_serving usage")
    return {"engine": launch.name, "ready_seconds": round(ready, 1), **answers}


def _wait(parts: Parts) -> None:
    """Until the engine is ready; one that has ended once will not get better by itself."""
    end = time.monotonic() + START
    while not parts.engines.slots:
        if any(supervisor.ended for supervisor in parts.supervisors) or time.monotonic() > end:
            raise UserError(f"the engine does not start; the reason is in {home() / 'log' / 'engine.log'}", exit_code=1)
        time.sleep(0.1)


def _ask(url: str, key: str, model: str, has_tools: bool, quiet: bool) -> dict[str, Any]:
    import openai

    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=300) as client:
        print_answer = not quiet
        say(f"\n{model}> {QUESTION}")
        raw = client.chat.completions.with_raw_response.create(
            model=model,
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=LONGEST,
            temperature=0,
            stream=True,
        )
        pieces: list[str] = []
        for chunk in raw.parse():
            pieces.append((chunk.choices[0].delta.content or "") if chunk.choices else "")
            if print_answer:
                print(pieces[-1], end="", flush=True)
        if print_answer:
            print()
        chat = {"model": model, "question": QUESTION, "answer": "".join(pieces), **_account(client, raw.headers)}
        if not has_tools:
            say(f"\nno tool call: there is no adapter {ADAPTER!r} in shared/adapters for {model} (step 4 makes it)")
            return {"chat": chat, "tool_call": None}

        say(f"\n{ADAPTER}> {TOOL_QUESTION}")
        done = client.chat.completions.with_raw_response.create(
            model=ADAPTER, messages=[{"role": "user", "content": TOOL_QUESTION}], tools=[TOOL],  # type: ignore[list-item]
            max_tokens=LONGEST, temperature=0,
        )  # fmt: skip
        message = done.parse().choices[0].message
        calls = [
            {"name": call.function.name, "arguments": call.function.arguments}
            for call in message.tool_calls or []
            if call.type == "function"
        ]
        if print_answer:
            print(", ".join(f"{call['name']}({call['arguments']})" for call in calls) or message.content)
        tool_call = {
            "model": ADAPTER, "question": TOOL_QUESTION, "calls": calls, "answer": message.content,
            **_account(client, done.headers),
        }  # fmt: skip
        return {"chat": chat, "tool_call": tool_call}


def _account(client: Any, headers: Any) -> dict[str, Any]:
    """What the service has written down about the request, and a remark for people."""
    row = client.get(f"/usage/{headers['x-request-id']}", cast_to=object)
    found = {name: row[name] for name in ("prompt", "cached", "completion", "cost", "first_token", "seconds", "trace")}
    tokens = f"{row['prompt']} tokens in ({row['cached']} cached), {row['completion']} out"
    first = "" if row["first_token"] is None else f", first token after {row['first_token']:.2f} s"
    money = "no price" if row["cost"] is None else f"${row['cost']:.7f}"
    say(f"  {tokens}, {row['seconds']:.2f} s{first}, {money}, trace {row['trace']}")
    return found
