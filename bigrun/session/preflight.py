"""Checks before a run: sampling options, plans, devices; then takes the memory of each device."""

from __future__ import annotations

import os
from collections.abc import Mapping
from numbers import Integral
from typing import TYPE_CHECKING, Any

from bigrun.devices.cards import find
from bigrun.devices.probe import host_memory
from bigrun.errors import CallError, PlanDoesNotFit, shortly
from bigrun.execute.supported import why_not_executable
from bigrun.model.families.registry import BY_NAME
from bigrun.model.spec import ModelSpec
from bigrun.planning.plan import Plan
from bigrun.sizes import format_apart

if TYPE_CHECKING:
    from bigrun.devices.host_memory import Memory
    from bigrun.execute.sampling import Sampling
    from bigrun.model.layout import Layout


def check_generation(max_new_tokens: int | None, sampling: Mapping[str, Any]) -> Sampling:
    """The sampling options, checked; CallError says what is wrong. A `seed` of None becomes a random one, of 32 bits, which
    can be read out and typed again."""
    from bigrun.execute.sampling import Sampling

    if max_new_tokens is not None:
        whole = isinstance(max_new_tokens, Integral) and not isinstance(max_new_tokens, bool)
        if not whole or max_new_tokens < 1:
            raise CallError(f"--max-new-tokens {shortly(max_new_tokens)}: give a whole number, at least 1")
    seed = sampling["seed"]
    return Sampling(**{**sampling, "seed": int.from_bytes(os.urandom(4), "little") if seed is None else seed})


def check_runnable(plan: Plan, spec: ModelSpec | None) -> None:
    """PlanDoesNotFit, or CallError for a plan of what this version cannot run. Without a spec, what the plan alone tells."""
    if not plan.fits:
        raise PlanDoesNotFit(f"{plan.model} does not fit: {plan.hint}")
    if why := why_not_runnable(plan, spec):
        raise CallError(f"{plan.model}: {why}")
    if real := real_gpus(plan):
        from bigrun.devices.gpu_memory import torch_device

        for name in real:
            torch_device(name)  # before anything is fetched or loaded: is it there?
    taken = sum(d.used_bytes for d in plan.devices if d.kind == "cpu" or d.virtual)
    if taken > (memory := host_memory()):
        takes, has = format_apart(taken, memory)
        raise CallError(
            f"{plan.model}: the plan takes {takes} of host memory, and this host has {has}: plan it with less --cpu, or for "
            "GPUs that are not virtual"
        )


def why_not_runnable(plan: Plan, spec: ModelSpec | None) -> str:
    """Why this version cannot run a plan, wherever its devices are; "" where it can. Without a spec, what the plan alone
    tells."""
    why = BY_NAME[plan.family].refusal if spec is None else why_not_executable(spec)
    if why:
        return why
    for name in real_gpus(plan):
        card = find(plan.device(name).card or "")
        if card is not None and card.refusal:
            return f"{card.refusal} ({name} is an {card.name}): leave it out, or add --virtual"
    if not plan.fits:
        return "it does not fit"
    if any(placement.stored_on == "disk" for placement in plan.placements):
        return "parts on the disk can be planned but not run yet: give more --cpu or --gpus"
    if any(p.stored_on != place for p in plan.placements for place in (p.prefill_on, p.decode_on)):
        return "streaming the host's parts through a GPU can be planned but not run yet: make the plan again"
    return ""


def real_gpus(plan: Plan) -> list[str]:
    """The GPUs that a plan computes on, virtual ones aside."""
    return [d.name for d in plan.devices if d.kind == "gpu" and not d.virtual and d.workspace_bytes]


def memories(plan: Plan, spec: ModelSpec, layouts: Mapping[str, Layout], kernels: str) -> dict[str, Memory]:
    """The memory of each device of a run; of real GPUs, once they are known to do, all that the plan wants is taken now, or
    RunError says what is free."""
    real = real_gpus(plan)
    if real:
        from bigrun.execute.gpu_backend import check_gpu

        for name in real:
            check_gpu(name, plan, layouts, kernels)
    by_device: dict[str, Memory] = {}
    try:
        _take(plan, spec, real, by_device)
    except BaseException:
        for memory in by_device.values():
            memory.close()
        raise
    return by_device


def _take(plan: Plan, spec: ModelSpec, real: list[str], by_device: dict[str, Memory]) -> None:
    from bigrun.devices.host_memory import HostMemory

    for device in plan.devices:
        if device.name in real:
            from bigrun.devices.gpu_memory import GpuMemory
            from bigrun.model.gpu_buffers import library_bytes

            unallocated = device.reserve_bytes + library_bytes(plan.storage)
            by_device[device.name] = GpuMemory(device.name, device.budget_bytes, device.used_bytes - unallocated)
        elif device.kind != "disk":
            by_device[device.name] = HostMemory(device.name, device.budget_bytes)
