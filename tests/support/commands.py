"""bigrun's command line, called within the tests' process (quick) or as a process of its own (as users do).

result = run_command("plan", "--model", "opt-6.7b", "--gpus", "24GB")
done = run_process("inspect", folder, env=os.environ | {"COLUMNS": "60"})
ended(result, 2, "--gpus")
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from bigrun.cli.app import main

SCRIPT = Path(sys.executable).with_name("bigrun")
PROGRAM = (str(SCRIPT),) if SCRIPT.exists() else (sys.executable, "-m", "bigrun.cli.app")
Done = subprocess.CompletedProcess[str]


def run_command(*args: str | Path, stdin: str | bytes | None = None, program: Any = main) -> Result:
    """A call in this process. What is printed to a terminal is not seen here, nor what a process ends with."""
    return CliRunner().invoke(program, [str(arg) for arg in args], input=stdin)


def plan_command(*args: str | Path) -> Result:
    return run_command("plan", *args)


def run_process(
    *args: str | bytes | Path, env: Mapping[str, str] | None = None, stdin: str = "", timeout: float = 120
) -> Done:
    """A call as its own process, in this one's environment unless `env` is another."""
    return subprocess.run([*PROGRAM, *args], capture_output=True, text=True, env=env, input=stdin, timeout=timeout)


def run_python(
    code: str, *args: str, env: Mapping[str, str] | None = None, stdin: str = "", timeout: float = 120
) -> Done:
    """Python code as its own process, which imports what the tests import."""
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, capture_output=True, text=True, env=env, input=stdin, timeout=timeout)


def run_benchmark(name: str, *args: str, timeout: float = 900) -> Done:
    """A script of benchmarks/ as its own process."""
    script = Path(__file__).resolve().parents[2] / "benchmarks" / name
    return subprocess.run([sys.executable, str(script), *args], capture_output=True, text=True, timeout=timeout)


def ended(result: Result | Done, status: int, *words: str, lines: int = 1) -> None:
    """The promise of every error: its status, nothing on standard output, and at most `lines` lines that say what is wrong,
    each of `words` among them."""
    said = result.stderr.splitlines()
    assert (exit_status(result), result.stdout) == (status, ""), result.stderr
    assert 1 <= len(said) <= lines, result.stderr
    assert said[-1].startswith("bigrun: "), result.stderr
    assert "Traceback" not in result.stderr, result.stderr
    assert "(a bug" not in result.stderr, result.stderr
    assert all(word in result.stderr for word in words), result.stderr


def exit_status(result: Result | Done) -> int:
    return result.exit_code if isinstance(result, Result) else result.returncode
