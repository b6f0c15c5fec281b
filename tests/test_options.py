"""One Options object: what `plan`, `Runner` and the commands say is the same, and each fills it."""

import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import click
import pytest

import bigrun
from bigrun.cli import options as cli_options
from bigrun.cli.app import main
from bigrun.devices.make_rig import RigOptions
from bigrun.errors import PARAMETERS, CallError
from bigrun.execute.sampling import Sampling
from bigrun.model.storage import Storage
from bigrun.session.generation import Generation, Stats, Stream
from bigrun.session.options import ArithmeticOptions, Options, flat_fields
from support.checkpoints import llama
from support.commands import run_command

QUESTIONS = {"solve", "what_if", "target"}  # which are asked of options, and are none
RUN_ONLY = {"mode", "threshold", "threads", "kernels", "plan", "cache", "progress"}


def default(name: str) -> Any:
    field = flat_fields()[name][1]
    assert field.default is not MISSING, name
    return field.default


def parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """Name in Options → default, of the parameters of a public function."""
    arguments = inspect.signature(function).parameters.values()
    return {"model" if p.name == "model_id" else p.name: p.default for p in arguments if p.name != "self"}


def flags(command: str) -> dict[str, click.Parameter]:
    return {str(param.name): param for param in main.commands[command].params}


def plain(param: click.Parameter) -> Any:
    """What a parameter is without its flag; None where it has no default."""
    with click.Context(main) as context:
        value = param.get_default(context)
    return None if type(value).__name__ == "Sentinel" else value


def test_flat_names_are_of_one_field_each() -> None:
    names = [each.name for kind in (Options, Storage, ArithmeticOptions) for each in fields(kind)]
    assert len(names) == len(set(names))
    assert len(flat_fields()) == len(inspect.signature(bigrun.Runner).parameters)


def test_the_runner_takes_every_option_and_no_other() -> None:
    taken = parameters(bigrun.Runner.__init__)
    assert taken.keys() == flat_fields().keys()
    assert taken == {name: default(name) for name in taken}


def test_plan_takes_every_option_of_a_plan_and_no_other() -> None:
    taken = parameters(bigrun.plan)
    assert taken.keys() == (flat_fields().keys() - RUN_ONLY) | QUESTIONS
    taken = {name: value for name, value in taken.items() if name not in QUESTIONS}
    assert taken.pop("model") == Options().model_id
    assert taken == {name: default(name) for name in taken}


@pytest.mark.parametrize("command", ["plan", "generate", "bench", "chat"])
def test_commands_have_a_flag_for_every_option(command: str) -> None:
    missing = flat_fields().keys() - flags(command).keys() - {"progress"}  # which --quiet turns off
    expected = {
        "plan": RUN_ONLY - {"progress"},
        "generate": {"prompt_tokens"},
        "chat": {"prompt_tokens"},
        "bench": {"plan"},
    }
    assert missing == expected[command]
    for name, param in flags(command).items():
        if name in flat_fields() and name not in ("model", "skip", "prompt_tokens"):
            assert plain(param) == default(name), name
            assert param.opts == ["--" + name.replace("_", "-")]


def test_parsing_no_flags_gives_the_options_of_python() -> None:
    for command in ("plan", "generate", "chat"):
        names = flat_fields().keys() | {"quiet", "debug"}
        values = {name: plain(param) for name, param in flags(command).items() if name in names}
        assert cli_options.parse(values) == Options(model=Options().model_id)


def test_a_plan_is_made_of_what_it_is_given(tmp_path: Path) -> None:
    llama(tmp_path / "m", layers=2)
    model = str(tmp_path / "m")
    chosen: dict[str, Any] = {
        "gpus": "1x40MB", "cpu": "50MB", "virtual": True, "context": 32, "batch": 2, "weights": "16bit", "head": "16bit",
        "skip": ["down"], "kv": "int8", "prompt_tokens": 7,
    }  # fmt: skip
    made = bigrun.plan(model, **chosen)
    assert made.storage == Storage("16bit", "16bit", ("down",), "int8")
    assert (made.context_tokens, made.batch) == (32, 2)
    assert made.predicted is not None
    assert made.predicted.prompt_tokens == 7
    assert {device.name: device.budget_bytes for device in made.devices} == {"cuda:0": 40 * 10**6, "cpu": 50 * 10**6}
    args = [
        "--gpus", "1x40MB", "--cpu", "50MB", "--virtual", "--context", "32", "--batch", "2", "--weights", "16bit",
        "--head", "16bit", "--skip", " down,", "--kv", "int8", "--prompt-tokens", "7",
    ]  # fmt: skip
    printed = run_command("plan", "--model", model, "--json", *args)
    assert printed.exit_code == 0, printed.output
    assert printed.stdout == made.to_json() + "\n"


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(TypeError, match="no such option: gpu"):
        Options.of(gpu="8x24GB")


