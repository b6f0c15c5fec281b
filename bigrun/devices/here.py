"""Budgets that this host does not have: a warning of a plan, an error of a run."""

from bigrun.devices.make_rig import RigOptions
from bigrun.devices.probe import gpu_memories, host_memory
from bigrun.devices.rig import Rig
from bigrun.sizes import format_apart


def beyond_this_host(options: RigOptions, rig: Rig, to_run: bool) -> tuple[str, ...]:
    """Sentences about budgets that were named and that this host has not. A rig file may describe another machine, and virtual
    GPUs another one within this; so do, unless it is `to_run`, GPUs that are not here."""
    if options.rig is not None or options.virtual:
        return ()
    named = options.gpus is not None or options.max_memory is not None
    here = gpu_memories() if named and rig.gpus else ()
    if named and len(rig.gpus) > len(here) and not to_run:
        return ()
    found = []
    largest = max(here, default=0)
    flag = "--gpus" if options.max_memory is None else "--max-memory"
    for gpu in rig.gpus if here else ():
        if gpu.budget_bytes > largest:
            gets, has = format_apart(gpu.budget_bytes, largest)
            found.append(f"{flag}: {gpu.name} gets {gets}, and the largest GPU of this host has {has}")
    cpu, memory = rig.device("cpu").budget_bytes, host_memory()
    if (options.cpu is not None or options.max_memory is not None) and cpu > memory:
        flag = "--cpu" if options.max_memory is None else "--max-memory cpu"
        gets, has = format_apart(cpu, memory)
        found.append(f"{flag}: {gets} is more than the {has} that this host has")
    return tuple(found)
