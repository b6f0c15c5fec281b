"""A plan as a person reads it: a verdict, a memory bar for each device, where the parts are, what was assumed."""

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from bigrun.planning.plan_data import DevicePlan, Placement, PlanData
from bigrun.sizes import format_size

BAR, SHORTEST_BAR = 28, 6
WIDE = 100
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
    devices, has_bars = _devices(plan, width)
    return Group(_title(plan), Text(), devices, *([_legend(plan)] if has_bars else []), Text(), *_notes(plan))


def plan_text(plan: PlanData, width: int = 110) -> str:
    """The plan as plain text of at most `width` columns."""
    console = Console(width=width, no_color=True, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(plan_view(plan, width))
    return capture.get()


def _title(plan: PlanData) -> Text:
    verdict = Text(" fits ", "bold black on green") if plan.fits else Text(" does not fit ", "bold white on red")
    weights = sum(device.weights_bytes for device in plan.devices)
    sequences = f", {plan.batch} sequences" if plan.batch > 1 else ""
    title = Text.assemble((plan.model, "bold"), f"  {_count(plan.parameters)} parameters in {plan.weights}")
    if plan.fits:
        title.append(f" = {format_size(weights)}")
    title.append(f", {plan.context_tokens:,} tokens of context{sequences}  ")
    return title.append_text(verdict)


def _count(parameters: int) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if parameters >= size:
            return f"{parameters / size:.4g} {unit}"
    return str(parameters)


def _devices(plan: PlanData, width: int) -> tuple[RenderableType, bool]:
    """(the table of devices, whether it has bars)."""
    sizes = ("used_bytes", "budget_bytes", "weights_bytes", "kv_cache_bytes", "workspace_bytes")
    headings = ("used", "of", "weights", "KV", "work")
    shown = 5 if width >= WIDE else 2
    rows = [
        (
            f"{device.name} (virtual)" if device.virtual else device.name,
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


def memory_bar(device: DevicePlan, length: int = BAR) -> Text:
    """One character for 1/`length` of the budget; every kind of bytes that is there shows at least once."""
    shares = [(getattr(device, name), letter, colour) for name, letter, colour, _ in KINDS]
    budget = max(device.budget_bytes, 1)
    cells = [max(1, round(length * count / budget)) if count else 0 for count, _, _ in shares]
    while sum(cells) > length and max(cells) > 1:  # rounding up went too far: the longest run gives way
        cells[cells.index(max(cells))] -= 1
    bar = Text()
    for (_, letter, colour), cell in zip(shares, cells, strict=True):
        bar.append(letter * cell, colour)
    return bar.append("·" * (length - sum(cells)), "bright_black")


def describe_parts(parts: tuple[str, ...]) -> str:
    """embed, blocks 0-8, experts 0-8, norm, head."""
    words: list[str] = []
    numbers: dict[str, list[int]] = {"blocks": [], "experts": []}
    for part in parts:
        kind, _, rest = part.partition(".")
        if kind != "blocks":
            words.append(part)
            continue
        number, _, experts = rest.partition(".")
        name = experts or kind
        if not numbers[name]:
            words.append(name)
        numbers[name].append(int(number))
    return ", ".join(f"{word} {_runs(numbers[word])}" if word in numbers else word for word in words) or "nothing"


def _runs(numbers: list[int]) -> str:
    """0-3, 5, 7-9."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first}-{last}" if first < last else f"{first}" for first, last in runs)


def _legend(plan: PlanData) -> Text:
    legend = Text("bars: ", "bright_black")
    for name, letter, colour, label in KINDS:
        if any(getattr(device, name) for device in plan.devices):
            legend.append(letter, colour).append(f" {label}  ", "bright_black")
    return legend.append("· free", "bright_black")


def _notes(plan: PlanData) -> list[RenderableType]:
    notes: list[RenderableType] = []
    if plan.answer is not None:
        notes += _answer(plan.answer)
    if not plan.fits:
        blocks = describe_parts(plan.unplaced)
        notes.append(Text.assemble(("no place for ", "bold"), blocks))
        if plan.hint:
            notes.append(Text(plan.hint))
        return notes
    predicted = plan.predicted
    assert predicted is not None, "a plan that fits has a prediction"
    decode, prefill = rate(predicted.decode_tokens_per_s), rate(predicted.prefill_tokens_per_s)
    speed = f" decoding, {prefill} tokens/s of prompt (in chunks of {plan.prefill_chunk_tokens})"
    notes.append(Text.assemble(("predicted: ", "bold"), (f"{decode} tokens/s", "bold green"), speed))
    request = f"{duration(predicted.request_seconds)} for {predicted.prompt_tokens:,} + {predicted.new_tokens:,} tokens"
    notes.append(Text(f"           {request}; {duration(predicted.load_seconds)} to load"))
    streamed = [p for p in plan.placements if p.prefill_on not in (p.stored_on, "cpu")]
    if streamed:
        through = ", ".join(dict.fromkeys(p.prefill_on for p in streamed))
        both = all(p.decode_on == p.prefill_on for p in streamed)
        notes.append(Text(f"streamed through {through} for {'every step' if both else 'prompts'}: {_short(streamed)}"))
    notes += [Text.from_markup(f"[bright_black]measured: {escape(line)}[/]") for line in predicted.measured]
    notes += [Text.from_markup(f"[bright_black]assumed: {escape(line)}[/]") for line in predicted.assumptions]
    return notes


def _short(placements: list[Placement]) -> str:
    return describe_parts(tuple(dict.fromkeys(p.part for p in placements)))


def rate(value: float) -> str:
    """Three figures of tokens a second, or all of a thousand and more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Three figures of what people say: 38.2 s, 12.4 min, 3.1 h."""
    for unit, size, limit in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < limit * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86400:.3g} days"


def _answer(answer: dict[str, Any]) -> list[RenderableType]:
    """The answer to a question, in a line or two."""
    if "before" in answer:
        lines = []
        for name in ("before", "after"):
            facts = answer[name]
            if facts["fits"]:
                decode, prefill = rate(facts["decode_tokens_per_s"]), rate(facts["prefill_tokens_per_s"])
                what = (
                    f"{decode} tokens/s decoding, {prefill} of prompt, {duration(facts['request_seconds'])} a request, "
                )
                what += f"{facts['blocks_on_gpus']} of {facts['blocks']} blocks on GPUs"
            else:
                what = "does not fit"
            lines.append(Text.assemble((f"{name:6} ", "bold"), what))
        ratio = [answer[name]["request_seconds"] for name in ("before", "after")]
        if None not in ratio:
            lines.append(
                Text.assemble(
                    ("so     ", "bold"), f"{answer['change']} makes a request {ratio[0] / ratio[1]:.2f} times as fast"
                )
            )
        return [*lines, Text()]
    if "target_tokens_per_s" in answer:
        how = "today's rig reaches it" if not answer["option"] else f"{answer['change']} ({answer['option']})"
        return [Text.assemble((f"{answer['target_tokens_per_s']:g} tokens/s: ", "bold"), how), Text()]
    words = {"context_tokens": "tokens of context at most", "batch": "sequences at most"}
    if "gpus" in answer:
        beside = answer["gpus_beside_the_host"]
        text = f" of these hold everything that is computed; {beside} are enough if the host computes the rest"
        return [Text.assemble((f"{answer['gpus']}", "bold"), text), Text()]
    name, value = next(iter(answer.items()))
    return [Text.assemble((f"{value:,}", "bold"), f" {words[name]}"), Text()]


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
