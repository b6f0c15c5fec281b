"""A call that cannot be done ends in its promised exit status, with nothing on standard output and one or two lines on
standard error that name what is wrong: 2 a wrong call, 3 it does not fit, 4 the checkpoint is bad, 1 anything else."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from support.checkpoints import edit_config, gguf_twin, llama, opt, rewrite, state
from support.commands import ended, run_command, run_process

RIG = ("--gpus", "none", "--cpu", "1GB")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sound models (llama, opt, bare: no tokenizer) and what is none."""
    home = tmp_path_factory.mktemp("models")
    llama(home / "llama", tokenizer=True)
    opt(home / "opt", tokenizer=True)
    llama(home / "bare")
    (home / "empty").mkdir()
    gguf_twin(home / "llama", home / "empty" / "a.gguf")
    (home / "text").write_text("text")
    return home


def call(args: tuple[str, ...], expected: int, *words: str, stdin: str | bytes | None = None) -> None:
    ended(run_command(*args, stdin=stdin), expected, *words, lines=2)


MODELS = {
    "no such name": ("nosuch", "nosuch"), "a name mistyped": ("smollm2-135", "smollm2-135m"), "no name": ("", "--model"),
    "a path that is not there": ("/no/such", "/no/such"), "a relative one": ("./nosuch", "./nosuch"),
    "a deep one": ("a/b/c", "a/b/c"), "no such .gguf": ("{home}/no.gguf", "no.gguf"), "a text file": ("{home}/text", "text"),
    "a folder without config.json": ("{home}/empty", "config.json", "a.gguf"), "a path below a file": ("{home}/text/x", "text"),
    "a name too long": ("a" * 300, "--model"),
    "one of 4,097 characters": ("b" * 4097, "too long for a name"), "a path too long": ("/" + "a" * 5000, "--model"),
    "a user that is not there": ("~nosuchuser/model", "~nosuchuser"), "a NUL": ("a\0b", "NUL"),
    "a name of three lines": ("a\nb\nc", "--model"), "a path of three lines": ("/a\nb\nc", "--model"),
    "no hub id: two dots": ("a..b/c", "a..b/c"), "no hub id: two dashes": ("a--b/c", "a--b/c"),
    "no hub id: .git": ("a/b.git", "a/b.git"), "no hub id: a dot at its end": ("a/b.", "a/b."),
}  # fmt: skip


@pytest.mark.parametrize("command", ["plan", "generate"])
@pytest.mark.parametrize("case", MODELS.values(), ids=MODELS.keys())
def test_a_model_that_is_none(models: Path, case: tuple[str, ...], command: str) -> None:
    name, *words = case
    prompt = () if command == "plan" else ("--prompt", "x", "--quiet")
    call((command, "--model", name.format(home=models), *RIG, *prompt), 2, *words)


RIGS = [
    *["8x", "x24GB", "8xFOO", "-1x24GB", "0x24GB", "2000x24GB", "8x0GB", "8x24XB", "8x24GB,,", "1e3GB", "24GB 12GB"],
    *["٣x24GB", "8x24GB;", "1x99999999999GB", "8;\nx\n24GB"],
]


@pytest.mark.parametrize("rig", RIGS)
def test_a_rig_that_makes_no_sense(rig: str) -> None:
    call(("plan", "--model", "opt-6.7b", "--gpus", rig, "--cpu", "1GB"), 2, "--gpus")


@pytest.mark.parametrize("flag", ["--cpu", "--disk"])
@pytest.mark.parametrize("size", ["lots", "-1GB", "", "nan", "1e3GB", "9" * 400 + "GB", "1,5GB", "٣GB"])
def test_a_size_that_makes_no_sense(flag: str, size: str) -> None:
    call(("plan", "--model", "opt-6.7b", "--gpus", "none", flag, size), 2, flag)


