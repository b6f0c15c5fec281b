"""The options that commands share, and Options from what was given."""

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from bigrun.cli import complete
from bigrun.errors import CallError
from bigrun.sizes import SMALLEST, with_unit

if TYPE_CHECKING:
    from bigrun.session.options import Options

DEFAULT_MODEL = "smollm2-135m"


def options(*some: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(some):
            function = option(function)
        return function

    return decorate


model = click.option(
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    type=complete.MODEL,
    metavar="ID",
    help="Folder, GGUF file, hub id or catalog name.",
)
revision = click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub model.")
quiet = click.option("--quiet", is_flag=True, help="No progress, no notes.")
debug = click.option("--debug", is_flag=True, help="Show the traceback of an error.")
threads = click.option("--threads", type=int, metavar="N", help="CPU threads. Default: as many as it may use.")
head = click.option(
    "--head",
    default="int8",
    show_default=True,
    type=complete.HEAD,
    metavar="FORM",
    help="Embedding and head: int8 or 16bit.",
)
skip = click.option(
    "--skip", default="", metavar="NAME,...", help="Parts or linears kept in 16 bits: blocks.3, down, ..."
)
rig_options = options(
    model,
    click.option(
        "--gpus", metavar="RIG", help="GPUs: 8x24GB, 2x24GB,1x12GB, 4xRTX3090, none. Default: those that are there."
    ),
    click.option("--cpu", metavar="SIZE", help="Host memory to use. Default: what is available, less a reserve."),
    click.option("--disk", metavar="SIZE", help="Disk space for what fits nowhere else. Default: none."),
    click.option("--max-memory", metavar="JSON", help='Budgets as accelerate has them: {"0": "24GB", "cpu": "64GB"}.'),
    click.option(
        "--rig",
        type=complete.FILE,
        metavar="FILE",
        help="The devices as a YAML or JSON file, with their speeds if you know them.",
    ),
    click.option(
        "--host",
        type=complete.FILE,
        metavar="FILE",
        help="What `bigrun info` measured. Default: this host's own, if any; none.",
    ),
    click.option("--context", type=int, metavar="N", help="Tokens of context. Default: the model's, 2048 at most."),
    click.option(
        "--batch",
        type=int,
        default=1,
        metavar="B",
        help="Sequences at a time. Default: 1; of several prompts all of them, 8 at most.",
    ),
    click.option(
        "--weights",
        default="int8",
        show_default=True,
        type=complete.WEIGHTS,
        metavar="FORM",
        help="int8, 16bit or float32.",
    ),
    head,
    skip,
    click.option(
        "--kv",
        default="16bit",
        show_default=True,
        type=complete.KV,
        metavar="FORM",
        help="The KV cache: 16bit or int8.",
    ),
    click.option("--virtual", is_flag=True, help="The GPUs named are virtual: budgets enforced, computed by the CPU."),
    revision,
    quiet,
    debug,
)
run_options = options(
    click.option(
        "--mode",
        default="auto",
        show_default=True,
        type=complete.MODE,
        metavar="MODE",
        help="exact (w8a16), llm.int8 (w8a8), by which small models lose quality, or auto.",
    ),
    click.option(
        "--kernels",
        default="auto",
        show_default=True,
        type=complete.KERNELS,
        metavar="WHICH",
        help="On GPUs: triton, or reference (torch alone).",
    ),
    click.option("--threshold", type=float, default=6.0, show_default=True, help="Outliers of llm.int8; 0: none."),
    threads,
    click.option(
        "--cache",
        type=complete.FILE,
        metavar="DIR",
        help="Keep int8 conversions here: what is there is mapped, the rest written. Or BIGRUN_CACHE.",
    ),
)
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")


def parse(values: dict[str, Any]) -> "Options":
    """Options from the values of a command's flags, each under the name of its parameter in Python."""
    from bigrun.session.options import Options  # which takes its time

    values = dict(values)
    values.pop("debug", None)
    values["progress"] = not values.pop("quiet", False)
    values["skip"] = tuple(name.strip() for name in values.get("skip", "").split(",") if name.strip())
    if values.get("max_memory") is not None:
        values["max_memory"] = _max_memory(values["max_memory"])
    weights = values.get("weights", "int8")
    if values.get("plan") is not None:
        from bigrun.planning.plan import Plan

        values["plan"] = Plan.load(values["plan"])
        weights = values["plan"].weights
        if values["model"] == DEFAULT_MODEL:
            values["model"] = None  # the plan names its model
    if "cache" in values and values["cache"] is None and weights == "int8":  # a cache keeps nothing else
        values["cache"] = os.environ.get("BIGRUN_CACHE") or None
    return Options.of(**values)


def _max_memory(text: str) -> dict[str, Any]:
    form = 'write {"0": "24GB", "cpu": "64GB"}'
    try:
        budgets = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CallError(f"--max-memory: not JSON; {form}") from error
    if not isinstance(budgets, dict):
        raise CallError(f"--max-memory: not an object; {form}")
    for name, size in budgets.items():
        if type(size) is int and 0 < size < SMALLEST:
            what = f"--max-memory {name[:40]!r}"
            raise CallError(f'{what}: {size} lacks a unit; write "{with_unit(size)}"')
    return budgets
