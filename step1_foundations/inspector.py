"""A Transformer that keeps what the normal forward pass throws away: attention maps, head outputs, residual stream.

The same weights, not copied, run through the same `attention` and `mlp`; only the softmax is written out, because the
fused kernel never holds the attention weights in memory. Single heads and MLPs can be switched off, and a run can be
restarted from any layer: what comes before an ablated layer does not change, so it is not computed again.

    inspector = Inspector.of(model.transformer)
    recording = inspector.run(ids)                       # recording.maps[layer, head, from, to]
    recording = inspector.run(ids, heads_off={(4, 2)}, mlps_off={7})

With int8 and int4 weights the native kernels round activations too, which magnifies the last bit of the softmax: a
probability may differ from `next`'s in the second digit. float32 agrees to six.

Used by attention.py (maps) and attribution.py (logit lens, ablation).
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from shared.lora import Adapter
from shared.transformer import KVCache, Transformer, project

if TYPE_CHECKING:
    from shared.models import LoadedModel

# A map is tokens² numbers per head: 256 tokens of SmolLM2's 270 heads take 71 MB, and no terminal shows more.
MAX_TOKENS = 256


@dataclass
class Recording:
    """What one pass over a text left behind.

    maps: float32 [layers, heads, tokens, tokens], row i is where token i looks, 0 above the diagonal.
    mixed: float32 [layers, tokens, heads, head dim], what each head read, before the output projection.
    residuals: [layers + 1, tokens, hidden], the stream before the first block and after each one.
    """

    maps: Tensor
    mixed: Tensor
    residuals: Tensor


@dataclass
class _Tape:
    """The recording under way, and what is switched off in it."""

    maps: list[Tensor] = field(default_factory=list)
    mixed: list[Tensor] = field(default_factory=list)
    heads_off: Collection[tuple[int, int]] = ()
    mlps_off: Collection[int] = ()


class Inspector(Transformer):
    """A Transformer's weights with recording; make one with `Inspector.of`."""

    fused = False  # the compiled one-token step of shared/native/fused.py has nothing to record
    adapter: Adapter | None
    _tape: _Tape | None

    @classmethod
    def of(cls, transformer: Transformer, adapter: Adapter | None = None) -> Self:
        """Return an inspector over the same tensors as `transformer`, with a LoRA on top if given."""
        self = object.__new__(cls)
        self.__dict__.update(transformer.__dict__)
        self.adapter, self._tape = adapter, None
        return self

    @classmethod
    def of_model(cls, model: "LoadedModel") -> Self:
        """Return an inspector of a loaded model, with its adapter if it has one."""
        return cls.of(model.transformer, next(iter(model.adapters.values()), None))

    @torch.inference_mode()
    def run(
        self, ids: list[int], heads_off: Collection[tuple[int, int]] = (), mlps_off: Collection[int] = ()
    ) -> Recording:
        """Run the tokens `ids` from position 0 and record.

        heads_off: (layer, head) pairs whose output becomes zero; mlps_off: layers whose MLP adds nothing.
        """
        self._tape = tape = _Tape(heads_off=set(heads_off), mlps_off=set(mlps_off))
        try:
            x = self.embed(torch.tensor(ids, device=self.device))
            residuals = [x]
            for index in range(self.config.layers):
                x = self.run_layers(x, 1, index, index + 1)
                residuals.append(x)
        finally:
            self._tape = None
        return Recording(torch.stack(tape.maps), torch.stack(tape.mixed), torch.stack(residuals))

    @torch.inference_mode()
    def run_layers(self, x: Tensor, batch: int, first: int, end: int | None = None) -> Tensor:
        """Run blocks `first` … `end` - 1 over `batch` sequences of equal length, flat in x [batch · tokens, hidden].

        Every sequence starts at position 0. Nothing is fused here, so `attention` and `mlp` below see every call.
        """
        length = x.shape[0] // batch
        cos, sin = (table[:length, None].repeat(batch, 1, 1).to(x.dtype) for table in (self.cos, self.sin))
        # `attention` leaves its keys and values in a cache; no layer reads another's, so a run may start anywhere.
        spans: list[tuple[KVCache, int, int]] = [(self.new_cache(length), 0, length) for _ in range(batch)]
        for index in range(first, self.config.layers if end is None else end):
            layer = self.layers[index]
            x = x + self.attention(
                index, layer, self.rms_norm(x, layer.attention_norm), cos, sin, spans, self.lora(index)
            )
            x = self.add_mlp(index, x)
        return x

    def lora(self, index: int) -> dict[str, tuple[Tensor, Tensor]]:
        """The adapter's matrices for one layer; empty without an adapter."""
        return {} if self.adapter is None else self.adapter.layers[index]

    @torch.inference_mode()
    def add_mlp(self, index: int, x: Tensor) -> Tensor:
        """Return x [tokens, hidden] after the second half of block `index`."""
        if self._tape is not None and index in self._tape.mlps_off:
            return x
        layer = self.layers[index]
        return x + self.mlp(index, layer, self.rms_norm(x, layer.mlp_norm), self.lora(index))

    @torch.inference_mode()
    def add_heads(self, index: int, x: Tensor, mixed: Tensor) -> Tensor:
        """Return x [tokens, hidden] plus what the heads of block `index` write.

        mixed: [tokens, heads, head dim], what each of them read.
        """
        return x + project(self.layers[index].output, mixed.flatten(1).to(x.dtype), self.lora(index).get("output"))

    @torch.inference_mode()
    def read_out(self, x: Tensor) -> Tensor:
        """Return float32 logits [tokens, vocabulary] of any residual stream [tokens, hidden]: final norm, then head."""
        return self.logits(self.rms_norm(x, self.norm))

    def attend(self, index: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """softmax(q·k / √dim)·v written out in float32, recorded, with heads switched off; shapes as in Transformer."""
        if self._tape is None:
            return super().attend(index, queries, keys, values)
        new, heads, dim = queries.shape
        shared = heads // keys.shape[0]  # query heads per key-value head (grouped-query attention)
        keys, values = (t.float().repeat_interleave(shared, dim=0) for t in (keys, values))
        scores = queries.float().transpose(0, 1) @ keys.transpose(1, 2) / math.sqrt(dim)
        total = keys.shape[1]
        seen = torch.ones(new, total, dtype=torch.bool, device=scores.device).tril(total - new)
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        mixed = (weights @ values).transpose(0, 1)
        off = [head for layer, head in self._tape.heads_off if layer == index]
        mixed[:, off] = 0
        self._tape.maps.append(weights)
        self._tape.mixed.append(mixed)
        return mixed.reshape(new, heads * dim).to(queries.dtype)
