"""Variables of the environment, each with the commands and options that it could meet: one that does not apply is ignored, an
explicit option that does not apply is refused by its name, and an explicit option comes before its variable."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from bigrun.cli import app, running
from bigrun.cli.encoding import encodable_streams, readable_json
from bigrun.session.options import Options
from support.commands import PROGRAM, ended, run_command

RIG = ("--gpus", "none", "--cpu", "1GB")


@pytest.fixture(scope="module")
def home(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a text, a conversion of the model, and plans of it in each form."""
    folder = tmp_path_factory.mktemp("environment")
    shutil.copytree(tiny, folder / "llama")
    (folder / "text").write_text("the quick brown fox jumps over the lazy dog; then the other dogs slept there")
    assert run_command("convert", "--model", folder / "llama", "--out", folder / "int8", "--quiet").exit_code == 0
    for weights in ("int8", "float32"):
        made = run_command("plan", "--model", folder / "llama", *RIG, "--weights", weights, "--json")
        (folder / f"{weights}.json").write_text(made.stdout)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that BIGRUN_CACHE names, which is not there yet."""
    monkeypatch.setenv("BIGRUN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """bench measures how fast this host reads, which takes a second."""
    monkeypatch.setattr("bigrun.devices.measure.read_bandwidth", lambda: 1e10)


def command(home: Path, name: str) -> tuple[str | Path, ...]:
    model = ("--model", home / "llama", *RIG, "--quiet")
    commands: dict[str, tuple[str | Path, ...]] = {
        "generate": ("generate", *model, "--prompt", "the", "--max-new-tokens", "2"),
        "chat": ("chat", *model),
        "bench": ("bench", *model, "--prompt-tokens", "4", "--new-tokens", "2"),
        "eval": ("eval", "perplexity", *model, "--text", home / "text", "--window", "16"),
        "eval --against": (
            "eval",
            "perplexity",
            *model,
            "--text",
            home / "text",
            "--window",
            "16",
            "--against",
            "16bit",
        ),
    }
    return commands[name]


# BIGRUN_CACHE


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("name", ["generate", "bench", "eval", "eval --against"])
def test_a_run_in_int8_keeps_its_conversion_in_the_cache_of_the_environment(home: Path, cache: Path, name: str) -> None:
    result = run_command(*command(home, name))
    assert result.exit_code == 0, result.stderr
    (conversion,) = cache.iterdir()
    assert (conversion / "bigrun.json").exists()


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("generate", "float32"),
        ("generate", "16bit"),
        ("bench", "float32"),
        ("eval", "16bit"),
        ("eval --against", "16bit"),
    ],
)
def test_a_run_in_other_forms_takes_no_notice_of_it(home: Path, cache: Path, name: str, weights: str) -> None:
    result = run_command(*command(home, name), "--weights", weights)
    assert (result.exit_code, result.stderr) == (0, "")
    assert not cache.exists()


@pytest.mark.parametrize("weights", ["float32", "16bit"])
@pytest.mark.parametrize("name", ["generate", "eval --against"])
def test_a_cache_that_is_asked_for_with_other_forms_is_refused_by_name(
    home: Path, tmp_path: Path, name: str, weights: str
) -> None:
    result = run_command(*command(home, name), "--weights", weights, "--cache", tmp_path / "c")
    ended(result, 2, f"--weights {weights}", "cache")
    assert not (tmp_path / "c").exists()


def test_an_evaluation_with_a_cache_compares_with_float32_that_does_not_use_it(home: Path, tmp_path: Path) -> None:
    plain = run_command(*command(home, "eval --against"), "--json")
    cached = [run_command(*command(home, "eval --against"), "--json", "--cache", tmp_path / "c") for _ in range(2)]
    for result in cached:  # the second maps what the first kept
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout) == json.loads(plain.stdout)


@pytest.mark.parametrize(("weights", "kept"), [("int8", True), ("float32", False)])
def test_with_a_plan_the_form_is_the_plans(home: Path, cache: Path, weights: str, kept: bool) -> None:
    result = run_command(
        "generate", "--plan", home / f"{weights}.json", "--prompt", "the", "--max-new-tokens", "2", "--quiet"
    )
    assert (result.exit_code, result.stderr) == (0, "")
    assert cache.exists() == kept


def test_a_conversion_that_is_the_model_is_its_own_cache(home: Path, cache: Path) -> None:
    result = run_command(
        "generate", "--model", home / "int8", *RIG, "--prompt", "the", "--max-new-tokens", "2", "--quiet"
    )
    assert (result.exit_code, result.stderr) == (0, "")
    assert not cache.exists()


def test_the_option_comes_before_the_variable_and_an_empty_variable_is_none(
    home: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_command(*command(home, "generate"), "--cache", tmp_path / "mine").exit_code == 0
    assert (cache.exists(), len(list((tmp_path / "mine").iterdir()))) == (False, 1)
    monkeypatch.setenv("BIGRUN_CACHE", "")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert run_command(*command(home, "generate")).exit_code == 0
    assert sorted(tmp_path.iterdir()) == before


def test_commands_that_take_no_cache_do_not_look_for_one(home: Path, cache: Path, tmp_path: Path) -> None:
    cache.write_text("not a folder")  # which a run would refuse
    ended(run_command(*command(home, "generate")), 2, str(cache))
    for args in (
        ("plan", "--model", home / "llama", *RIG),
        ("inspect", home / "llama"),
        ("convert", "--model", home / "llama", "--out", tmp_path / "out", "--quiet"),
        ("cache", "list", home / "int8"),  # its own argument comes first
    ):
        result = run_command(*args)
        assert (result.exit_code, result.stderr) == (0, ""), args
    ended(run_command("cache", "list"), 2, str(cache))


@pytest.mark.parametrize("mode", ["exact", "llm.int8", "w8a16"])
def test_a_mode_changes_nothing_about_the_cache(
    home: Path, cache: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asked_for(monkeypatch, *command(home, "generate"), "--mode", mode)
    assert [options.cache for options in asked] == [str(cache)]


# What reaches a Runner, without one


def asked_for(monkeypatch: pytest.MonkeyPatch, *args: str | Path) -> list[Options]:
    """The options of the Runners that a command would load."""
    asked: list[Options] = []

    def refuse(options: Options, *_: object, **__: object) -> Any:
        asked.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "_runner", refuse)
    monkeypatch.setattr(running, "open_runner", refuse)
    assert run_command(*args).exit_code == 130
    return asked


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("command_name", ["generate", "chat", "bench", "eval"])
def test_no_other_variable_changes_the_options_of_a_run(
    home: Path, command_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = asked_for(monkeypatch, *command(home, command_name))
    for name in ("MODEL", "GPUS", "CPU", "HOST", "ISA", "GPU", "THREADS", "MODE", "WEIGHTS", "CONTEXT", "REVISION"):
        monkeypatch.setenv(f"BIGRUN_{name}", "44")
    assert asked_for(monkeypatch, *command(home, command_name)) == plain


# BIGRUN_ISA, BIGRUN_GPU, BIGRUN_HOST


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("name", ["generate", "chat", "bench", "eval"])
def test_an_instruction_set_that_is_none_is_a_wrong_call_of_what_computes(
    home: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIGRUN_ISA", "avx9")
    ended(run_command(*command(home, name)), 2, "BIGRUN_ISA='avx9'", "portable")


def test_info_refuses_it_before_it_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGRUN_ISA", "avx9")
    monkeypatch.setattr("bigrun.measure.info.gather", lambda *_: pytest.fail("it was measured"))
    ended(run_command("info", "--host", tmp_path / "host.json"), 2, "BIGRUN_ISA='avx9'")


NOT_READ = {
    "BIGRUN_ISA": "avx9", "BIGRUN_GPU": "emulate", "CUDA_VISIBLE_DEVICES": "7", "HF_HUB_OFFLINE": "1", "HF_HOME": "/no/where",
    "NUMBA_CACHE_DIR": "/no/where", "NUMBA_NUM_THREADS": "0", "BIGRUN_CACHE": "/dev/null", "NO_COLOR": "1", "TERM": "dumb",
}  # fmt: skip


@pytest.mark.parametrize("shown", [(), ("--json",)], ids=["text", "json"])
def test_plans_and_inspections_of_what_is_on_this_disk_read_none_of_these(
    home: Path, shown: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = (("plan", "--model", home / "llama", "--gpus", "1x24GB", "--cpu", "1GB"), ("inspect", home / "llama"))
    before = [answer(run_command(*args, *shown)) for args in commands]
    for name, value in NOT_READ.items():
        monkeypatch.setenv(name, value)
    assert [answer(run_command(*args, *shown)) for args in commands] == before


def answer(result: Result) -> tuple[int, str, str]:
    return result.exit_code, result.stdout, result.stderr


def test_emulated_gpus_are_of_no_concern_to_a_run_without_gpus_and_to_virtual_ones(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    virtual = ("--gpus", "1x100MB", "--virtual")
    calls = [tuple("--quiet" if a in RIG else a for a in command(home, "generate")), command(home, "generate")]
    args = [(*calls[0], *virtual, "--cpu", "1GB"), calls[1]]
    before = [answer(run_command(*each)) for each in args]
    assert {status for status, _, _ in before} == {0}
    monkeypatch.setenv("BIGRUN_GPU", "emulate")
    assert [answer(run_command(*each)) for each in args] == before


@pytest.mark.parametrize("value", ["1", "true", "", "Emulate"])
def test_only_the_word_emulate_emulates(home: Path, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGRUN_GPU", value)
    args = ("generate", "--model", home / "llama", "--gpus", "1x24GB", "--cpu", "1GB", "--prompt", "the", "--quiet")
    ended(run_command(*args), 2, "cuda:0", "--virtual")


@pytest.fixture
def host_file(tmp_path: Path) -> Callable[[str, float], Path]:
    """Host files of this machine that differ in how fast it reads."""
    from bigrun.devices.host_file import Host, machine, write

    def make(name: str, read: float) -> Path:
        write(Host(*machine(), "avx2", "2026-01-31", read, 1e12, 1e11), tmp_path / name)
        return tmp_path / name

    return make


def test_a_host_file_that_is_named_comes_before_that_of_the_environment(
    home: Path, host_file: Callable[[str, float], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, fast = host_file("slow.json", 1e9), host_file("fast.json", 100e9)

    def speed(*host: str | Path) -> float:
        made = json.loads(run_command("plan", "--model", home / "llama", *RIG, *host, "--json").stdout)
        return float(made["predicted"]["decode_tokens_per_s"])

    plain = speed()
    monkeypatch.setenv("BIGRUN_HOST", str(slow))
    assert speed() < speed("--host", fast)
    assert speed("--host", "none") == plain
    slow.write_text("{")  # the default is passed over with a note, a named one is refused
    assert speed() == plain
    ended(run_command("plan", "--model", home / "llama", *RIG, "--host", slow, "--json"), 2, str(slow))


# No home: a user id without an entry, as containers give


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder at hand of a user who has no home; nothing is to be left in it."""
    import pwd

    from huggingface_hub import constants

    def unknown(_: int) -> None:
        raise KeyError("no such user")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "BIGRUN_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "~/.cache/huggingface/hub")  # as it is found to be then
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_without_a_home_plans_and_runs_go_on(home: Path, homeless: Path) -> None:
    assert run_command("plan", "--model", home / "llama", *RIG).exit_code == 0
    assert run_command(*command(home, "generate")).exit_code == 0
    assert not list(homeless.iterdir())


