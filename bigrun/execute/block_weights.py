"""Wraps a part's stored arrays as the weights that the ops take: linears, norms, a table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bigrun.model.layout import Layout
from bigrun.model.spec import Part
from bigrun_kernels.ops import Weight


@dataclass(frozen=True)
class NormWeights:
    weight: Any
    bias: Any  # empty for RMSNorm


@dataclass(frozen=True)
class BlockWeights:
    attention_norm: NormWeights
    mlp_norm: NormWeights
    qkv: Weight
    out: Weight
    up: Weight
    down: Weight


def norm_weights(arrays: Mapping[str, Any], stem: str, nothing: Any) -> NormWeights:
    return NormWeights(arrays[f"{stem}.weight"], arrays.get(f"{stem}.bias", nothing))


def linear(part: Part, layout: Layout, arrays: Mapping[str, Any], name: str, bias: Any) -> Weight:
    """The stored tensor `name` (a linear or a table) as a kernel takes it."""
    tensor = next(tensor for tensor in part.tensors if tensor.name == name)
    form = layout.by_name[name].dtype
    if form == "int8" and tensor.role == "table":
        form = "table"
    return Weight(form, arrays[name], arrays.get(f"{name}.scale"), bias, tensor.shape[1])


def block_weights(part: Part, layout: Layout, arrays: Mapping[str, Any], nothing: Any) -> BlockWeights:
    make: Callable[[str], Weight] = lambda name: linear(  # noqa: E731
        part, layout, arrays, f"{name}.weight", arrays.get(f"{name}.bias", nothing)
    )
    attention_norm, mlp_norm = (norm_weights(arrays, stem, nothing) for stem in ("attention_norm", "mlp_norm"))
    return BlockWeights(attention_norm, mlp_norm, *map(make, ("qkv", "out", "up", "down")))