@pytest.mark.parametrize("flag", ["--cpu", "--disk"])
def test_a_number_alone_lacks_a_unit(flag: str) -> None:
    call(("plan", "--model", "opt-6.7b", "--gpus", "none", flag, "12"), 2, f"{flag}: 12 lacks a unit; write 12GB")
    made = run_command("plan", "--model", "opt-6.7b", "--gpus", "none", flag, "0", "--json")
    assert json.loads(made.stdout)["devices"][-1]["budget_bytes"] == 0


BUDGETS = {
    "not JSON": "{", "an array": "[]", "null": "null", "a number": "1", "text": '"24GB"', "deep": "[" * 100_000,
    "a device unknown": '{"gpu": "1GB"}', "a negative device": '{"-1": "1GB"}', "GPU 9999": '{"9999": "1GB"}',
    "a fraction": '{"cpu": 1e9}', "NaN": '{"cpu": NaN}', "true": '{"cpu": true}', "a null": '{"cpu": null}',
    "below zero": '{"cpu": -5}', "400 digits": '{"cpu": %s}' % ("9" * 400), "no size": '{"cpu": "big"}',
    "a list of sizes": '{"cpu": ["1GB"]}',
}  # fmt: skip


@pytest.mark.parametrize("budgets", BUDGETS.values(), ids=BUDGETS.keys())
def test_a_max_memory_that_is_none(budgets: str) -> None:
    call(("plan", "--model", "opt-6.7b", "--max-memory", budgets), 2, "--max-memory")


OPTIONS = {
    "--context": ["0", "-1", "x", "1e3", str(2**29), "9" * 400], "--batch": ["0", "-1", "1.5", "99999999"],
    "--mode": ["fast", "", "EXACT"], "--threshold": ["nan", "inf", "-1", "x"], "--threads": ["0", "-4", "all"],
    "--weights": ["int4", "", "float16"], "--head": ["int4", "float32"], "--kv": ["int4", "8bit"],
    "--skip": ["nosuch", "blocks.9", "blocks.0.nosuch", "down,nosuch"], "--max-new-tokens": ["0", "-3", "many"],
    "--temperature": ["-1", "nan", "inf"], "--top-p": ["0", "1.5", "nan"], "--top-k": ["-1"], "--seed": ["-1", str(2**64)],
    "--max-memory": ['{"cpu": "1GB"}'],
}  # fmt: skip


@pytest.mark.parametrize(("flag", "value"), [(flag, value) for flag, values in OPTIONS.items() for value in values])
def test_an_option_out_of_range_is_named(models: Path, flag: str, value: str) -> None:
    name = flag.strip("-")
    call(
        ("generate", "--model", str(models / "llama"), *RIG, "--prompt", "x", "--quiet", flag, value),
        2,
        name if name not in ("top-p", "top-k") else name.replace("-", "_"),
    )


CALLS = {
    "an unknown flag": (("plan", "--nosuch"), "--nosuch"), "an unknown command": (("nosuch",), "nosuch"),
    "an argument too many": (("plan", "opt-6.7b"), "opt-6.7b"), "--virtual without GPUs": (("plan", "--virtual"), "--gpus"),
    "a flag without its value": (("plan", "--cpu"), "--cpu"),
    "a context beyond learned positions": (("plan", "--model", "opt-6.7b", "--context", "4096", *RIG), "--context 4096"),
    "bench of no tokens": (("bench", "--prompt-tokens", "0", *RIG), "--prompt-tokens"),
    "bench with a context": (("bench", "--context", "64", *RIG), "--context"),
    "a name for planning alone": (("generate", "--model", "opt-175b", "--prompt", "x", *RIG), "opt-175b"),
    "a GPU that is real": (("generate", "--gpus", "1x24GB", "--cpu", "1GB", "--prompt", "x"), "--virtual"),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS.values(), ids=CALLS.keys())
def test_a_wrong_call(case: tuple[tuple[str, ...], str]) -> None:
    call(case[0], 2, case[1])


def test_no_command_shows_the_help_and_not_an_error_of_many_lines() -> None:
    result = run_command()
    assert result.exit_code in (0, 2)
    assert "--help" in result.output
    assert not result.stderr.startswith("bigrun: Usage")


