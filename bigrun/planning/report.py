"""A plan as a person reads it: a verdict, a memory bar for each device, where the parts are, what was assumed."""

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from bigrun.planning.answers import answer_lines
from bigrun.planning.plan_data import DevicePlan, Placement, PlanData
from bigrun.planning.words import (
    bases,
    cannot_run,
    count,
    describe_parts,
    device_name,
    duration,
    rate,
    request_tokens,
    several,
    streaming_sentence,
)
from bigrun.sizes import format_size

BAR, LEAST_BAR = 28, 8
WIDE, NAMED = 100, 72  # columns from which the kinds of bytes, and the cards, are shown
OTHERS, KINDS_TOO = 46, 72  # columns that a table needs beside names and bars, without the kinds of bytes and with them
# (field, letter, colour): the letter tells the kinds of bytes apart where there is no colour.
KINDS = (
    ("weights_bytes", "█", "blue", "weights"),
    ("kv_cache_bytes", "▓", "magenta", "KV cache"),
    ("workspace_bytes", "▒", "cyan", "workspace"),
    ("staging_bytes", "s", "yellow", "staging"),
    ("pinned_bytes", "p", "yellow", "pinned"),
    ("reserve_bytes", "░", "bright_black", "reserve"),
)


def plan_view(plan: PlanData, width: int) -> RenderableType:
    """The plan for rich's console, in at most `width` columns: below WIDE the kinds of bytes show in the bars alone."""
    refused = [Text(f"cannot run yet: {why}", "yellow")] if (why := cannot_run(plan)) else []
    return Group(_title(plan), *refused, Text(), _devices(plan, width), _legend(plan), Text(), *_notes(plan))


def plan_text(plan: PlanData, width: int = 110) -> str:
    """The plan as plain text of at most `width` columns."""
    console = Console(width=width, no_color=True, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(plan_view(plan, width))
    return capture.get()


def _title(plan: PlanData) -> Text:
    verdict = Text(" fits ", "bold black on green") if plan.fits else Text(" does not fit ", "bold white on red")
    if cannot_run(plan):
        verdict = Text(" fits, cannot run yet ", "bold black on yellow")
    weights = sum(device.weights_bytes for device in plan.devices)
    sequences = f", {plan.batch} sequences" if plan.batch > 1 else ""
    title = Text.assemble((plan.model, "bold"), f"  {count(plan.parameters)} parameters in {plan.weights}")
    if plan.fits:
        title.append(f" = {format_size(weights)}")
    title.append(f", {several(plan.context_tokens, 'token')} of context{sequences}  ")
    return title.append_text(verdict)


def _devices(plan: PlanData, width: int) -> Table:
    """A row a device. Where columns are few, the bars give way first, then the kinds of bytes, then what is held wraps."""
    wide, named = width >= WIDE, _name_and_card if width >= NAMED else device_name
    names = [named(device) for device in plan.devices]
    bar = max(LEAST_BAR, min(BAR, width - (KINDS_TOO if wide else OTHERS) - max(map(len, names))))
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("device", no_wrap=True)
    table.add_column("memory", no_wrap=True)
    for name in ("used", "of", "weights", "KV", "work")[: 5 if wide else 2]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("holds", overflow="fold")
    for device, name in zip(plan.devices, names, strict=True):
        sizes = (
            device.used_bytes,
            device.budget_bytes,
            device.weights_bytes,
            device.kv_cache_bytes,
            device.workspace_bytes,
        )
        shown = sizes if wide else sizes[:2]
        table.add_row(name, memory_bar(device, bar), *map(format_size, shown), describe_parts(device.parts))
    return table


def _name_and_card(device: DevicePlan) -> str:
    return f"{device_name(device)}  {device.card}" if device.card else device_name(device)


def memory_bar(device: DevicePlan, length: int = BAR) -> Text:
    """One character for 1/length of the budget; every kind of bytes that is there shows at least once."""
    shares = [(getattr(device, name), letter, colour) for name, letter, colour, _ in KINDS]
    budget = max(device.budget_bytes, 1)
    cells = [max(1, round(length * nbytes / budget)) if nbytes else 0 for nbytes, _, _ in shares]
    while sum(cells) > length and max(cells) > 1:  # rounding up went too far: the longest run gives way
        cells[cells.index(max(cells))] -= 1
    bar = Text()
    for (_, letter, colour), cell in zip(shares, cells, strict=True):
        bar.append(letter * cell, colour)
    return bar.append("·" * (length - sum(cells)), "bright_black")


def _legend(plan: PlanData) -> Text:
    legend = Text("bars: ", "bright_black")
    for name, letter, colour, label in KINDS:
        if any(getattr(device, name) for device in plan.devices):
            legend.append(letter, colour).append(f" {label}  ", "bright_black")
    return legend.append("· free", "bright_black")


def _notes(plan: PlanData) -> list[RenderableType]:
    notes: list[RenderableType] = []
    if plan.answer is not None:
        notes += answer_lines(plan)
    if not plan.fits:
        blocks = describe_parts(plan.unplaced)
        notes.append(Text.assemble(("no place for ", "bold"), blocks))
        notes.append(Text(plan.hint))
        return notes
    predicted = plan.predicted
    assert predicted is not None, "a plan that fits has a prediction"
    decode, prefill = rate(predicted.decode_tokens_per_s), rate(predicted.prefill_tokens_per_s)
    together = f" ({several(plan.batch, 'sequence')} together)" if plan.batch > 1 else ""
    speed = f" decoding{together}, {prefill} tokens/s of prompt (in chunks of {plan.prefill_chunk_tokens})"
    notes.append(Text.assemble(("predicted: ", "bold"), (f"{decode} tokens/s", "bold green"), speed))
    request = f"{duration(predicted.request_seconds)} {request_tokens(plan)}"
    notes.append(Text(f"           {request}; {duration(predicted.load_seconds)} to load"))
    streamed = [p for p in plan.placements if p.prefill_on not in (p.stored_on, "cpu")]
    if streamed:
        through = ", ".join(dict.fromkeys(p.prefill_on for p in streamed))
        both = all(p.decode_on == p.prefill_on for p in streamed)
        notes.append(Text(f"streamed through {through} for {'every step' if both else 'prompts'}: {_short(streamed)}"))
    if plan.if_streamed is not None:
        notes.append(Text(streaming_sentence(plan.if_streamed)))
    for kind, lines in bases(predicted).items():
        notes += [Text.from_markup(f"[bright_black]{kind}: {escape(line)}[/]") for line in lines]
    return notes


def _short(placements: list[Placement]) -> str:
    return describe_parts(tuple(dict.fromkeys(p.part for p in placements)))


def compared_view(other: dict[str, Any]) -> RenderableType:
    """What accelerate's map would do, device by device (compare.py)."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0), title_justify="left")
    table.title = "accelerate's infer_auto_device_map under the same budgets"
    for name in ("device", "of", "weights", "needed in a run", "verdict", "holds"):
        table.add_column(name, justify="right" if name in ("of", "weights", "needed in a run") else "left")
    for row in other["devices"]:
        over = row["needed_bytes"] - row["budget_bytes"]
        verdict = f"runs out by {format_size(over)}" if over > 0 else "holds"
        table.add_row(
            row["name"], format_size(row["budget_bytes"]), format_size(row["counted_bytes"]),
            format_size(row["needed_bytes"]), Text(verdict, "red" if over > 0 else "green"),
            describe_parts(tuple(row["parts"])),
        )  # fmt: skip
    return Group(Text(), table, Text(other["summary"]))
