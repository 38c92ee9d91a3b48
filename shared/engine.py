"""The generation loop: prompts in, tokens out, many requests at once.

    submit → [prefill: the prompt through the model, filling the KV cache]
           → [decode: one token per sequence and step] → stop word, end-of-turn token, or length

Every `step` runs one forward pass: either a piece of one waiting prompt (prefill is bound by arithmetic, so prompts go
in pieces of 512 tokens, alternating with decode steps so that running answers do not stall) or one token for all
running sequences together (decoding is bound by reading weights, so eight sequences cost little more than one).
Finished sequences leave their KV cache behind; a new prompt that starts the same way copies it instead of computing it.

    python -m shared.openai_server --port 8000      # this loop behind HTTP
"""

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from shared.errors import UserError
from shared.generation import ContextOverflowError, Event, Generation, Request, token_logprob
from shared.models import LoadedModel, load
from shared.terminal import say
from shared.transformer import KVCache

PREFILL_CHUNK = 512  # tokens; about 0.9 s on two laptop-class cores
MAX_BATCH = 8
PREFIX_CACHE_BYTES = 512 << 20  # KV caches of finished sequences kept for reuse, all together
SHARED_PREFIX = 32  # tokens from which a prompt waits one step to copy a neighbour's instead of computing them


class Engine:
    """One model, one loop. Use `generate` directly, or `start` the loop's thread and `submit` from anywhere."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.tokens_prefilled = 0  # tokens computed, by phase; prompts served from the prefix cache do not count
        self.tokens_decoded = 0
        self._waiting: deque[Generation] = deque()
        self._running: list[Generation] = []
        self._finished: deque[tuple[str | None, list[int], KVCache]] = deque()
        self._prefilled_last = False
        self._lock = threading.Lock()  # guards _waiting; everything else belongs to the thread that steps
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._closing = False

    # --- submitting ---

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Generation:
        """Queue a request; events arrive on `on_event` from the engine's thread.

        Raises ContextOverflowError or UserError (unknown adapter, empty prompt) before anything is queued.
        """
        request = self._checked(request)
        generation = Generation(request, on_event, self.model.tokenizer.stream())
        generation.eos = self.model.config.eos
        with self._lock:
            self._waiting.append(generation)
        self._wake.set()
        return generation

    def generate(self, request: Request) -> Iterator[Event]:
        """Yield the events of one request; leaving the loop early cancels it. Steps the engine if no thread does."""
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        generation = self.submit(request, events.put)
        try:
            finished = False
            while not finished:
                while self._thread is None and events.empty():
                    self.step()
                try:
                    event = events.get(timeout=1)
                except queue.Empty:  # look again whether the thread is still there
                    continue
                finished = event.finish is not None
                yield event
        finally:
            generation.cancel()
            if self._thread is None:
                self._drop_cancelled()

    def _checked(self, request: Request) -> Request:
        context, length = self.model.config.context, len(request.prompt)
        if not length:
            raise UserError("the prompt is empty")
        if request.adapter is not None and request.adapter not in self.model.adapters:
            raise UserError(f"no adapter {request.adapter!r}; loaded: {', '.join(self.model.adapters) or 'none'}")
        wanted = 1 if request.max_tokens is None else request.max_tokens
        if wanted < 1:
            raise UserError(f"max_tokens is {wanted}: at least 1")
        if length + wanted > context:
            raise ContextOverflowError(
                f"This model's maximum context length is {context} tokens. You requested {length + wanted} "
                f"({length} in the prompt, {wanted} for the answer): {length + wanted - context} too many."
            )
        if request.max_tokens is None:
            request = replace(request, max_tokens=context - length)
        return request

    # --- the loop ---

    def step(self) -> bool:
        """Run one forward pass for whoever is next; return False when there was nothing to do."""
        self._drop_cancelled()
        self._admit()
        prompts = [g for g in self._running if g.cache is None or len(g.pending) > 1]
        decoding = [g for g in self._running if g.cache is not None and len(g.pending) == 1]
        if prompts and not (decoding and self._prefilled_last):
            self._prefilled_last = True
            self._forward(self._prefill_batch(prompts))
        elif decoding:
            self._prefilled_last = False
            for _, group in itertools.groupby(sorted(decoding, key=_adapter_name), key=_adapter_name):
                self._forward([(generation, generation.pending) for generation in group])
        else:
            return False
        return True

    def _admit(self) -> None:
        with self._lock:
            while self._waiting and len(self._running) < MAX_BATCH:
                self._running.append(self._waiting.popleft())

    def _prefill_batch(self, prompts: list[Generation]) -> list[tuple[Generation, list[int]]]:
        """Pieces of prompts that use the same weights, up to PREFILL_CHUNK tokens together, oldest first."""
        batch: list[tuple[Generation, list[int]]] = []
        room = PREFILL_CHUNK
        for generation in prompts:
            if not room or generation.request.adapter != prompts[0].request.adapter:
                continue
            if generation.cache is None:
                if any(_common_prefix(other.tokens, generation.tokens) >= SHARED_PREFIX for other, _ in batch):
                    continue  # the next step copies what this one computes
                generation.cache = self._cache_for(generation)
            chunk = generation.pending[:room]
            batch.append((generation, chunk))
            room -= len(chunk)
        return batch

    def _forward(self, batch: list[tuple[Generation, list[int]]]) -> None:
        """One forward pass over the given pending tokens of sequences that use the same weights."""
        lengths = [len(chunk) for _, chunk in batch]
        caches = [generation.cache for generation, _ in batch if generation.cache is not None]
        name = batch[0][0].request.adapter
        adapter = self.model.adapters[name] if name is not None else None
        model = self.model.transformer
        ids = torch.tensor([token for _, chunk in batch for token in chunk], device=model.device)
        hidden = model.forward(ids, caches, lengths, adapter)
        if max(lengths) > 1:
            self.tokens_prefilled += len(ids)
        else:
            self.tokens_decoded += len(ids)

        ends = list(itertools.accumulate(lengths))
        for (generation, chunk), end in zip(batch, ends, strict=True):
            if generation.request.prompt_logprobs:
                self._score_prompt(generation, hidden[end - len(chunk) : end])
        ready = [
            (generation, end - 1) for (generation, _), end in zip(batch, ends, strict=True) if not generation.pending
        ]
        if ready:
            logits = model.logits(hidden[[row for _, row in ready]])
            for (generation, _), row in zip(ready, logits, strict=True):
                self._advance(generation, row)

    def _advance(self, generation: Generation, logits: Tensor) -> None:
        try:
            finish = generation.accept(logits)
        except Exception as error:  # one broken request must not take the others down with the loop
            _tell(generation, Event("", finish="error", error=f"{type(error).__name__}: {error}"))
            finish = "error"
        if finish:
            self._retire(generation)

    def _score_prompt(self, generation: Generation, hidden: Tensor) -> None:
        """Log-probabilities of the prompt tokens that follow the ones just computed."""
        assert generation.cache is not None
        prompt, end = generation.request.prompt, generation.cache.length
        first = end - len(hidden)
        if first >= len(prompt) - 1:
            return
        targets = prompt[first + 1 : end + 1]
        for start in range(0, len(targets), 128):  # 128 rows of logits are 25 MB
            logits = self.model.transformer.logits(hidden[start : start + 128])
            for row, token in zip(logits, targets[start : start + 128], strict=False):
                generation.prompt_logprobs.append(token_logprob(row, token, generation.request.logprobs or 0))

    # --- KV caches ---

    def _cache_for(self, generation: Generation) -> KVCache:
        """A new KV cache, or a copy of one that starts as this prompt does (RadixAttention: Zheng et al., 2024)."""
        prompt = list(generation.request.prompt)
        best_length, best = 0, None
        if not generation.request.prompt_logprobs:  # those need every position computed
            running = [(g.request.adapter, g.tokens, g.cache) for g in self._running if g.cache is not None]
            for adapter, tokens, cache in itertools.chain(self._finished, running):
                if adapter == generation.request.adapter:
                    # The last prompt token is always computed: its logits choose the first answer token.
                    length = min(_common_prefix(tokens, prompt), cache.length, len(prompt) - 1)
                    if length > best_length:
                        best_length, best = length, cache
        room = len(prompt) - best_length + min(generation.request.max_tokens or 0, 256)
        if best is None:
            return self.model.transformer.new_cache(room)
        generation.cached_tokens = best_length
        return best.copy_prefix(best_length, room)

    def _retire(self, generation: Generation) -> None:
        self._running.remove(generation)
        if generation.cache is None or generation.cache.length == 0:
            return
        tokens = generation.tokens[: generation.cache.length]
        self._finished.append((generation.request.adapter, tokens, generation.cache))
        while sum(cache.nbytes() for _, _, cache in self._finished) > PREFIX_CACHE_BYTES:
            self._finished.popleft()

    def _drop_cancelled(self) -> None:
        with self._lock:
            waiting = [g for g in self._waiting if g.cancelled.is_set()]
            for generation in waiting:
                self._waiting.remove(generation)
        for generation in [g for g in self._running if g.cancelled.is_set()]:
            self._retire(generation)
            waiting.append(generation)
        for generation in waiting:
            _tell(generation, Event("", finish="cancelled"))

    # --- the thread ---

    def start(self) -> None:
        """Run the loop in a background thread until `close`."""
        assert self._thread is None, "already started"
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread; requests under way get a last event with finish "cancelled". `start` may follow again."""
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        for generation in [*self._running, *self._waiting]:
            generation.cancel()
        self._drop_cancelled()
        self._thread, self._closing = None, False

    def alive(self) -> bool:
        """Whether the thread runs; False also when it was never started."""
        return self._thread is not None and self._thread.is_alive()

    def _run(self) -> None:
        torch.set_num_threads(torch.get_num_threads())  # OpenMP settings are per thread
        while not self._closing:
            try:
                busy = self.step()
            except Exception as error:  # out of memory, say: answer everyone and go on serving
                for generation in list(self._running):
                    self._running.remove(generation)
                    _tell(generation, Event("", finish="error", error=f"{type(error).__name__}: {error}"))
                self._finished.clear()  # frees the most memory there is to free
                continue
            if not busy:
                self._wake.wait()
                self._wake.clear()


def load_engine(
    model: str | None = None,
    adapters: Sequence[Path] = (),
    device: str | None = None,
    dtype: str | None = None,
    *,
    quiet: bool = False,
) -> Engine:
    """Load a model and LoRA adapters for an engine whose loop will run in a thread (`start`); arguments as `load`.

    Loading happens in a thread that then ends. GNU OpenMP keeps a pool of workers per calling thread, and with two
    pools on the same cores its workers sleep at every barrier instead of spinning: 107 tok/s, against 170 this way.
    """

    def work() -> Engine:
        loaded = load(model, device=device, dtype=dtype, quiet=quiet)
        for directory in adapters:
            loaded.add_adapter(directory)
        return Engine(loaded)

    with ThreadPoolExecutor(1, "load") as pool:
        return pool.submit(work).result()


def _tell(generation: Generation, event: Event) -> None:
    """Deliver a last event. A receiver that fails (its event loop is gone, say) must not take the loop down."""
    try:
        generation.on_event(event)
    except Exception as error:
        say(f"engine: nobody received {event.finish!r}: {type(error).__name__}: {error}")


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _adapter_name(generation: Generation) -> str:
    return generation.request.adapter or ""
