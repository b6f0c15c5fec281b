"""Chooses the kernels of a GPU, Triton's or torch's own, before anything is loaded.

`--kernels triton` asks for the first, `reference` for the second; `auto` takes Triton wherever it works.
"""

import re
from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor

from bigrun.devices.gpu_memory import emulated, first_line, torch_device
from bigrun.devices.tuned_tiles import read_tiles
from bigrun.errors import CallError, RunError
from bigrun.model.layout import Layout
from bigrun.planning.plan import Plan
from bigrun_kernels.gpu.torch_ops import TorchOps

TENSOR_CORES = 80  # the compute capability from which Triton has int8 matrix products
OLDEST = 75  # that Triton compiles for
BLACKWELL, BLACKWELL_TRITON = 100, (3, 3)  # older versions abort the process


def check_gpu(name: str, plan: Plan, layouts: Mapping[str, Layout], kernels: str) -> None:
    """CallError or RunError where a plan cannot run on one of its GPUs: not there, not for this torch, without a type that
    its weights have, or `--kernels triton` without Triton."""
    device = torch_device(name)
    capability = capability_of(device)
    if device.type == "cuda":
        check_torch(name, capability, torch.cuda.get_arch_list())
    check_types(name, capability, [layouts[p.part] for p in plan.placements if p.stored_on == name])
    why = why_not_triton(device, kernels, plan.weights == "int8")
    if why and kernels == "triton":
        raise RunError(f"--kernels triton: {why}; leave the option out, or give --kernels reference")


def capability_of(device: torch.device) -> int:
    """90 for 9.0; of an emulated GPU, the oldest that Triton has matrix products for."""
    if device.type != "cuda":
        return TENSOR_CORES
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def check_torch(name: str, capability: int, built: list[str]) -> None:
    """CallError where this torch has no kernels for a card; `built` is its list: sm_90 is code, compute_90 can be compiled
    for every later card."""
    for entry in built:
        kind, _, number = entry.partition("_")
        known = int(re.sub(r"\D", "", number) or 0)
        if known <= capability and (kind == "compute" or known // 10 == capability // 10):
            return
    raise CallError(
        f"{name}: this torch ({torch.__version__}) has no kernels for compute capability {capability / 10}: install one that "
        "has, add --virtual, or give --gpus none"
    )


def check_types(name: str, capability: int, layouts: list[Layout]) -> None:
    """RunError where a GPU's weights are bfloat16 and it has none."""
    if capability < TENSOR_CORES and any(a.dtype == "bfloat16" for layout in layouts for a in layout.arrays):
        raise RunError(
            f"{name} (compute capability {capability / 10}) has no bfloat16, in which some weights are kept: give --weights "
            "int8 without --skip and --head 16bit, or --weights float32"
        )


def why_not_triton(device: torch.device, kernels: str, int8: bool) -> str:
    """Why torch alone computes there; "" where Triton does."""
    if kernels == "reference":
        return "torch was asked for"
    if not int8:
        return "weights are not int8"
    if emulated() and not interpreting():
        return "there is no GPU to emulate Triton on"
    return _broken(device)


@cache
def _broken(device: torch.device) -> str:
    """Why Triton does not run on a device, or "": a small kernel is compiled, for which it needs a C compiler, and run."""
    try:
        import triton

        version = tuple(int(number) for number in re.findall(r"\d+", triton.__version__)[:2])
        capability = capability_of(device)
        if capability < OLDEST:
            return f"Triton needs compute capability 7.5, this card has {capability / 10}"
        if capability >= BLACKWELL and version < BLACKWELL_TRITON:
            return f"Triton {triton.__version__} does not know this card"
        from bigrun_kernels.gpu import norm

        x, out = torch.ones(1, 64, device=device), torch.zeros(1, 64, device=device)
        norm.norm(x, x[0], None, 1e-5, out)
        if not abs(float(out[0, 0]) - 1.0) < 1e-3:
            return f"Triton computes {float(out[0, 0])} where it should be 1"
    except Exception as error:
        return f"Triton does not run ({type(error).__name__}: {first_line(error)})"
    return ""


def interpreting() -> bool:
    """Whether Triton is there and its interpreter runs the kernels, on the CPU."""
    try:
        import triton

        from bigrun_kernels.gpu.tiles import tile_kernel
    except ImportError:
        return False
    return not isinstance(tile_kernel, triton.JITFunction)


def make_ops(
    device: torch.device,
    work: Mapping[str, Tensor],
    sequences: int,
    kernels: str,
    int8: bool,
    note: Callable[[str], None],
) -> tuple[TorchOps, str]:
    """The ops of a GPU, and what `auto` is for prompts there."""
    if why := why_not_triton(device, kernels, int8):
        if why.startswith("Triton"):
            note(f"{device}: {why}: torch alone computes there, which is slower")
        return TorchOps(work), "exact"
    from bigrun_kernels.gpu import tables
    from bigrun_kernels.gpu.triton_ops import TritonOps

    table = tables.current(device)
    if device.type == "cuda":
        tuned, wrong = read_tiles(torch.cuda.get_device_name(device))
        table = tuned or table
        if wrong:
            note(wrong)
    return TritonOps(work, table, sequences, capability_of(device) >= TENSOR_CORES), table.prefill
