"""accelerate's answer beside ours: `infer_auto_device_map` for the same budgets, and what its map would need in a run.

accelerate counts weights alone. Run, every block on a card also keeps keys and values and the buffers of a step there;
what is mapped to the CPU or the disk is copied to the first card whenever it is its turn, so the first card holds the
keys and values of those blocks and room for the largest of them too (accelerate's documentation, "Big model inference").
"""

import logging
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bigrun.devices.rates import ASSUMED_DISK
from bigrun.devices.rig import Device, Rig, disk_rates
from bigrun.errors import CallError
from bigrun.model.families.registry import BY_NAME
from bigrun.model.spec import ModelSpec
from bigrun.planning.cost import LAUNCH, seconds
from bigrun.planning.ledger import Ledger
from bigrun.planning.options import PlanOptions
from bigrun.planning.plan import Plan
from bigrun.planning.search import Problem
from bigrun.planning.words import rate


def accelerate_plan(
    plan: Plan, spec: ModelSpec, rig: Rig, options: PlanOptions, config: Mapping[str, Any]
) -> dict[str, Any]:
    """What accelerate would do, as JSON: `devices` with `name, budget_bytes, counted_bytes, needed_bytes, parts`, its
    `device_map`, whether it `fits` a run, `decode_tokens_per_s` by our cost model, and a `summary`."""
    device_map = infer(config, rig, options)
    homes = part_homes(spec, device_map)
    if "disk" in homes.values() and not any(device.kind == "disk" for device in rig.devices):
        # it spills onto a disk whether there is one or not
        rig = replace(rig, devices=(*rig.devices, Device("disk", "disk", 0, disk_rates(ASSUMED_DISK))))
    # what is on the CPU or the disk is computed by the first card that holds anything, and by the CPU if none does
    main = next((gpu.name for gpu in rig.gpus if gpu.name in homes.values()), "cpu")
    ledger = Ledger(spec, options)
    problem = Problem(ledger, rig, plan.prefill_chunk_tokens)
    rows: list[dict[str, Any]] = []
    for device in rig.devices:
        here = [name for name, home in homes.items() if home == device.name]
        computed = [n for n, home in homes.items() if (home if home.startswith("cuda") else main) == device.name]
        needed = sum(ledger.weights(name) for name in here) + sum(ledger.kv(name) for name in computed)
        copied = [ledger.weights(name) for name in computed if name not in here]
        needed += max(copied, default=0)
        blocks = any(name.startswith("blocks.") for name in computed)
        needed += ledger.workspace(problem.chunk, blocks, "head" in computed, device.is_gpu) if computed else 0
        counted = sum(ledger.weights(name) for name in here)
        rows.append(
            {
                "name": device.name, "budget_bytes": device.budget_bytes, "counted_bytes": counted, "needed_bytes": needed,
                "parts": here,
            }
        )  # fmt: skip
    fits = all(row["needed_bytes"] <= row["budget_bytes"] for row in rows)
    seconds = _decode_seconds(problem, homes, main)
    ours = plan.predicted.decode_tokens_per_s if plan.predicted else None
    bad = [row["name"] for row in rows if row["needed_bytes"] > row["budget_bytes"]]
    summary = f"accelerate's map runs out of memory on {', '.join(bad)}" if bad else "accelerate's map holds in a run"
    theirs = options.batch / seconds
    summary += f"; by our cost model it decodes {rate(theirs)} tokens/s"
    summary += f", this plan {rate(ours)}" if ours else ""
    return {
        "device_map": device_map, "devices": rows, "fits": fits, "decode_tokens_per_s": theirs, "summary": summary,
    }  # fmt: skip


def infer(config: Mapping[str, Any], rig: Rig, options: PlanOptions) -> dict[str, Any]:
    """infer_auto_device_map of the model of a Hugging Face configuration, made without memory."""
    try:
        import torch
        import transformers
        from accelerate import infer_auto_device_map, init_empty_weights
    except ImportError as error:
        raise CallError(f"--compare accelerate needs the packages accelerate and transformers: {error}") from error
    name = config["architectures"][0]
    kind = getattr(transformers, name, None)
    if kind is None:
        raise CallError(f"--compare accelerate: transformers {transformers.__version__} has no {name}")
    noisy = [logging.getLogger(name) for name in ("accelerate.utils.modeling", "transformers")]
    levels = [logger.level for logger in noisy]
    for logger in noisy:  # they would say of every card that it is not here, which a dry run knows
        logger.setLevel(logging.ERROR)
    try:
        made = kind.config_class(**{key: value for key, value in config.items() if key != "quantization_config"})
        with init_empty_weights(include_buffers=True):  # else each tensor is made in memory before it is dropped
            model = kind(made)
        model.tie_weights()
        budgets: dict[Any, int] = {}
        for device in rig.devices:
            key: Any = int(device.name.partition(":")[2]) if device.kind == "gpu" else device.name
            budgets[key] = device.budget_bytes
        budgets.setdefault("disk", 0)
        dtype = {"int8": torch.int8, "16bit": torch.float16, "float32": torch.float32}[options.storage.weights]
        whole = sorted(getattr(model, "_no_split_modules", None) or [])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dict(infer_auto_device_map(model, max_memory=budgets, no_split_module_classes=whole, dtype=dtype))
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)


def part_homes(spec: ModelSpec, device_map: Mapping[str, Any]) -> dict[str, str]:
    """Part → device name, from module names: the longest name of the map that a part's module lies in."""
    modules = BY_NAME[spec.family].modules
    homes = {}
    for part in spec.parts:
        block = re.fullmatch(r"blocks\.([0-9]+)(\.experts)?", part.name)
        name = f"{modules['block'][0]}.{block[1]}" if block else modules[part.name][0]  # type: ignore[index]
        if block and block[2]:
            name += f".{modules['experts'][0]}"
        parents = [key for key in device_map if not key or name == key or name.startswith(f"{key}.")]
        inside = [key for key in device_map if key.startswith(f"{name}.")]  # where accelerate split it
        if not parents and not inside:
            raise CallError(f"--compare accelerate: its map has no place for {name}")
        place = device_map[max(parents, key=len)] if parents else device_map[inside[0]]
        homes[part.name] = f"cuda:{place}" if isinstance(place, int) else str(place)
    return homes


def _decode_seconds(problem: Problem, homes: Mapping[str, str], main: str) -> float:
    """A decode step by our cost model: what lies on the host or the disk is copied to the first card each time, and then
    computed."""
    total, rig = 0.0, problem.rig
    for part, home in homes.items():
        work = problem.decode.work(part)
        device = rig.device(home if home.startswith("cuda") else main)
        part_seconds = seconds(work, device.rates)
        if home != device.name and part != "embed":
            link = min(device.rates.link, rig.device(home).rates.read if home == "disk" else device.rates.link)
            whole = max(problem.ledger.weights(part), work.weights)  # all experts of a block, not those that are chosen
            part_seconds += whole / link + LAUNCH
        total += part_seconds
    return total