def test_without_a_home_a_hub_model_and_a_cache_there_are_refused_by_the_variable_or_the_option(
    home: Path, homeless: Path
) -> None:
    for args in (("plan",), ("generate", "-p", "x", "--quiet")):
        ended(run_command(*args, "--model", "nobody/nothing", *RIG), 1, "HF_HOME", "no home")
    ended(run_command(*command(home, "generate"), "--cache", "~/int8"), 2, "--cache ~/int8")
    assert not list(homeless.iterdir())


def test_without_a_home_info_measures_and_says_that_it_keeps_nothing(
    homeless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("read_rates", "multiply_rates", "wide_rates", "file_rates"):
        monkeypatch.setattr(f"bigrun.devices.measure.{name}", lambda *_: [1e9])
    result = run_command("info", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["host_file"] == "not kept: this user has no home: give --host FILE"
    ended(run_command("bench", "--learn", *RIG), 2, "--learn", "no home", "--host")
    assert not list(homeless.iterdir())


# PYTHONIOENCODING, and locales that are not UTF-8


def encoded(encoding: str, *args: str | Path) -> tuple[int, str, str]:
    """(status, standard output, standard error) of a process whose outputs have this encoding."""
    env = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([*PROGRAM, *args], capture_output=True, env=env, stdin=subprocess.DEVNULL, timeout=60)
    name = encoding.partition(":")[0]
    return done.returncode, done.stdout.decode(name), done.stderr.decode(name)


@pytest.mark.parametrize(("encoding", "free"), [("latin-1", "·"), ("ascii", "."), ("cp1252", "·")])
def test_bars_have_stand_ins_where_an_encoding_lacks_them(encoding: str, free: str) -> None:
    status, out, err = encoded(encoding, "plan", "--model", "bloom-176b", "--gpus", "8x24GB", "--cpu", "30GB")
    assert (status, err) == (0, "")
    lines = {line.split()[0]: line.split()[1] for line in out.splitlines() if line.startswith(("cuda:3", "cpu  "))}
    assert lines == {"cuda:3": "#" * 25 + "=+-", "cpu": "-" + free * 27}
    assert "# weights  = KV cache  + workspace  - reserve" in out


def test_how_the_user_chose_to_encode_is_left_so() -> None:
    status, out, _ = encoded("ascii:ignore", "plan", "--model", "bloom-560m", "--gpus", "none", "--cpu", "1GB")
    assert status == 0
    assert "#" not in out


def test_json_is_escaped_and_text_replaced_where_the_answer_cannot_be_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    value = {"text": "é漢🙂\x1b"}
    for encoding, shown in (("ascii", r"\u00e9\u6f22\ud83d\ude42"), ("latin-1", r"\u00e9\u6f22"), ("utf-8", "é漢🙂")):
        output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", output)
        encodable_streams()
        made = readable_json(value)
        print(made, value["text"][:3], flush=True)
        written = output.buffer.getvalue().decode(encoding)
        assert shown in made
        assert json.loads(made) == value
        assert "\x1b" not in made
        assert written.endswith({"ascii": "???\n", "latin-1": "é??\n", "utf-8": "é漢🙂\n"}[encoding])


def test_bytes_that_are_no_letters_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", output)
    encodable_streams()
    print("a\udcffb", flush=True)
    assert output.buffer.getvalue() == b"a\\udcffb\n"


# The terminal's


@pytest.mark.parametrize(
    "variables", [{"COLUMNS": "3"}, {"COLUMNS": "0"}, {"COLUMNS": "x"}, {"FORCE_COLOR": "1"}], ids=str
)
def test_json_is_the_same_whatever_the_terminal_is(
    home: Path, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("plan", "--model", home / "llama", *RIG)
    before = run_command(*args, "--json").stdout
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run_command(*args, "--json").stdout == before
    assert run_command(*args).exit_code == 0, "and the text is printed"


COLOUR = re.compile(r"\x1b\[([0-9]+;)*([349][0-7])[;m]")


@pytest.mark.parametrize("quieted", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_without_colour_and_on_a_dumb_terminal_nothing_is_coloured(
    home: Path, quieted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("plan", "--model", home / "llama", *RIG)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if it were a terminal
    monkeypatch.setenv("TERM", "xterm-256color")
    assert COLOUR.search(run_command(*args).stdout)
    for name, value in quieted.items():
        monkeypatch.setenv(name, value)
    assert not COLOUR.search(run_command(*args).stdout)
