"""The commands about files: convert, cache, inspect."""

import json
from pathlib import Path
from typing import Any

import click

from bigrun.cli.help import Command, Commands
from bigrun.cli.options import as_json, debug, head, model, parse, quiet, revision, skip, threads
from bigrun.errors import CallError, CheckpointError

folder = click.Path(path_type=Path)


@click.command(cls=Command)
@model
@click.option("--out", required=True, type=folder, metavar="DIR", help="The folder of the conversion.")
@head
@skip
@revision
@threads
@as_json
@quiet
@debug
def convert(as_json: bool, out: Path, **flags: Any) -> None:
    """Write a model's int8 conversion to a folder, which is a model by itself and is mapped at every start.

    An interrupted conversion goes on where it stopped.
    """
    from bigrun.cli.convert import convert_model, describe

    result = convert_model(parse(flags), out)
    print(json.dumps(result) if as_json else describe(result))


@click.group(cls=Commands)
def cache() -> None:
    """The int8 conversions of a cache folder (--cache DIR of other commands, or a conversion itself)."""


where = click.argument("directory", type=folder, required=False, envvar="BIGRUN_CACHE", metavar="[DIR]")


def _required(directory: Path | None) -> Path:
    if directory is None:
        raise CallError("which cache? give its folder, or set BIGRUN_CACHE")
    return directory


@cache.command("list")
@where
@as_json
@debug
def list_command(directory: Path | None, as_json: bool, debug: bool) -> None:
    """What conversions there are: of what, how large, how complete, when last used."""
    from bigrun.cli.upkeep import describe, survey

    entries = survey(_required(directory))
    print(json.dumps([entry.to_dict() for entry in entries], indent=1) if as_json else describe(entries))


@cache.command()
@where
@as_json
@debug
def verify(directory: Path | None, as_json: bool, debug: bool) -> None:
    """Read every byte and compare it with what was written. Exit status 4 if a file is bad."""
    from bigrun.cli.upkeep import verify_all

    checked, bad = verify_all(_required(directory))
    if as_json:
        print(json.dumps({"checked_files": checked, "bad": bad}, indent=1))
    else:
        print("\n".join([*bad, f"{checked} files checked, {len(bad)} of them bad"]))
    if bad:
        raise CheckpointError(
            f"{directory}: {len(bad)} bad: the next start with the source mends that, or convert again"
        )


@cache.command()
@where
@click.option("--older-than", type=click.IntRange(min=0), metavar="DAYS", help="Also what was not used for so long.")
@click.option("--incomplete", is_flag=True, help="Also conversions that were not finished.")
@click.option("--all", "everything", is_flag=True, help="All conversions.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@as_json
@debug
def prune(directory: Path | None, as_json: bool, debug: bool, **how: Any) -> None:
    """Remove what no start can use: what interrupted writes left, conversions of other versions, and of files that have
    changed since."""
    from bigrun.cli.upkeep import describe_pruned
    from bigrun.cli.upkeep import prune as prune_cache

    gone = prune_cache(_required(directory), **how)
    if as_json:
        print(json.dumps([entry.to_dict() for entry in gone], indent=1))
    else:
        print(describe_pruned(gone, how["dry_run"]))


@click.command("inspect", cls=Command)
@click.argument("path", metavar="PATH")
@revision
@as_json
@debug
def inspect_command(path: str, revision: str | None, as_json: bool, debug: bool) -> None:
    """What a checkpoint holds, from its headers alone: family, parameters, dtypes, files, and what is wrong with it.

    Exit status 4 if something is.
    """
    from bigrun.cli.inspection import describe, inspect

    inspection = inspect(path, revision)
    print(json.dumps(inspection.to_dict(), indent=1) if as_json else describe(inspection))
    if inspection.problems:
        raise CheckpointError(
            f"{path}: cannot be run as it is: {len(inspection.problems)} problem{'s' * (len(inspection.problems) > 1)} found"
        )
