"""`bigrun models` and `bigrun cards`: what bigrun knows by name; and the lines of `plan --model all`."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from bigrun.cli.options import as_json, debug
from bigrun.errors import BigrunError

if TYPE_CHECKING:
    from bigrun.session.options import Options
    from bigrun.session.survey import Survey

pattern = click.argument("pattern", required=False, metavar="[PATTERN]")


@click.command()
@pattern
@as_json
@debug
def models(pattern: str | None, as_json: bool, debug: bool) -> None:
    """The models that have a name here, and whether they run or can only be planned.

    PATTERN: part of a name, or one with * and ?, such as 'qwen*'.
    """
    found = list_models(pattern)
    print(json.dumps(found) if as_json else models_table(found["models"]))


@click.command()
@pattern
@as_json
@debug
def cards(pattern: str | None, as_json: bool, debug: bool) -> None:
    """The graphics cards that have a name here, with the figures that their makers publish.

    PATTERN: part of a name, or one with * and ?, such as 'rtx40*'.
    """
    found = list_cards(pattern)
    print(json.dumps(found) if as_json else cards_table(found["cards"]))


def list_models(pattern: str | None = None) -> dict[str, Any]:
    """The catalog's models as the object of `models --json`; CallError where none matches."""
    from bigrun.execute.supported import why_not_executable
    from bigrun.model.catalog.lookup import ALIASES
    from bigrun.model.storage import Storage
    from bigrun.planning.ledger import Ledger
    from bigrun.planning.options import DEFAULT_CONTEXT, PlanOptions
    from bigrun.session.survey import matching

    rows: list[dict[str, Any]] = []
    for entry in matching(pattern):
        spec = entry.spec()
        context = min(DEFAULT_CONTEXT, spec.context_limit)
        ledger = Ledger(spec, PlanOptions(context, storage=Storage()))
        rows.append(
            {
                "name": entry.name,
                "parameters": spec.parameters,
                "family": spec.family,
                "context_tokens": spec.context_limit,
                "runs": why_not_executable(spec) or True,
                "int8_bytes": sum(ledger.weights(part.name) for part in spec.parts),
                "repo": entry.repo or None,
                "tuned_repo": entry.tuned or None,
                "aliases": [alias for alias, name in ALIASES.items() if name == entry.name],
                "source": entry.source,
            }
        )
    return {"models": rows}


def list_cards(pattern: str | None = None) -> dict[str, Any]:
    """The table of cards as the object of `cards --json`; CallError where none matches."""
    from bigrun.devices.cards import CARDS
    from bigrun.errors import CallError
    from bigrun.session.survey import matches

    rows: list[dict[str, Any]] = []
    for card in CARDS.values():
        if pattern is not None and not matches(card.name, pattern):
            continue
        rows.append(
            {
                "name": card.name,
                "maker": card.maker,
                "memory_bytes": card.memory_bytes,
                "usable_bytes": card.usable_bytes,
                "bandwidth_bytes_per_s": card.bandwidth,
                "int8_operations_per_s": card.int8,
                "fp16_operations_per_s": card.fp16,
                "link_bytes_per_s": card.link,
                "runs": card.refusal or True,
                "source": card.source,
            }
        )
    if not rows:
        raise CallError(f"no card of the table matches {str(pattern)[:60]!r}; `bigrun cards` lists all {len(CARDS)}")
    return {"cards": rows}


def models_table(rows: Sequence[dict[str, Any]]) -> str:
    from bigrun.planning.words import count
    from bigrun.sizes import format_size

    lines = [
        (
            row["name"], count(row["parameters"]), format_size(row["int8_bytes"]), f"{row['context_tokens']:,}", row["family"],
            _runs(row["runs"]), ", ".join(row["aliases"]),
        )
        for row in rows
    ]  # fmt: skip
    return table(("model", "parameters", "int8", "context", "family", "", "also called"), lines, right=(1, 2, 3))


def cards_table(rows: Sequence[dict[str, Any]]) -> str:
    from bigrun.sizes import format_size

    lines = [
        (
            row["name"], f"{row['memory_bytes'] / 2**30:.0f} GiB", format_size(row["usable_bytes"]),
            f"{row['bandwidth_bytes_per_s'] / 1e9:,.0f} GB/s", f"{row['int8_operations_per_s'] / 1e12:,.0f} TOPS",
            f"{row['fp16_operations_per_s'] / 1e12:,.0f} TFLOPS", _runs(row["runs"]),
        )
        for row in rows
    ]  # fmt: skip
    return table(("card", "memory", "for a plan", "reads", "int8", "fp16", ""), lines, right=(1, 2, 3, 4, 5))


def _runs(runs: bool | str) -> str:
    return "runs" if runs is True else "planned only"


def print_survey(options: "Options", as_json: bool) -> None:
    """`plan --model all`: what the rig of the options can run."""
    from bigrun.session.survey import survey

    found = survey(options)
    if as_json:
        print(json.dumps(asdict(found), indent=1))
        return
    for warning in found.warnings if options.progress else ():
        print(f"bigrun: {BigrunError(warning)}", file=sys.stderr)
    print(survey_table(found))


def survey_table(found: "Survey") -> str:
    from bigrun.planning.words import count, rate, several
    from bigrun.sizes import format_size

    lines = []
    for row in found.models:
        speeds = [
            f"{rate(speed)} tok/s" if speed else "" for speed in (row.decode_tokens_per_s, row.prefill_tokens_per_s)
        ]
        weights, fits = format_size(row.weights_bytes or 0), "fits" if row.fits else "does not fit"
        if row.weights_bytes is None:  # it cannot have these options
            weights, fits = "", str(row.runs).partition(":")[0]
        runs = _runs(row.runs) if row.fits or "can be planned" in str(row.runs) else ""
        where = f"{row.blocks_on_gpus} of {row.blocks}" if row.fits else ""
        lines.append((row.model, count(row.parameters), weights, fits, runs, *speeds, where))
    names = ("model", "parameters", "weights", "", "", "decoding", "prompt", "blocks on GPUs")
    contexts = sorted({row.context_tokens for row in found.models})
    title = f"on {found.rig}, with {several(contexts[-1], 'token')} of context{' or less' if len(contexts) > 1 else ''}"
    bases = {"given": found.given, "measured": found.measured, "learned": found.learned, "assumed": found.assumptions}
    notes = [f"{kind}: {BigrunError(line)}" for kind, said in bases.items() for line in said]
    return "\n".join([title, "", table(names, lines, right=(1, 2, 5, 6, 7)), "", *notes])


def table(names: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> str:
    """Rows in columns, two spaces apart; what a terminal would obey is escaped."""
    texts = [[str(BigrunError(cell)) for cell in row] for row in (names, *rows)]
    widths = [max(len(row[i]) for row in texts) for i in range(len(names))]
    lines = []
    for row in texts:
        cells = [cell.rjust(widths[i]) if i in right else cell.ljust(widths[i]) for i, cell in enumerate(row)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
