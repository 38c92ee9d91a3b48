"""The project's own engine behind the gateway, as on machines without vLLM: a real process with a tiny random model.

python -m pytest tests/step5/test_serving_embedded.py
"""

from pathlib import Path

import httpx
from conftest import Gateway, eventually, new_key

from step5_serving.launch import choose_launch
from step5_serving.service import Options, serve_in_thread


def test_it_serves_and_is_stopped_when_the_client_leaves(home: Path, tiny_llama: Path) -> None:
    launch = choose_launch("embedded", str(tiny_llama), [])
    key = new_key()
    with (
        serve_in_thread(Options(port=0, launches=[launch])) as (url, parts),
        httpx.Client(base_url=url, timeout=60, verify=False, trust_env=False) as http,
    ):
        gateway = Gateway(url, parts, key, home, http)
        eventually(lambda: parts.engines.slots == 8, 120)
        assert gateway.get("/v1/models").json()["data"][0]["id"] == launch.model

        whole = gateway.chat("hello there", model=launch.model, max_tokens=9, temperature=0).json()
        stream = gateway.stream("hello there", model=launch.model, max_tokens=9, temperature=0)
        assert stream.endswith(b"[DONE]\n\n")
        first, second = gateway.rows()
        for row in (first, second):
            assert row["prompt"] == whole["usage"]["prompt_tokens"]
            assert row["completion"] == whole["usage"]["completion_tokens"]
            assert (row["engine"], row["outcome"], row["estimated"]) == ("embedded", "ok", 0)

        with gateway.streaming("hello there", model=launch.model, max_tokens=100) as response:
            next(response.iter_raw())
        eventually(lambda: parts.admission.running == 0)
        assert gateway.rows()[-1]["outcome"] in ("client_left", "ok")  # the tiny model is fast
        too_long = gateway.chat("word " * 500, model=launch.model)
        assert too_long.status_code == 400
        assert "context" in too_long.json()["error"]["message"]
