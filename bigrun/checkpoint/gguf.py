"""GGUF files of the Llama architecture: tensors dequantised some rows at a time with the gguf library's own code."""

import math
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bigrun.checkpoint.base import Rows, TensorInfo
from bigrun.checkpoint.gguf_header import GgufTensor, read_header
from bigrun.errors import CheckpointError
from bigrun.model.source import Dialect


class GgufCheckpoint:
    """One .gguf file, mapped. `config` is its metadata in Hugging Face's words."""

    dialect: Dialect = "gguf"

    def __init__(self, path: Path):
        self.where = str(path)
        try:
            with open(path, "rb") as stream:
                self._data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
        self.metadata, found = read_header(self._data, self.where)
        self._found = {tensor.name: tensor for tensor in found}
        self.config: Mapping[str, Any] = _config(self.metadata, self._found, self.where)
        self.tensors: Mapping[str, TensorInfo] = {tensor.name: self._info(tensor) for tensor in found}

    def rows(self, name: str, start: int, stop: int) -> Rows:
        from gguf import GGMLQuantizationType, dequantize

        tensor = self._found[name]
        kind = GGMLQuantizationType(tensor.kind)
        row_bytes = _row_bytes(tensor)
        shape = tuple(reversed(tensor.shape))
        if len(shape) == 1:  # a vector's rows are its entries, and it is stored as one row of blocks
            entries = np.frombuffer(self._data, np.uint8, row_bytes, tensor.offset)
            return Rows(_floats(entries, kind, dequantize).reshape(-1)[start:stop])
        data = np.frombuffer(self._data, np.uint8, (stop - start) * row_bytes, tensor.offset + start * row_bytes)
        values = _floats(data.reshape(stop - start, row_bytes), kind, dequantize)
        return Rows(values.reshape(stop - start, *shape[1:]))

    def _info(self, tensor: GgufTensor) -> TensorInfo:
        from gguf import GGMLQuantizationType

        try:
            kind = GGMLQuantizationType(tensor.kind)
            row_bytes = _row_bytes(tensor)
        except (ValueError, KeyError) as error:
            raise CheckpointError(
                f"{self.where}: tensor {tensor.name[:80]!r} has unknown type {tensor.kind}"
            ) from error
        nbytes = row_bytes * math.prod(tensor.shape[1:])
        if nbytes > len(self._data) - tensor.offset:
            raise CheckpointError(
                f"{self.where}: cut short: tensor {tensor.name[:80]!r} ends beyond the file; fetch it again"
            )
        return TensorInfo(kind.name, tuple(reversed(tensor.shape)), nbytes, _readable(kind), self.where)


DEQUANTISED_BYTES = 1 << 17  # of blocks at a time


def _readable(kind: Any) -> bool:
    from gguf import GGMLQuantizationType, quants

    plain = (GGMLQuantizationType.F32, GGMLQuantizationType.F16)
    return kind in plain or kind in quants._type_traits


def _floats(data: np.ndarray, kind: Any, dequantize: Any) -> np.ndarray:
    """Rows of blocks → float32 [rows, columns]. The library is given some rows as one: it would take them sixteen at a time,
    and its temporary arrays are best kept in the cache."""
    data = np.atleast_2d(data)
    step, parts = max(1, DEQUANTISED_BYTES // data.shape[1]), []
    with np.errstate(all="ignore"):  # an inf among the scales is reported when the rows are converted
        for start in range(0, len(data), step):
            some = data[start : start + step]
            parts.append(np.array(dequantize(some.reshape(1, -1), kind), dtype=np.float32).reshape(len(some), -1))
    return np.concatenate(parts)


def _row_bytes(tensor: GgufTensor) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
    if tensor.shape[0] % block:
        raise KeyError(tensor.kind)
    return tensor.shape[0] // block * size


# GGUF's key, less its architecture → Hugging Face's field
FIELDS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "context_length": "max_position_embeddings",
    "vocab_size": "vocab_size",
}


def _config(metadata: Mapping[str, Any], tensors: Mapping[str, GgufTensor], where: str) -> dict[str, Any]:
    """The fields of config.json that the Llama family reads; CheckpointError where the file asks for more than that."""
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise CheckpointError(f"{where}: GGUF architecture {architecture!r:.40}; bigrun reads llama")
    if "rope_freqs.weight" in tensors or metadata.get("llama.rope.scaling.type") not in (None, "none", "linear"):
        raise CheckpointError(f"{where}: this rotary scaling is read from safetensors only, not from GGUF")
    heads, width = metadata.get("llama.attention.head_count"), metadata.get("llama.embedding_length")
    rotated = metadata.get("llama.rope.dimension_count")
    if rotated is not None and isinstance(heads, int) and isinstance(width, int) and heads > 0:
        head_dim = metadata.get("llama.attention.key_length", width // heads)
        if rotated != head_dim:
            raise CheckpointError(
                f"{where}: rotates {rotated!r:.20} of {head_dim!r:.20} entries of a head, which is not read from GGUF"
            )
    if metadata.get("llama.rope.scale_linear") not in (None, 0, 1):
        raise CheckpointError(f"{where}: the old key llama.rope.scale_linear is not read; convert the file anew")
    if metadata.get("llama.expert_count"):
        raise CheckpointError(f"{where}: a mixture of experts in GGUF is not read")
    config: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "torch_dtype": "float16"}
    for key, field in FIELDS.items():
        if (value := metadata.get(f"llama.{key}")) is not None:
            config[field] = value
    if metadata.get("llama.rope.scaling.type") == "linear":
        config["rope_scaling"] = {"type": "linear", "factor": metadata.get("llama.rope.scaling.factor")}
    table = tensors.get("token_embd.weight")
    if table is not None and len(table.shape) == 2:
        config["vocab_size"] = table.shape[1]
    config["tie_word_embeddings"] = "output.weight" not in tensors
    config["attention_bias"] = "blk.0.attn_q.bias" in tensors
    return config
