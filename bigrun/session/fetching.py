"""Fetching a hub model for a run: its plan first, then the files, with a bar."""

import sys
from pathlib import Path

from bigrun.checkpoint.hub.download import fetch
from bigrun.model.resolve import Model
from bigrun.planning.plan import Plan
from bigrun.planning.report import plan_text
from bigrun.progress import reporting
from bigrun.sizes import format_size


def fetching(model: Model, revision: str | None, plan: Plan | None, shown: bool) -> Path:
    """Fetches a hub model and returns its folder. If anything is missing, the plan is shown first, and how much that is."""

    def begin(nbytes: int) -> None:
        if shown and plan is not None:
            print(plan_text(plan, _width()), end="", file=sys.stderr, flush=True)
        report.note(f"{model.name}: fetching {format_size(nbytes)} from {model.repo} on the hub")

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

        return fetch(model, revision, report_bytes, begin)


def _width() -> int:
    """Columns of the terminal that standard error is, or what a plan takes at most."""
    from rich.console import Console

    return Console(stderr=True).width if sys.stderr.isatty() else 110
