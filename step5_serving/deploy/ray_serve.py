"""Replicas of the engine on a Ray cluster, behind the same gateway.

    .venv/bin/serve run step5_serving.deploy.ray_serve:app model=smollm2-135m min_replicas=2      # on a node
    .venv/bin/python -m step5_serving serve --engine-url http://node1:8000 --engine-url http://node2:8000 --slots 64

    gateway ──► Serve's proxy on a node ──► a replica with few requests ──► its engine process
    keys, limits, queue, accounts           start, placement, scaling, replacement of dead replicas

A replica is an engine process and a pipe to it. Each falls with the other: when the engine ends, the replica ends, so
that Serve sends it nothing more and starts another; when the replica is killed, the kernel ends the engine.

What a dead replica was computing comes back from Serve's proxy as a 500, or as a stream that breaks off. The gateway
repeats a request whose client has no byte yet, on another URL; so give it at least two (Serve runs a proxy on every
node; each reaches all replicas). README.md says what is lost, and how this differs from engines that it knows by name.
"""

# mypy: disable-error-code="import-not-found,import-untyped"
import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable

import aiohttp
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from step5_serving.launch import VLLM_SLOTS, Launch, choose_launch
from step5_serving.supervisor import START, TETHER

HEALTH_SECONDS = 2.0  # between Serve's looks at a replica, and between ours while the engine starts
NOT_OURS = {"host", "content-length", "connection", "transfer-encoding", "accept-encoding"}


class Replica:
    """One engine process. make_launch: called on the replica's node, where the port must be free."""

    async def __init__(self, make_launch: Callable[[], Launch]) -> None:  # type: ignore[misc]  # Serve awaits it
        launch = make_launch()
        self._url = launch.url
        # Started from the thread of the event loop, which lives as long as the replica: the kernel ends the child with
        # the thread that made it.
        command = [sys.executable, "-c", TETHER, str(os.getpid()), *launch.command]
        self._process = await asyncio.create_subprocess_exec(*command, env=os.environ | dict(launch.env))
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2.0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5.0),
            auto_decompress=False,
        )
        self._watching = asyncio.create_task(self._fall_with_engine())
        async with asyncio.timeout(START):
            while not await self._answers():
                await asyncio.sleep(HEALTH_SECONDS / 4)

    async def __call__(self, request: Request) -> Response:
        """Pass a request to the engine, and its answer back as it comes."""
        if request.url.path.startswith("/inference/"):
            # The gateway's abort by name would reach any replica. Told that there is none, it hangs up instead, which
            # ends the request in the right one.
            return Response(status_code=404)
        headers = {name: value for name, value in request.headers.items() if name not in NOT_OURS}
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        response = await self._session.request(
            request.method, self._url + path, data=await request.body(), headers=headers
        )
        kind = response.headers.get("content-type", "application/json")
        return StreamingResponse(_blocks(response), response.status, {"content-type": kind})

    async def check_health(self) -> None:
        """Called by Serve; raises when the engine does not answer, and after three times Serve replaces the replica."""
        if not await self._answers():
            raise RuntimeError(f"the engine on {self._url} does not answer")

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(5), self._session.get(f"{self._url}/health") as response:
                return response.status < 500
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    async def _fall_with_engine(self) -> None:
        await self._process.wait()
        os._exit(1)  # not an exception, which Serve would answer with the next request to us


async def _blocks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for block in response.content.iter_any():
            yield block
    finally:
        response.close()  # the client is gone, or all is read: an engine stops when its connection closes


class Arguments(BaseModel):
    """What `serve run …:app name=value` and ray_serve.yaml can set. slots: requests an engine computes at once."""

    model_config = ConfigDict(extra="forbid")

    model: str = "smollm2-135m"
    engine: str = "vllm"
    slots: int = VLLM_SLOTS
    min_replicas: int = 1
    max_replicas: int = 4
    cpus: float = 2.0
    gpus: float = 0.0


def replicas(make_launch: Callable[[], Launch], arguments: Arguments) -> Application:
    """The application: so many replicas as the load wants, between the two limits."""
    deployment = serve.deployment(
        name="engine",
        # The queue is the gateway's, where it is bounded and fair. A limit here would make it wait in Serve, and with
        # it the gateway's health probes, which would take full replicas for dead ones.
        max_ongoing_requests=arguments.slots * arguments.max_replicas + 16,
        autoscaling_config={
            "min_replicas": arguments.min_replicas,
            "max_replicas": arguments.max_replicas,
            "target_ongoing_requests": 0.75 * arguments.slots,  # room for a rush while another replica starts
            "upscale_delay_s": 10,
            "downscale_delay_s": 300,  # a model takes minutes to load; do not throw one away for a quiet minute
        },
        health_check_period_s=HEALTH_SECONDS,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=60,  # running answers end
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
    )(Replica)
    return deployment.bind(make_launch)


def app(arguments: Arguments) -> Application:
    """What `serve run` and `serve deploy` build."""
    return replicas(lambda: choose_launch(arguments.engine, arguments.model, None, slots=arguments.slots), arguments)
