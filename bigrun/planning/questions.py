"""Questions of a plan: the longest context, the largest batch, how many cards, what a change would give, what it takes to
reach a speed, and why a model does not fit. Every answer is verified by planning again with it."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from bigrun.devices.cards import GB, GIB, find
from bigrun.devices.notes import disk_speed
from bigrun.devices.rates import ASSUMED_DISK, ASSUMED_GPU
from bigrun.devices.rig import Device, Rig, disk_rates, parse_gpus
from bigrun.errors import CallError, PlanDoesNotFit
from bigrun.model.spec import ModelSpec
from bigrun.planning.best import CHUNKS, MOST_BATCH, best_plan, check, fits
from bigrun.planning.hints import MOST_MORE, largest, smallest
from bigrun.planning.ledger import Ledger
from bigrun.planning.options import PlanOptions
from bigrun.planning.plan import Plan
from bigrun.planning.planner import make_plan, with_streaming
from bigrun.sizes import format_size, parse_size

QUESTIONS = ("context", "batch", "gpus")
TARGET = re.compile(r"\s*([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*(?:tok(?:en)?s?\s*/\s*s)?\s*", re.IGNORECASE | re.ASCII)
CANDIDATES = ("RTX3060", "RTX3090", "RTX4090", "RTX5090")  # cards to add where the rig names none


def solve(question: str, spec: ModelSpec, rig: Rig, options: PlanOptions) -> Plan:
    """--solve: the plan that answers it, with `answer`; a plan that does not fit where there is no answer."""
    if question not in QUESTIONS:
        raise CallError(f"--solve {question!r}: choose one of {', '.join(QUESTIONS)}")
    return {"context": _context, "batch": _batch, "gpus": _gpus}[question](spec, rig, options)


def _context(spec: ModelSpec, rig: Rig, options: PlanOptions) -> Plan:
    def change(tokens: int) -> PlanOptions:
        return replace(options, context=tokens, prompt=None)

    check(spec, change(1))
    tokens = largest(1, spec.context_limit, lambda n: fits(Ledger(spec, change(n)), rig))
    if not tokens:
        return make_plan(spec, rig, change(1))
    made = make_plan(spec, rig, replace(change(tokens), prompt=options.prompt))
    return replace(made, answer={"context_tokens": tokens})


def _batch(spec: ModelSpec, rig: Rig, options: PlanOptions) -> Plan:
    check(spec, options)
    batch = largest(1, MOST_BATCH, lambda n: fits(Ledger(spec, replace(options, batch=n)), rig))
    if not batch:
        return make_plan(spec, rig, options)
    return replace(make_plan(spec, rig, replace(options, batch=batch)), answer={"batch": batch})


def _gpus(spec: ModelSpec, rig: Rig, options: PlanOptions) -> Plan:
    """How many of the (one kind of) card of the rig hold everything that is computed: blocks, experts and the head."""
    check(spec, options)
    kinds = {(gpu.budget_bytes, gpu.rates) for gpu in rig.gpus}
    if len(kinds) != 1:
        raise CallError("--solve gpus: name one kind of card, as in --gpus RTX3090 or --gpus 24GB")
    card, ledger = rig.gpus[0], Ledger(spec, options)
    count = smallest(MOST_MORE, lambda n: fits(ledger, _on_gpus_alone(ledger, rig.with_gpus([card] * n))))
    if not count:
        label = card.label or format_size(card.budget_bytes)
        raise PlanDoesNotFit(f"--solve gpus: {MOST_MORE} x {label} do not hold all blocks of {spec.name}")
    least = smallest(count, lambda n: fits(ledger, rig.with_gpus([card] * n)))
    if fits(ledger, rig.with_gpus([])):
        least = 0
    plan = make_plan(spec, rig.with_gpus([card] * count), options)
    return replace(plan, answer={"gpus": count, "gpus_beside_the_host": least})


def _on_gpus_alone(ledger: Ledger, rig: Rig) -> Rig:
    """The rig with just as much on the host as a lookup takes, and no disk."""
    rows = ledger.workspace(CHUNKS[-1], False, False)
    room = 0 if ledger.spec.tied else (ledger.weights("embed") + rows) * 100 // 99 + 100
    cpu = min(rig.device("cpu").budget_bytes, room)
    devices = (d for d in rig.with_budget("cpu", cpu).devices if d.kind != "disk")
    return replace(rig, devices=tuple(devices))


def what_if(change: str, spec: ModelSpec, rig: Rig, options: PlanOptions) -> Plan:
    """--what-if: the plan after a change of the rig, with `answer` = what was before and what is after."""
    before, after = make_plan(spec, rig, options), make_plan(spec, changed(rig, change), options)
    return replace(after, answer={"change": change, "before": summary(before), "after": summary(after)})


def changed(rig: Rig, change: str) -> Rig:
    """A rig after "+1xRTX4090", "-1x24GB", "cpu=128GB" or "disk=1TB" (several with commas)."""
    how = "write +1xRTX4090, -1x24GB, cpu=128GB or disk=1TB"
    if not isinstance(change, str):
        raise CallError(f"--what-if {change!r:.40}: {how}")
    for item in change.split(","):
        word = item.strip()
        if word[:1] == "+":
            rig = rig.with_gpus([*rig.gpus, *_like(rig, _cards(word[1:]))])
        elif word[:1] == "-":
            left = list(rig.gpus)
            for gone in _cards(word[1:]):
                same = [card for card in left if _is(card, gone)]
                if not same:
                    has = rig.gpus_text or "no GPU"
                    raise CallError(f"--what-if {change[:40]!r}: the rig has {has}: no {gone.label} to take out")
                left.remove(same[-1])
            rig = rig.with_gpus(left)
        elif match := re.fullmatch(r"(cpu|disk)\s*=\s*(.+)", word):
            size = parse_size(match[2], f"--what-if {match[1]}")
            if match[1] == "disk" and not any(d.kind == "disk" for d in rig.devices):
                disk = Device(
                    "disk", "disk", size, disk_rates(ASSUMED_DISK), notes=(disk_speed(ASSUMED_DISK, "assumed"),)
                )
                rig = replace(rig, devices=(*rig.devices, disk))
            rig = rig.with_budget(match[1], size)
        else:
            raise CallError(f"--what-if {change[:40]!r}: {item[:40]!r} makes no sense; {how}")
    return rig


def _cards(text: str) -> tuple[Device, ...]:
    cards = parse_gpus(text, option="--what-if")
    if not cards:
        raise CallError(f"--what-if: {text!r:.40} names no card; write +1xRTX4090 or -1x24GB")
    return cards


def _is(card: Device, named: Device) -> bool:
    """Whether a card of the rig is one that was named: by its name, or by its memory."""
    if card.label == named.label:
        return True
    known = find(card.label) if card.label else None
    whole = known.memory_bytes // GIB * GB if known else card.budget_bytes  # an RTX 3090 is a card of 24 GB
    sized = named.rates == ASSUMED_GPU or not card.label
    return sized and named.budget_bytes in (whole, card.budget_bytes)


def _like(rig: Rig, more: tuple[Device, ...]) -> list[Device]:
    """New GPUs are virtual where the rig's are."""
    if rig.gpus and all(gpu.virtual for gpu in rig.gpus):
        return [replace(gpu, virtual=True) for gpu in more]
    return list(more)