@pytest.mark.parametrize(("alias", "mode"), [("w8a16", "exact"), ("w8a8", "llm.int8")])
def test_a_mode_has_the_name_that_other_runners_give_it(alias: str, mode: str) -> None:
    assert ArithmeticOptions(alias) == ArithmeticOptions(mode)
    with pytest.raises(CallError, match=r"choose one of auto, exact, llm\.int8, w8a16, w8a8"):
        ArithmeticOptions("w4a16")


@pytest.mark.parametrize(
    ("wrong", "flag", "parameter"),
    [
        ({"max_memory": {"x": 1}}, None, "max_memory"),
        ({"what_if": "more"}, "--what-if more", "what_if"),
        ({"kv": "4bit"}, "--kv 4bit", "kv '4bit'"),
        ({"prompt_tokens": 10**6}, "--prompt-tokens 1000000", "prompt_tokens 1000000"),
        ({"gpus": "1xFOO"}, "--gpus 1xFOO", "gpus"),
    ],
    ids=str,
)
def test_messages_name_the_flag_on_the_command_line_and_the_parameter_in_python(
    wrong: dict[str, Any], flag: str | None, parameter: str
) -> None:
    with pytest.raises(CallError) as caught:
        bigrun.plan(**wrong)
    assert parameter in str(caught.value)
    assert "--" not in str(caught.value)
    if flag is not None:
        result = run_command("plan", *flag.split())
        assert (result.exit_code, result.stdout) == (2, "")
        assert flag.split()[0] in result.stderr


def test_every_parameter_that_is_a_flag_is_named_as_one() -> None:
    sampling = {each.name for each in fields(Sampling)}
    assert flat_fields().keys() | QUESTIONS | sampling | {"max_new_tokens", "raw", "stop"} == PARAMETERS


def test_text_that_looks_like_a_flag_stays_as_it_is() -> None:
    assert str(CallError("--learn and a--kv and x=--kv-x")) == "--learn and a--kv and x=--kv-x"


def public() -> list[tuple[str, Callable[..., Any]]]:
    """Every public function, and the constructor and methods of every public class of our own."""
    functions: list[tuple[str, Callable[..., Any]]] = [("plan", bigrun.plan)]
    for kind in (bigrun.Runner, bigrun.Plan, Stream):
        for name in dir(kind):
            method = getattr(kind, name)
            if (
                callable(method)
                and inspect.isroutine(method)
                and (not name.startswith("_") or (kind, name) == (bigrun.Runner, "__init__"))
            ):
                functions.append((f"{kind.__name__}.{name}", method))
    return functions


@pytest.mark.parametrize(("name", "function"), public(), ids=[name for name, _ in public()])
def test_every_public_parameter_is_documented(name: str, function: Callable[..., Any]) -> None:
    doc = inspect.getdoc(function)
    assert doc, name
    for parameter in inspect.signature(function).parameters:
        assert parameter == "self" or re.search(rf"^{parameter}: \S", doc, re.MULTILINE), parameter


@pytest.mark.parametrize("kind", [Options, Storage, RigOptions, ArithmeticOptions, bigrun.Plan, Generation, Stats])
def test_every_field_of_public_data_is_documented(kind: type) -> None:
    """By a comment in its line, which is what docs/reference.md prints, or in the docstring."""
    lines = "\n".join(inspect.getsource(each) for each in kind.__mro__ if each is not object)
    for field in fields(kind):
        if field.name not in ("fits", "progress"):  # which say it themselves
            assert re.search(rf"^    {field.name}: .*  # \S", lines, re.MULTILINE) or f"`{field.name}`" in lines, (
                field.name
            )
