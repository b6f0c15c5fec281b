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

BAR, SHORTEST_BAR = 28, 6
WIDE, NAMED = 100, 72  # columns from which the kinds of bytes, and the cards, are shown
HOLDS = 24  # columns for what a device holds before its bar gives way, and without a bar at least HOLDS_AT_LEAST
HOLDS_AT_LEAST = 13
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
    """The plan for rich's console, in at most `width` columns: below WIDE the kinds of bytes show in the bars alone, which
    shrink next; where not even the shortest have room there are none, and in the narrowest view a device has two lines."""
    refused = [Text(f"cannot run yet: {why}", "yellow")] if (why := cannot_run(plan)) else []
    devices, has_bars = _devices(plan, width)
    legend = [_legend(plan)] if has_bars else []
    return Group(_title(plan), *refused, Text(), devices, *legend, Text(), *_notes(plan))


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


def _devices(plan: PlanData, width: int) -> tuple[RenderableType, bool]:
    """(the table of devices, whether it has bars)."""
    sizes = ("used_bytes", "budget_bytes", "weights_bytes", "kv_cache_bytes", "workspace_bytes")
    headings = ("used", "of", "weights", "KV", "work")
    shown = 5 if width >= WIDE else 2
    named = _name_and_card if width >= NAMED else device_name
    rows = [
        (
            named(device),
            *(format_size(getattr(device, name)) for name in sizes[:shown]),
            describe_parts(device.parts),
        )
        for device in plan.devices
    ]
    columns = ("device", *headings[:shown], "holds")
    taken = sum(max(len(columns[i]), *(len(row[i]) for row in rows)) + 2 for i in range(shown + 1))
    free = width - taken - 2
    bar = min(BAR, free - min(HOLDS, max(len(row[-1]) for row in rows)))
    if bar < SHORTEST_BAR and width - taken < HOLDS_AT_LEAST:
        lines = [f"{name} {used} of {budget}\n  {holds}" for name, used, budget, holds in rows]
        return Text("\n".join(lines)), False
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("device", no_wrap=True)
    if bar >= SHORTEST_BAR:
        table.add_column("memory", no_wrap=True)
    for name in columns[1:-1]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("holds", overflow="fold")
    for device, (name, *counts, holds) in zip(plan.devices, rows, strict=True):
        table.add_row(name, *([memory_bar(device, bar)] if bar >= SHORTEST_BAR else []), *counts, holds)
    return table, bar >= SHORTEST_BAR


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
        if plan.hint:
            notes.append(Text(plan.hint))
        return notes
    predicted = plan.predicted
    assert predicted is not None, "a plan that fits has a prediction"
    decode, prefill = rate(predicted.decode_tokens_per_s), rate(predicted.prefill_tokens_per_s)
    together = f" ({several(plan.batch, 'sequence')} together)" if plan.batch > 1 else ""
    speed = f" decoding{together}, {prefill} tokens/s of prompt (in chunks of {plan.prefill_chunk_tokens})"
    doubt = (f"; {predicted.doubt}", "yellow") if predicted.doubt else ""
    notes.append(Text.assemble(("predicted: ", "bold"), (f"{decode} tokens/s", "bold green"), speed, doubt))
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
