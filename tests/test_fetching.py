"""Running a hub model from nothing: the plan first, then the files that it needs, then the tokens; and progress of it all."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bigrun.progress
from bigrun.progress import QUIET, Report, reporting
from support.checkpoints import llama, state
from support.commands import Done, run_process, run_python
from support.hub import Answers, Hub, environment

RIG = ("--gpus", "none", "--threads", "1")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    home = tmp_path_factory.mktemp("models")
    llama(home / "model", tokenizer=True, max_shard_size="60KB")
    llama(home / "bins", tokenizer=True)
    torch.save(state(home / "bins"), home / "bins" / "pytorch_model.bin")
    (home / "bins" / "model.safetensors").unlink()
    (home / "model" / "pytorch_model.bin").write_bytes(b"another variant")
    return home


@pytest.fixture
def hub(models: Path) -> Iterator[Hub]:
    server = Hub(Answers({("some/model", "main"): models / "model", ("some/bins", "main"): models / "bins"}))
    yield server
    server.close()


def generate(hub: Hub, cache: Path, *args: str, cpu: str = "1GB", **more: str) -> Done:
    asked = ("--prompt", "the dog", "--max-new-tokens", "3")
    return run_process("generate", *RIG, "--cpu", cpu, *asked, *args, env=environment(hub, cache, **more))


def test_a_plan_is_shown_then_what_it_needs_is_fetched_then_it_runs(hub: Hub, tmp_path: Path) -> None:
    done = generate(hub, tmp_path, "--model", "some/model", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["token_ids"]) == 3
    plan, fetching = done.stderr.index("predicted:"), done.stderr.index("fetching")
    assert plan < fetching
    sent = hub.sent()
    assert "pytorch_model.bin" not in sent
    assert any(name.endswith(".safetensors") for name in sent)
    hub.log.clear()
    again = generate(hub, tmp_path, "--model", "some/model", "--json", HF_HUB_OFFLINE="1")
    assert json.loads(again.stdout)["token_ids"] == json.loads(done.stdout)["token_ids"]
    assert again.stderr == "", "nothing is missing, so there is nothing to say"
    assert not hub.log


# A clock that a download moves on by a thousand seconds, and the hub's configuration by ten thousand.
CLOCKED = """
import json, sys, time
real, passed = time.perf_counter, 0
time.perf_counter = lambda: real() + passed
from bigrun import Runner
from bigrun.loading import open as opening
from bigrun.session import fetching, steps

def slow(what, seconds):
    def call(*args):
        global passed
        result = what(*args)
        passed += seconds
        return result
    return call

fetching.fetching = slow(fetching.fetching, 1000)
opening.model_spec = slow(opening.model_spec, 10000)
with Runner(sys.argv[1], gpus="none", cpu="1GB", progress=False) as runner:
    print(json.dumps([runner.fetch_seconds, runner.load_seconds]))
"""


def test_a_runner_knows_what_of_its_load_the_hub_took(hub: Hub, tmp_path: Path, models: Path) -> None:
    env = environment(hub, tmp_path)
    done = run_python(CLOCKED, "some/model", env=env)
    assert done.returncode == 0, done.stderr
    fetched, whole = json.loads(done.stdout)
    assert 11000 <= fetched < 11500
    assert 0 < whole - fetched < 500
    done = run_python(CLOCKED, str(models / "model"), env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0] == 0


def test_what_does_not_fit_is_not_fetched(hub: Hub, tmp_path: Path) -> None:
    done = generate(hub, tmp_path, "--model", "some/model", cpu="1KB")
    assert done.returncode == 3, done.stderr
    assert "does not fit" in done.stderr
    assert not list(tmp_path.rglob("*.safetensors"))
    assert all(request.range for request in hub.log if request.path.endswith(".safetensors")), "headers alone"


@pytest.mark.long
def test_a_repository_with_torch_s_files_alone_runs(hub: Hub, tmp_path: Path, models: Path) -> None:
    done = generate(hub, tmp_path, "--model", "some/bins", "--json", "--quiet")
    here = generate(hub, tmp_path, "--model", str(models / "bins"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["token_ids"] == json.loads(here.stdout)["token_ids"]
    assert "predicted:" not in done.stderr


@pytest.mark.long
def test_a_conversion_of_a_hub_model_is_known_by_its_etags(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "int8"
    first = generate(hub, tmp_path, "--model", "some/model", "--json", "--cache", str(cache))
    assert first.returncode == 0, first.stderr
    (folder,) = cache.iterdir()
    manifest = json.loads((folder / "bigrun.json").read_text())
    assert manifest["source"] == "some/model"
    assert all(identity.startswith("etag ") for identity in manifest["source_files"].values())
    before = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.safetensors")}
    again = generate(hub, tmp_path, "--model", "some/model", "--json", "--cache", str(cache))
    assert json.loads(again.stdout)["token_ids"] == json.loads(first.stdout)["token_ids"]
    assert {file.name: file.stat().st_mtime_ns for file in folder.glob("*.safetensors")} == before


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_with_bytes_and_what_is_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    reports: list[Report] = []

    def interrupted() -> None:
        with reporting("a-model", True) as report:
            reports.append(report)
            report.expect(3_000_000)
            report.moved("blocks.1 → cpu", 1_500_000)
            report.note("something \x1b[31mto know")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    shown = terminal.getvalue()
    assert "blocks.1 → cpu" in shown
    assert "1.5/3.0 MB" in shown
    assert "something \\x1b[31mto know" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is back"
    assert reports[0].notes == ["something \x1b[31mto know"]


@pytest.mark.parametrize("shown", [True, False])
def test_elsewhere_there_is_no_bar(shown: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with reporting("a-model", shown) as report:
        report.expect(10)
        report.moved("embed", 10)
        report.note("a note")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "bigrun: a note\n" if shown else "")
    assert report.notes == ["a note"]


def test_the_quiet_report_is_nobody_s() -> None:
    assert type(QUIET) is Report
    assert bigrun.progress.QUIET.notes == []
