"""A plan as a picture (SVG 1.1): devices as columns, parts stacked in them, and the predicted numbers."""

from dataclasses import dataclass
from xml.sax.saxutils import escape

from bigrun.planning.plan_data import DevicePlan, Placement, PlanData, Predicted
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
)
from bigrun.sizes import format_size

COLUMN, GAP, HEIGHT, MARGIN = 118, 22, 300, 34
PER_ROW = 10
ROW = HEIGHT + 92
HEAD, FOOT = 96, 132
FONT = "font-family='Inter,Segoe UI,Helvetica,Arial,sans-serif'"
INK, MUTED, PAPER, EMPTY = "#1d2433", "#667085", "#ffffff", "#eef1f6"
COLOURS = {
    "blocks": "#3b6fd4",
    "experts": "#12908a",
    "ends": "#d9822b",
    "kv_cache": "#a04bbf",
    "workspace": "#3fa7c9",
    "staging": "#d4b106",
    "reserve": "#b8c0cc",
}
NAMES = {
    "blocks": "blocks",
    "experts": "experts",
    "ends": "embedding, norm, head",
    "kv_cache": "KV cache",
    "workspace": "workspace",
    "staging": "staging",
    "reserve": "reserve",
}
LEAST = 13  # points: a lower piece has no room for a word
WIDEST = 0.68  # of the size of a font: how wide its letters are on average, if they are wide ones


@dataclass(frozen=True)
class Piece:
    """Part of a column: how many bytes of what; `cuts` are the bytes of each part in it, for the lines between them."""

    kind: str
    nbytes: int
    label: str
    cuts: tuple[int, ...] = ()


def plan_svg(plan: PlanData) -> str:
    """The picture as text. A column is as high as its device's budget, whatever that is."""
    rows = -(-len(plan.devices) // PER_ROW)
    columns = min(PER_ROW, len(plan.devices))
    width = max(2 * MARGIN + columns * (COLUMN + GAP) - GAP, 760)
    height = HEAD + rows * ROW + FOOT
    body = [*_title(plan, width)]
    kinds: list[str] = []
    left = (width - (columns * (COLUMN + GAP) - GAP)) / 2
    for i, device in enumerate(plan.devices):
        x, y = left + (i % PER_ROW) * (COLUMN + GAP), HEAD + (i // PER_ROW) * ROW
        pieces = _pieces(plan, device)
        kinds += [piece.kind for piece in pieces]
        body += _column(device, pieces, x, y)
    body += _foot(plan, [kind for kind in COLOURS if kind in kinds], width, HEAD + rows * ROW)
    text = "\n".join(body)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:.0f} {height:.0f}' width='{width:.0f}' "
        f"height='{height:.0f}' {FONT}>\n<title>{escape(_printable(plan.model))}: where it goes</title>\n"
        f"<rect width='100%' height='100%' fill='{PAPER}'/>\n{text}\n</svg>\n"
    )


