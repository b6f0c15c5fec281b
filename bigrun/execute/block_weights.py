"""Wraps a part's stored arrays as the weights that the ops take: linears, norms, a table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bigrun.model.layout import Layout
from bigrun.model.program import Program
from bigrun.model.spec import Part
from bigrun_kernels.ops import Weight


@dataclass(frozen=True)
class NormWeights:
    weight: Any
    bias: Any  # empty for RMSNorm


BlockWeights = Mapping[str, Any]  # stem of a canonical tensor → Weight of a linear, NormWeights of a norm


def norm_weights(arrays: Mapping[str, Any], stem: str, nothing: Any) -> NormWeights:
    return NormWeights(arrays[f"{stem}.weight"], arrays.get(f"{stem}.bias", nothing))


def linear(part: Part, layout: Layout, arrays: Mapping[str, Any], name: str, bias: Any) -> Weight:
    """The stored tensor `name` (a linear or a table) as a kernel takes it."""
    tensor = next(tensor for tensor in part.tensors if tensor.name == name)
    form = layout.by_name[name].dtype
    if form == "int8" and tensor.role == "table":
        form = "table"
    return Weight(form, arrays[name], arrays.get(f"{name}.scale"), bias, tensor.shape[1])


def block_weights(
    part: Part, layout: Layout, arrays: Mapping[str, Any], program: Program, nothing: Any
) -> BlockWeights:
    """The weights that the steps of a part's program name; `nothing` stands for a bias where there is none."""
    roles = {tensor.name: tensor.role for tensor in part.tensors}
    weights: dict[str, Any] = {}
    for stem in program.weights:
        if roles[f"{stem}.weight"] == "linear":
            weights[stem] = linear(part, layout, arrays, f"{stem}.weight", arrays.get(f"{stem}.bias", nothing))
        else:
            weights[stem] = norm_weights(arrays, stem, nothing)
    return weights
