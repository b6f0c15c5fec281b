"""The report of gpu.py: the short table, docs/gpu-results.json and docs/gpu-results.md. Nothing but the standard library."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

EMULATED = "emulated: shows that the script runs, measures nothing"
COLUMNS = ("name", "figure", "unit", "bar", "met", "note")
ABOUT = ("date", "card", "capability", "driver", "torch", "triton", "python", "commit")
CHECKS = "check-"  # measurements whose rows are held against a definition: the short table sums them up
INTRODUCTION = """# Results on real GPUs

bigrun's GPU kernels and engine are developed without a GPU: Triton's interpreter runs them, and they are compiled ahead of
time for each architecture. What only a card can tell, one command measures, in less than eight minutes:

    python3 benchmarks/gpu.py

It needs an NVIDIA GPU of compute capability 8.0 or newer, with 24 GB or more for everything, and 15 GB in the temporary
folder for a random 7B checkpoint (`--skip-7b` leaves that out). It appends the run to
[gpu-results.json](gpu-results.json) and writes this page from there; `--out DIR` puts both elsewhere. A run is a table of
rows:

- **checks**: every kernel at real shapes against its definition. The bar is the tolerance.
- **files, small-model, large-model, hybrid**: random Llamas (0.1b, and one of Llama-2-7B's dimensions) on the GPU, and half on
  the host: logits against float32, memory against the plan, tokens/s beside the same model in torch's bfloat16 and, where it
  is installed, bitsandbytes' LLM.int8().
- **roofs, decode, few-rows, head, prefill, attention**: kernels beside the bandwidth and the matrix products that torch reaches
  in the same run. Medians of device events; weights and caches go through more memory than the L2 cache holds.
- **blocks**: where the time of a block goes, for tuning. No bars.

Bars of speed were set for an H100. A row without a figure says why in its note. `--emulate` runs every line of the script on
a machine without a GPU, and measures nothing.
"""
NOTHING = """
## No run yet

| name | figure | unit | bar | met | note |
|---|---|---|---|---|---|
"""


def shown(figure: float | None) -> str:
    if figure is None:
        return "–"
    return f"{figure:,.0f}" if abs(figure) >= 1000 else f"{figure:.3g}"


def verdict(met: bool | None) -> str:
    return "" if met is None else "yes" if met else "**no**"


def page(runs: Sequence[Mapping[str, Any]]) -> str:
    """docs/gpu-results.md of all runs, the latest first."""
    if not runs:
        return INTRODUCTION + NOTHING
    return INTRODUCTION + "".join(section(run) for run in reversed(runs))


def section(run: Mapping[str, Any]) -> str:
    """One run: what it ran on, and its rows."""
    lines = [f"\n## {run['date']}, {run['card']}\n"]
    if run["card"] == EMULATED:
        lines.append("Nothing here is a measurement.\n")
    lines.append(", ".join(f"{name} {run[name]}" for name in ABOUT[2:]) + "\n")
    lines += [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for row in run["rows"]:
        cells = (row["name"], shown(row["figure"]), row["unit"], row["bar"], verdict(row["met"]), row["note"])
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def append(run: Mapping[str, Any], folder: Path) -> None:
    """The run into the folder's gpu-results.json, in place of what was kept of it before (its date tells), and the page anew.

    ValueError for a file that is no list of runs. Files are written whole or not at all: a run may be killed at any moment.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "gpu-results.json"
    runs = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    if not isinstance(runs, list) or any("rows" not in other for other in runs):
        raise ValueError(f"{file} is no list of runs: move it away")
    if runs and runs[-1].get("date") == run["date"]:
        runs.pop()
    runs.append(dict(run))
    for path, text in (
        (file, json.dumps(runs, indent=1, ensure_ascii=False) + "\n"),
        (folder / "gpu-results.md", page(runs)),
    ):
        new = path.with_name(f".{path.name}")
        new.write_text(text, encoding="utf-8")
        new.replace(path)


def short_table(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What a terminal gets of measurement → rows: figures without a bar first, then a line for all checks of a kind, and
    last every row with a bar of speed, and whatever failed."""
    free = [row for some in rows.values() for row in some if not row["bar"] and row["met"] is None]
    lines = [f"{row['name']:70} {shown(row['figure']):>9} {row['unit']}" for row in free]
    lines += ["", f"{'':70} {'figure':>9} {'unit':16} {'bar':8} met"]
    for name, some in rows.items():
        barred = [row for row in some if row not in free]
        if name.startswith(CHECKS):
            good = sum(row["met"] is True for row in barred)
            lines.append(
                f"{name:70} {f'{good}/{len(barred)}':>9} {'rows':16} {'all':8} {_verdict(good == len(barred))}"
            )
            barred = [row for row in barred if row["met"] is not True]
        lines += [_line(row) for row in barred]
    return "\n".join(lines)


def _line(row: Mapping[str, Any]) -> str:
    note = f"  {row['note']}" if row["figure"] is None else ""
    verdict = _verdict(row["met"])
    return f"{row['name']:70} {shown(row['figure']):>9} {row['unit']:16} {row['bar']:8} {verdict}{note}".rstrip()


def _verdict(met: bool | None) -> str:
    return {None: "", True: "yes", False: "NO"}[met]


def failures(rows: Iterable[Mapping[str, Any]]) -> int:
    return sum(row["note"].startswith("failed") for row in rows)