def _printable(text: str) -> str:
    """What cannot be printed, which XML may not hold, is escaped as Python does."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _cut(text: str, width: float, size: float) -> str:
    """Shortens a text to a width."""
    text, most = _printable(text), int(width / (WIDEST * size))
    return text if len(text) <= most else text[: most - 1] + "…"


def _text(x: float, y: float, text: str, size: float, colour: str = INK, more: str = "") -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size:g}' fill='{colour}' {more}>{escape(_printable(text))}</text>"
    )


def _rect(x: float, y: float, width: float, height: float, colour: str, more: str = "") -> str:
    return f"<rect x='{x:.1f}' y='{y:.2f}' width='{width:.1f}' height='{max(height, 0):.2f}' fill='{colour}' {more}/>"


def _title(plan: PlanData, width: float) -> list[str]:
    weights = sum(device.weights_bytes for device in plan.devices)
    what = f"{count(plan.parameters)} parameters in {plan.weights}"
    what += f" = {format_size(weights)}" if plan.fits else ""
    what += f", {several(plan.context_tokens, 'token')} of context"
    what += f", {plan.batch} sequences" if plan.batch > 1 else ""
    verdict, colour = ("fits", "#1a7f4b") if plan.fits else ("does not fit", "#c0362c")
    why = cannot_run(plan)
    if why:
        verdict, colour = "fits, cannot run yet", "#9a6700"
    refused = [_text(MARGIN, 87, _cut(f"cannot run yet: {why}", width - 2 * MARGIN, 12), 12, colour)] if why else []
    badge = 20 + 8.2 * len(verdict)
    return [
        _text(MARGIN, 44, _cut(plan.model, width - 3 * MARGIN - badge, 25), 25, INK, "font-weight='700'"),
        _text(MARGIN, 68, what, 14, MUTED),
        _rect(width - MARGIN - badge, 24, badge, 28, colour, "rx='14'"),
        _text(width - MARGIN - badge / 2, 43, verdict, 14, PAPER, "text-anchor='middle' font-weight='600'"),
        *refused,
    ]


def _pieces(plan: PlanData, device: DevicePlan) -> list[Piece]:
    """From the bottom up: weights by kind, then everything else that is on the device."""
    here = [p for p in plan.placements if p.stored_on == device.name]
    groups: dict[str, list[Placement]] = {"ends": [], "blocks": [], "experts": []}
    for placement in here:
        name = "experts" if placement.part.endswith(".experts") else placement.part.partition(".")[0]
        groups[name if name in groups else "ends"].append(placement)
    pieces = []
    for kind in ("blocks", "experts", "ends"):
        sizes = tuple(p.weights_bytes for p in groups[kind])
        if sum(sizes):
            names = tuple(dict.fromkeys(p.part for p in groups[kind]))
            pieces.append(Piece(kind, sum(sizes), describe_parts(names), sizes))
    rest = {
        "kv_cache": device.kv_cache_bytes,
        "workspace": device.workspace_bytes,
        "staging": device.staging_bytes + device.pinned_bytes,
        "reserve": device.reserve_bytes,
    }
    return pieces + [Piece(kind, nbytes, NAMES[kind]) for kind, nbytes in rest.items() if nbytes]


def _column(device: DevicePlan, pieces: list[Piece], x: float, y: float) -> list[str]:
    scale = HEIGHT / max(device.budget_bytes, 1)
    name = device_name(device)
    share = device.used_bytes / max(device.budget_bytes, 1)
    body = [
        _rect(x, y, COLUMN, HEIGHT, EMPTY, "rx='6'"),
        _text(
            x + COLUMN / 2, y + HEIGHT + 22, name, 12.5 if device.virtual else 15, INK, "text-anchor='middle' font-weight='600'"
        ),
        _text(
            x + COLUMN / 2, y + HEIGHT + 40, f"{format_size(device.used_bytes)} of {format_size(device.budget_bytes)}", 12,
            MUTED, "text-anchor='middle'",
        ),
        _text(x + COLUMN / 2, y + HEIGHT + 56, f"{share:.0%}", 12, MUTED, "text-anchor='middle'"),
    ]  # fmt: skip
    if device.card:
        card = _text(
            x + COLUMN / 2, y + HEIGHT + 72, _cut(device.card, COLUMN + GAP, 11), 11, MUTED, "text-anchor='middle'"
        )
        body.append(card)
    bottom = y + HEIGHT
    for piece in pieces:
        high = piece.nbytes * scale
        bottom -= high
        body.append(_rect(x, bottom, COLUMN, high, COLOURS[piece.kind]))
        line = bottom + high
        for cut in piece.cuts[:-1]:
            line -= cut * scale
            if cut * scale > 2.5:  # closer lines would only be a grey
                body.append(_rect(x, line, COLUMN, 0.7, PAPER, "opacity='0.45'"))
        if high >= LEAST:
            label = piece.label if len(piece.label) <= 19 else piece.label[:18] + "…"
            middle, wide = bottom + high / 2, min(6.6 * len(label), COLUMN - 2)
            body.append(
                _rect(x + (COLUMN - wide) / 2, middle - 6, wide, 12, COLOURS[piece.kind])
            )  # no line through a word
            body.append(_text(x + COLUMN / 2, middle + 4, label, 11.5, PAPER, "text-anchor='middle'"))
    return body


def _foot(plan: PlanData, kinds: list[str], width: float, y: float) -> list[str]:
    body, x = [], float(MARGIN)
    for kind in kinds:
        body += [_rect(x, y + 2, 12, 12, COLOURS[kind], "rx='2'"), _text(x + 18, y + 12, NAMES[kind], 12, MUTED)]
        x += 40 + 6.6 * len(NAMES[kind])
    predicted = plan.predicted
    if predicted is None:
        missing = f"no place for {describe_parts(plan.unplaced)}"
        return [*body, _text(MARGIN, y + 48, _cut(missing, width - 2 * MARGIN, 14), 14)]
    figures = (
        (rate(predicted.decode_tokens_per_s), "tokens/s decoding"),
        (rate(predicted.prefill_tokens_per_s), "tokens/s of prompt"),
        (duration(predicted.request_seconds), request_tokens(plan)),
        (duration(predicted.load_seconds), "to load"),
    )
    step = (width - 2 * MARGIN) / len(figures)
    for i, (figure, label) in enumerate(figures):
        body.append(_text(MARGIN + i * step, y + 62, figure, 24, INK, "font-weight='700'"))
        body.append(_text(MARGIN + i * step, y + 82, label, 12.5, MUTED))
    body.append(_text(MARGIN, y + 112, f"bigrun plan, {basis(predicted)}", 11, MUTED))
    return body


def basis(predicted: Predicted) -> str:
    """What the figures rest on, in a line: predicted from rates given, learned of this host, and published or assumed."""
    words = {"measured": "measured on this host", "learned": "learned on this host", "assumed": "published or assumed"}
    kinds = [words.get(kind, kind) for kind, lines in bases(predicted).items() if lines]
    return "predicted from rates " + " and ".join(filter(None, [", ".join(kinds[:-1]), *kinds[-1:]]))
