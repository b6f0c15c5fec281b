"""What a rig can run: a plan of every model of the catalog, or of those whose names match a pattern, in a line each."""

import os
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from bigrun.devices.here import beyond_this_host
from bigrun.devices.make_rig import make_rig
from bigrun.devices.rig import Rig
from bigrun.errors import CallError
from bigrun.model.catalog.entry import Entry
from bigrun.model.catalog.lookup import ALIASES, ENTRIES
from bigrun.planning.best import best_plan, check
from bigrun.planning.ledger import Ledger
from bigrun.planning.questions import summary
from bigrun.session.options import Options
from bigrun.session.preflight import why_not_runnable
from bigrun.sizes import format_size

EVERY = "all"


@dataclass(frozen=True)
class Surveyed:
    """A model of the catalog on a rig. Speeds are null where it does not fit."""

    model: str  # its name in the catalog
    parameters: int
    fits: bool
    runs: bool | str  # true, or why not
    context_tokens: int  # of each sequence: prompt and answer
    weights_bytes: int | None  # as they are stored; null where the model cannot have these options
    blocks: int
    blocks_on_gpus: int
    decode_tokens_per_s: float | None
    prefill_tokens_per_s: float | None
    request_seconds: float | None


@dataclass(frozen=True)
class Survey:
    """What a rig can run."""

    rig: str  # the devices
    models: tuple[Surveyed, ...]  # those that fit first, the largest of them first
    given: tuple[str, ...]  # what the speeds rest on, as in a plan
    measured: tuple[str, ...]
    learned: tuple[str, ...]
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]  # budgets that this host does not have


def is_pattern(name: str) -> bool:
    """Whether --model names several models of the catalog: all, or with the signs of a pattern; and no file or folder."""
    signs = name.lower() == EVERY or any(sign in name for sign in "*?[")
    return signs and not name.startswith((".", "/", "~")) and not os.path.lexists(name)


def matching(pattern: str | None) -> list[Entry]:
    """The catalog's entries whose name, alias or repository has a text in it, or matches a pattern with * ? or [...]; all for
    None. CallError where none does."""
    if pattern is None or pattern.lower() == EVERY:
        return list(ENTRIES.values())
    names: dict[str, list[str]] = {entry.name: [entry.name, entry.repo.lower()] for entry in ENTRIES.values()}
    for alias, name in ALIASES.items():
        names[name].append(alias)
    found = [ENTRIES[name] for name, known in names.items() if any(matches(each, pattern) for each in known)]
    if not found:
        raise CallError(f"no model of the catalog matches {pattern[:60]!r}; `bigrun models` lists all {len(ENTRIES)}")
    return found


def matches(name: str, pattern: str) -> bool:
    """Whether a name has a text in it, or matches a pattern, whatever the case."""
    name, pattern = name.lower(), pattern.lower()
    return fnmatchcase(name, pattern) if re.search(r"[*?\[]", pattern) else pattern in name


def survey(options: Options) -> Survey:
    """A plan of each model that the options name, without what would mend those that do not fit."""
    rig = make_rig(options.rig)
    rows = sorted((_row(entry, rig, options) for entry in matching(options.model_id)), key=_order)
    others = (f"{d.name} {format_size(d.budget_bytes)}" for d in rig.devices if d.kind != "gpu")
    return Survey(
        rig=", ".join(filter(None, [rig.gpus_text, *others])),
        models=tuple(rows),
        given=rig.said("given"),
        measured=rig.said("measured"),
        learned=rig.said("learned"),
        assumptions=rig.said("assumed"),
        warnings=tuple(f"{each}; a run here is refused" for each in beyond_this_host(options.rig, rig, to_run=False)),
    )


def _row(entry: Entry, rig: Rig, options: Options) -> Surveyed:
    spec = entry.spec()
    chosen = options.for_planning(spec)
    blocks = len(spec.blocks)
    try:
        check(spec, chosen)
    except CallError as error:  # a context, or a part to keep in 16 bits, that this model does not have
        why = f"not with these options: {error}"
        return Surveyed(entry.name, spec.parameters, False, why, chosen.context, None, blocks, 0, None, None, None)
    ledger = Ledger(spec, chosen)
    made = best_plan(ledger, rig)
    return Surveyed(
        model=entry.name,
        parameters=spec.parameters,
        runs=why_not_runnable(made, spec) or True,
        context_tokens=chosen.context,
        weights_bytes=sum(ledger.weights(part.name) for part in spec.parts),
        **summary(made),
    )


def _order(row: Surveyed) -> tuple[bool, int, str]:
    return not row.fits, -row.parameters, row.model
