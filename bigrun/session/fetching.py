"""Fetching a hub model for a run: its plan first, then its small files, what they show, and then the weights, with a bar."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bigrun.checkpoint.formats.safetensors import read_config
from bigrun.checkpoint.hub.download import fetch
from bigrun.checkpoint.hub.headers import Headers, HubFiles, headers
from bigrun.loading.open import reconciled
from bigrun.model.families.registry import spec_from_config
from bigrun.model.resolve import Model
from bigrun.planning.report import plan_text
from bigrun.progress import reporting
from bigrun.session.findings import Findings, examine
from bigrun.sizes import format_size

if TYPE_CHECKING:
    from bigrun.model.spec import ModelSpec
    from bigrun.planning.plan import Plan

NO_HEADERS = Headers(0, 0, (), {})


@dataclass(frozen=True)
class HubModel:
    """A hub model before its weights are fetched: what its small files and the headers of the others say."""

    spec: ModelSpec
    files: HubFiles
    findings: Findings


def examine_hub(model: Model, commit: str, folder: Path) -> HubModel:
    """What is known of a hub model whose small files are in `folder`. Of a torch .bin, whose headers cannot be read from
    afar, nothing is known of the tensors."""
    repo = str(model.repo)
    config, where = read_config(folder), f"{repo}: config.json"
    spec = spec_from_config(config, model.name, where)
    hub_headers = headers(repo, commit)
    files = HubFiles(repo, config, hub_headers or NO_HEADERS, folder)
    if hub_headers is not None:
        spec = reconciled(files, spec, where)
    return HubModel(spec, files, examine(files, spec, tensors=hub_headers is not None))


def refuse_unsound(findings: Findings, spec: ModelSpec) -> None:
    """CheckpointError where the model cannot be run at all."""
    findings.check()


def fetching(
    model: Model, revision: str | None, plan: Plan | None, shown: bool,
    check: Callable[[Findings, ModelSpec], None] = refuse_unsound,
) -> Path:  # fmt: skip
    """Fetches a hub model and returns its folder. If anything is missing, the plan is shown first; `check` is given the
    findings before the first weight is fetched, and raises where the model is of no use."""

    def begin(nbytes: int) -> None:
        if shown and plan is not None:
            print(plan_text(plan, _width()), end="", file=sys.stderr, flush=True)
        report.note(f"{model.name}: fetching {format_size(nbytes)} from {model.repo} on the hub")

    def before_weights(folder: Path) -> None:
        hub_model = examine_hub(model, folder.name, folder)
        check(hub_model.findings, hub_model.spec)

    total = done = 0
    with reporting(f"fetching {model.name}", shown) as report:
        if model.note:
            report.note(model.note)

        def report_bytes(file: str, so_far: int, whole: int) -> None:
            nonlocal total, done
            if whole != total:
                total = whole
                report.expect(whole)
            report.moved(file, so_far - done)
            done = so_far

        return fetch(model, revision, report_bytes, begin, before_weights)


def _width() -> int:
    """Columns of the terminal that standard error is, or what a plan takes at most."""
    from rich.console import Console

    return Console(stderr=True).width if sys.stderr.isatty() else 110
