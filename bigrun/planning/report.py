"""A plan as a person reads it: a verdict, a memory bar for each device, where the parts are, what was assumed."""

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from bigrun.planning.plan import DevicePlan, Plan
from bigrun.sizes import format_size

BAR = 28
WIDE = 100
# (field, letter, colour): the letter tells the kinds of bytes apart where there is no colour.
KINDS = (
    ("weights_bytes", "█", "blue", "weights"),
    ("kv_cache_bytes", "▓", "magenta", "KV cache"),
    ("workspace_bytes", "▒", "cyan", "workspace"),
    ("staging_bytes", "s", "yellow", "staging"),
    ("pinned_bytes", "p", "yellow", "pinned"),
    ("reserve_bytes", "░", "bright_black", "reserve"),
)


def plan_view(plan: Plan, width: int) -> RenderableType:
    """The plan for rich's console, in at most `width` columns: below WIDE the kinds of bytes show in the bars alone."""
    return Group(_title(plan), Text(), _devices(plan, width >= WIDE), _legend(plan), Text(), *_notes(plan))


def plan_text(plan: Plan, width: int = 110) -> str:
    """The plan as plain text of at most `width` columns."""
    console = Console(width=width, no_color=True, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(plan_view(plan, width))
    return capture.get()


def _title(plan: Plan) -> Text:
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


def _devices(plan: Plan, wide: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("device", no_wrap=True)
    table.add_column("memory", no_wrap=True)
    for name in ("used", "of", "weights", "KV", "work")[: 5 if wide else 2]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("holds", overflow="fold")
    for device in plan.devices:
        name = f"{device.name} (virtual)" if device.virtual else device.name
        sizes = (
            device.used_bytes,
            device.budget_bytes,
            device.weights_bytes,
            device.kv_cache_bytes,
            device.workspace_bytes,
        )
        shown = sizes if wide else sizes[:2]
        table.add_row(name, memory_bar(device), *map(format_size, shown), describe_parts(device.parts))
    return table


def memory_bar(device: DevicePlan) -> Text:
    """One character for 1/BAR of the budget; every kind of bytes that is there shows at least once."""
    shares = [(getattr(device, name), letter, colour) for name, letter, colour, _ in KINDS]
    budget = max(device.budget_bytes, 1)
    cells = [max(1, round(BAR * count / budget)) if count else 0 for count, _, _ in shares]
    while sum(cells) > BAR and max(cells) > 1:  # rounding up went too far: the longest run gives way
        cells[cells.index(max(cells))] -= 1
    bar = Text()
    for (_, letter, colour), length in zip(shares, cells, strict=True):
        bar.append(letter * length, colour)
    return bar.append("·" * (BAR - sum(cells)), "bright_black")


def describe_parts(parts: tuple[str, ...]) -> str:
    """embed, blocks 0-8, norm, head."""
    words: list[str] = []
    runs: list[list[int]] = []
    for part in parts:
        kind, _, number = part.partition(".")
        if kind != "blocks":
            continue
        if runs and int(number) == runs[-1][1] + 1:
            runs[-1][1] += 1
        else:
            runs.append([int(number), int(number)])
    blocks = ", ".join(f"{first}-{last}" if first < last else f"{first}" for first, last in runs)
    for part in parts:
        if not part.startswith("blocks."):
            words.append(part)
        elif blocks:
            words.append(f"blocks {blocks}")
            blocks = ""
    return ", ".join(words) or "nothing"


def _legend(plan: Plan) -> Text:
    legend = Text("bars: ", "bright_black")
    for name, letter, colour, label in KINDS:
        if any(getattr(device, name) for device in plan.devices):
            legend.append(letter, colour).append(f" {label}  ", "bright_black")
    return legend.append("· free", "bright_black")


def _notes(plan: Plan) -> list[RenderableType]:
    notes: list[RenderableType] = []
    if not plan.fits:
        blocks = describe_parts(plan.unplaced)
        notes.append(Text.assemble(("no place for ", "bold"), blocks))
        notes.append(Text(plan.hint))
        return notes
    predicted = plan.predicted
    assert predicted is not None, "a plan that fits has a prediction"
    notes.append(
        Text.assemble(
            ("at most ", "bold"),
            f"{predicted.decode_tokens_per_s:.3g} tokens/s decoding, {predicted.prefill_tokens_per_s:.3g} tokens/s of prompt "
            f"(in chunks of {plan.prefill_chunk_tokens}), {predicted.load_seconds:.3g} s to load",
        )
    )
    notes += [Text.from_markup(f"[bright_black]assumed: {escape(line)}[/]") for line in predicted.assumptions]
    return notes