def summary(plan: Plan) -> dict[str, Any]:
    """The main figures of a plan, for an answer."""
    facts: dict[str, Any] = {"fits": plan.fits}
    blocks = [p for p in plan.placements if p.part.startswith("blocks.") and not p.part.endswith(".experts")]
    facts["blocks_on_gpus"] = sum(p.decode_on.startswith("cuda") for p in blocks)
    facts["blocks"] = len({name for name in plan.part_names if name.startswith("blocks.") and name.count(".") == 1})
    for name in ("decode_tokens_per_s", "prefill_tokens_per_s", "request_seconds"):
        facts[name] = getattr(plan.predicted, name) if plan.predicted else None
    return facts


def target(text: str, spec: ModelSpec, rig: Rig, options: PlanOptions) -> Plan:
    """--target: the plan after the least change that decodes as fast as that."""
    match = TARGET.fullmatch(text) if isinstance(text, str) else None
    if match is None or float(match[1]) <= 0:
        raise CallError(f"--target {str(text)[:40]!r}: write a speed such as 5tok/s")
    goal = float(match[1])
    check(spec, options)
    best: tuple[float, str] = (0.0, "")
    for change, option, other, kind in _changes(rig, options):
        ledger = Ledger(spec, kind)
        if not fits(ledger, other):
            continue
        plan = best_plan(ledger, other)
        rate = plan.predicted.decode_tokens_per_s if plan.predicted else 0.0
        if rate >= goal:
            answer = {"target_tokens_per_s": goal, "change": change, "option": option, "decode_tokens_per_s": rate}
            return replace(with_streaming(plan, ledger, other), answer=answer)
        if rate > best[0] * (1 + 1e-9):  # of equals the least change
            best = (rate, change)
    with_it = "today's rig" if best[1] == "nothing" else best[1]
    reached = f"the best is {best[0]:.3g} with {with_it}" if best[1] else "with none of them the model even fits"
    raise PlanDoesNotFit(f"--target: no change that was tried reaches {goal:g} tokens/s; {reached}")


def _changes(rig: Rig, options: PlanOptions) -> Iterator[tuple[str, str, Rig, PlanOptions]]:
    """Changes from the least to the largest: (in words, as an option, rig, options)."""
    yield "nothing", "", rig, options
    if options.storage.kv == "16bit":
        yield "keys and values in int8", "--kv int8", rig, options.with_kv("int8")
    cpu = rig.device("cpu").budget_bytes
    for factor in (2, 4):
        if cpu:
            unit, name = (10**9, "GB") if cpu * factor >= 10**10 else (10**6, "MB")
            count = -(-cpu * factor // unit)
            size = f"{count}{name}"
            yield f"{size} of host memory", f"--cpu {size}", rig.with_budget("cpu", count * unit), options
    cards = list(dict.fromkeys(gpu.label for gpu in rig.gpus if gpu.label)) or list(CANDIDATES)
    faster = [name for name in CANDIDATES if name not in cards]
    for count in (1, 2, 3, 4, 6, 8):
        for name in (*cards, *faster):
            change = f"+{count}x{name}"
            other = changed(rig, change)
            yield f"{count} more {name}", f"--gpus {other.gpus_text}", other, options
    for name in CANDIDATES:
        if rig.gpus:
            other = rig.with_gpus(_like(rig, parse_gpus(f"{len(rig.gpus)}x{name}")))
            yield f"{len(rig.gpus)} {name} instead", f"--gpus {other.gpus_text}", other, options
