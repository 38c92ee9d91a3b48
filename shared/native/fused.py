"""One decoding step as one C call (decode.c): what Transformer.forward does for a single new token per sequence.

The layer loop in shared/transformer.py stays the reference; this is the same in compiled form, three times as fast.
Used when every matrix is quantised for the native kernel and at most 8 sequences decode together; prefill, float
weights, GPUs and subclasses with `fused = False` take the loop.
"""

import ctypes
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shared import native
from shared.linear import Matrix, QuantizedMatrix
from shared.lora import FUSED, Adapter

if TYPE_CHECKING:
    from shared.transformer import KVCache, Layer, Transformer

MAX_ROWS = 8  # as in kernels.h
MAX_HEAD_DIM = 512  # as in decode.c
_pointer, _int32, _int64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


class _CLayer(ctypes.Structure):
    _fields_ = [
        ("attention_norm", _pointer),
        ("mlp_norm", _pointer),
        ("query_norm", _pointer),
        ("key_norm", _pointer),
        ("matrices", native.CMatrix * 4),  # in the order of FUSED
    ]


class _CModel(ctypes.Structure):
    _fields_ = [
        ("layers", _pointer),
        ("norm", _pointer),
        ("cos", _pointer),
        ("sin", _pointer),
        ("layer_count", _int32),
        ("hidden", _int32),
        ("heads", _int32),
        ("kv_heads", _int32),
        ("head_dim", _int32),
        ("mlp", _int32),
        ("eps", ctypes.c_float),
    ]


class _CSequence(ctypes.Structure):
    _fields_ = [("keys", _pointer), ("values", _pointer), ("capacity", _int64), ("position", _int64)]


class _CLora(ctypes.Structure):
    _fields_ = [("a", _pointer), ("b", _pointer), ("rank", _int64)]


def supports(model: "Transformer") -> bool:
    """Whether the compiled step can run this model: float32 between native quantised matrices, on the CPU."""
    c = model.config
    matrices: list[Matrix] = [getattr(layer, name) for layer in model.layers for name in FUSED]
    return (
        model.dtype == torch.float32
        and model.device.type == "cpu"
        and c.head_dim % 8 == 0
        and c.head_dim <= MAX_HEAD_DIM
        and all(isinstance(m, QuantizedMatrix) and m.kernel == "native" for m in matrices)
    )


class FusedDecoder:
    """The pointers decode.c needs, collected once per model and once per adapter."""

    def __init__(self, model: "Transformer") -> None:
        assert supports(model)
        library, reason = native.library()
        assert library is not None, reason
        self._library, self.config = library, model.config
        # C holds plain addresses: these references keep what they point to alive.
        self._tensors: list[Tensor] = []
        self._layers = (_CLayer * len(model.layers))(*map(self._layer, model.layers))
        c = model.config
        self._model = _CModel(
            ctypes.addressof(self._layers), self._vector(model.norm), self._vector(model.cos), self._vector(model.sin),
            c.layers, c.hidden, c.heads, c.kv_heads, c.head_dim, c.mlp, c.norm_eps,
        )  # fmt: skip
        # By id, checked against a weak reference: adapters are unhashable and may be dropped at any time.
        self._adapters: dict[int, tuple[weakref.ref[Adapter], Any]] = {}

    def step(self, x: Tensor, caches: Sequence["KVCache"], adapter: Adapter | None = None) -> Tensor:
        """Return final hidden states [rows, hidden]; append one key and value per layer to each cache.

        x: float32 embeddings [rows, hidden] of one new token per cache. The caches must have room for it; their
        `length` is left to the caller.
        """
        assert len(caches) == x.shape[0] <= MAX_ROWS
        assert len({id(cache) for cache in caches}) == len(caches), "a sequence cannot be in one step twice"
        for cache in caches:
            assert cache.length < self.config.context, "the context is full"
            assert cache.length < cache.keys.shape[2], "reserve room first"
            assert cache.keys.is_contiguous()
            assert cache.values.is_contiguous()
        sequences = (_CSequence * len(caches))(
            *(_CSequence(c.keys.data_ptr(), c.values.data_ptr(), c.keys.shape[2], c.length) for c in caches)
        )
        lora = None if adapter is None else self._lora(adapter)
        model, rows, threads = ctypes.byref(self._model), len(caches), torch.get_num_threads()
        # Allocated per step, which costs two microseconds and lets several threads decode at once.
        workspace = torch.empty(self._library.decode_workspace(model, lora, sequences, rows, threads))
        x = x.clone(memory_format=torch.contiguous_format)
        self._library.decode_step(model, lora, sequences, rows, threads, x.data_ptr(), workspace.data_ptr())
        return x

    def _layer(self, layer: "Layer") -> _CLayer:
        matrices = []
        for name in FUSED:
            m = getattr(layer, name)
            self._tensors.append(m.tiles)
            bias = None if m.bias is None else self._vector(m.bias)
            tiles, groups = m.tiles.data_ptr(), m.tiles.shape[1]
            matrices.append(native.CMatrix(tiles, bias, native.KINDS[m.kind], m.out_features, groups))
        norms = [layer.attention_norm, layer.mlp_norm, layer.query_norm, layer.key_norm]
        pointers = [None if norm is None else self._vector(norm) for norm in norms]
        return _CLayer(*pointers, (native.CMatrix * 4)(*matrices))

    def _vector(self, tensor: Tensor) -> int:
        self._tensors.append(tensor.float().contiguous())
        return self._tensors[-1].data_ptr()

    def _lora(self, adapter: Adapter) -> Any:
        known = self._adapters.get(id(adapter))
        if known is not None and known[0]() is adapter:
            return known[1]
        entries = []
        for layer in adapter.layers:
            for name in FUSED:
                a, b = layer.get(name, (None, None))
                if a is None or b is None:
                    entries.append(_CLora(None, None, 0))
                    continue
                assert a.dtype == b.dtype == torch.float32
                assert a.is_contiguous()
                assert b.is_contiguous()
                entries.append(_CLora(a.data_ptr(), b.data_ptr(), a.shape[0]))
        array = (_CLora * len(entries))(*entries)
        self._adapters = {key: value for key, value in self._adapters.items() if value[0]() is not None}
        self._adapters[id(adapter)] = (weakref.ref(adapter), array)
        return array