PROMPTS = {
    "empty": ("", "empty"), "spaces": (" \n\t ", "empty"), "longer than the context": ("dog " * 200, "--context"),
    "half a surrogate pair": ("\ud800", "Unicode"),
}  # fmt: skip


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
def test_a_prompt_that_cannot_be_continued(models: Path, prompt: tuple[str, str]) -> None:
    text, word = prompt
    generate = ("generate", "--model", str(models / "llama"), *RIG, "--quiet")
    call((*generate, "--prompt", text), 2, word)
    if "\ud800" not in text:
        call(generate, 2, word, stdin=text)


WRONG_INPUT: dict[str, tuple[bytes, str]] = {
    "not UTF-8": (b"caf\xe9 x", "byte 3 is 0xe9"), "after a mark": (b"\xef\xbb\xbfab\xff", "byte 5 is 0xff"),
    "cut in a character": ("né".encode()[:2], "byte 1 is 0xc3"), "UTF-16": ("text".encode("utf-16"), "UTF-16"),
    "a newline alone": (b"\r\n", "empty"), "a mark alone": (b"\xef\xbb\xbf\n", "empty"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_INPUT.values(), ids=WRONG_INPUT.keys())
def test_input_that_is_no_text_is_refused_from_standard_input_and_from_a_file(
    models: Path, tmp_path: Path, case: tuple[bytes, str]
) -> None:
    data, words = case
    generate = ("generate", "--model", str(models / "llama"), *RIG, "--quiet")
    (tmp_path / "p").write_bytes(data)
    call(generate, 2, words, stdin=data)
    call((*generate, "--prompt-file", "-"), 2, words, stdin=data)
    call((*generate, "--prompt-file", str(tmp_path / "p")), 2, words)


PROMPT_FILES = {
    "not there": ("{home}/no", "No such file"), "a folder": ("{home}/empty", "directory"),
    "a device without an end": ("/dev/zero", "64 MiB"), "a NUL": ("a\0b", "null byte"),
    "no such user": ("~nosuchuser/p", "nosuchuser"), "of no name": ("", "directory"), "a long name": ("a" * 300, "too long"),
}  # fmt: skip


@pytest.mark.parametrize("case", PROMPT_FILES.values(), ids=PROMPT_FILES.keys())
def test_a_prompt_file_that_cannot_be_read(models: Path, case: tuple[str, str]) -> None:
    name, words = case
    call(("generate", *RIG, "--prompt-file", name.format(home=models)), 2, "--prompt-file", words)


def test_a_prompt_and_a_file_of_one_contradict_each_other(models: Path) -> None:
    call(("generate", *RIG, "-p", "x", "--prompt-file", str(models / "text")), 2, "--prompt and --prompt-file")


def test_a_folder_without_a_tokenizer_is_a_bad_checkpoint_for_text(models: Path) -> None:
    call(("generate", "--model", str(models / "bare"), *RIG, "--prompt", "x", "--quiet"), 4, "tokenizer.json")


def test_too_little_memory_is_status_3(models: Path) -> None:
    small = ("--model", str(models / "llama"), "--gpus", "none", "--cpu", "100KB")
    call(("generate", *small, "--prompt", "x"), 3, "does not fit", "--cpu")
    call(("generate", "--model", str(models / "llama"), *RIG, "--context", str(2**28), "--prompt", "x"), 2, "--context")
    made = run_command("plan", *small, "--json")  # a plan that does not fit is what `plan` prints
    assert (made.exit_code, json.loads(made.stdout)["fits"]) == (3, False)
    assert len(made.stderr.splitlines()) == 1
    assert "--cpu" in made.stderr, "what is missing is said on standard error as well"


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "an unknown architecture": (lambda f: edit_config(f, architectures=["FooForCausalLM"]), "FooForCausalLM"),
    "no architecture": (lambda f: edit_config(f, architectures=None, model_type=None), "architectures"),
    "config.json cut": (lambda f: (f / "config.json").write_text('{"a'), "config.json"),
    "no layers": (lambda f: edit_config(f, num_hidden_layers=0), "num_hidden_layers"),
    "a layer too many": (lambda f: edit_config(f, num_hidden_layers=1), "layers.1"),
    "weights cut short": (lambda f: os.truncate(f / "model.safetensors", 20_000), "model.safetensors"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "NaN": (lambda f: rewrite(f, {n: t / (n != "model.norm.weight") for n, t in state(f).items()}), "model.norm.weight"),
    "tokenizer.json cut": (lambda f: os.truncate(f / "tokenizer.json", 100), "tokenizer.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_a_bad_checkpoint_is_status_4(models: Path, tmp_path: Path, case: tuple[Callable[[Path], object], str]) -> None:
    folder = Path(shutil.copytree(models / "llama", tmp_path / "model"))
    case[0](folder)
    call(("generate", "--model", str(folder), *RIG, "--prompt", "x", "--quiet"), 4, str(folder), case[1])


def test_a_hub_id_that_is_not_in_the_cache_of_a_host_offline(tmp_path: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    for args in (("plan",), ("generate", "--prompt", "x", "--quiet")):
        result = run_process(*args, "--model", "nobody/nothing", *RIG, env=os.environ | offline)
        ended(result, 1, "nobody/nothing", "cache", lines=2)


def test_a_model_in_the_hub_s_cache_runs_offline(models: Path, tmp_path: Path) -> None:
    home = tmp_path / "hub" / "models--some--llama"
    for folder in ("blobs", "refs", "snapshots/0123"):
        (home / folder).mkdir(parents=True)
    (home / "refs" / "main").write_text("0123")
    for i, file in enumerate(sorted((models / "llama").iterdir())):
        shutil.copy(file, home / "blobs" / str(i))
        (home / "snapshots" / "0123" / file.name).symlink_to(f"../../blobs/{i}")
    args = ("generate", "--model", "some/llama", *RIG, "--prompt", "the", "--max-new-tokens", "2", "--json")
    result = run_process(*args, env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    assert len(json.loads(result.stdout)["token_ids"]) == 2


def test_the_program_itself_keeps_the_promise(models: Path) -> None:
    generate = ("generate", "--model", str(models / "llama"), *RIG, "--quiet")
    for args, status, word in (
        (("plan", "--model", "nosuch"), 2, "nosuch"),
        (generate, 2, "empty"),  # nothing on standard input
        ((*generate, "--prompt", b"\xff"), 2, "Unicode"),
    ):
        ended(run_process(*args), status, word, lines=2)


def test_debug_shows_the_traceback_and_keeps_the_status(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for name, status, error in (("nosuch", 2, "CallError"), (str(tmp_path), 4, "CheckpointError")):
        result = run_process("plan", "--model", name, "--debug")
        assert "Traceback (most recent call last)" in result.stderr
        assert error in result.stderr
        assert (result.returncode, result.stdout) == (status, "")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (("generate", "--temp", "1"), "No such option: --temp; it is --temperature here"),
        (("chat", "--num-ctx", "1"), "it is --context here"),
        (("generate", "hello"), "a prompt is given as -p TEXT"),
        (("run", "llama3"), "No such command 'run'; it is chat, or generate here"),
        (("help",), "No such command 'help'; it is --help here"),
    ],
    ids=str,
)
def test_what_users_of_other_tools_type_is_told_what_it_is_here(call: tuple[str, ...], says: str) -> None:
    result = run_command(*call)
    assert result.exit_code == 2
    assert says in result.stderr


def test_what_it_is_here_is_there() -> None:
    from bigrun.cli.app import main
    from bigrun.cli.group import COMMANDS, FLAGS

    known = {option for command in main.commands.values() for param in command.params for option in param.opts}
    assert set(FLAGS.values()) <= known
    assert not set(FLAGS) & known
    assert all(word.strip() in {*main.commands, "--help"} for here in COMMANDS.values() for word in here.split(", or "))
