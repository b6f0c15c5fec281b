"""`bigrun generate`: the answers to one prompt or several, from flags, files or standard input."""

import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from bigrun.cli.answer import notes
from bigrun.cli.encoding import readable_json
from bigrun.cli.generation_options import SAMPLING, generate_options, read_arguments
from bigrun.cli.help import Command
from bigrun.cli.options import as_json, parse, rig_options, run_options
from bigrun.cli.prompt import read_prompt
from bigrun.errors import CallError, PlanDoesNotFit, escaped
from bigrun.text.shown import Shown

if TYPE_CHECKING:
    from bigrun.session.generation import Generation
    from bigrun.session.request_options import RequestOptions
    from bigrun.session.runner import Runner

MOST_AT_A_TIME = 8  # prompts, unless --batch says otherwise


@click.command("generate", cls=Command)
@rig_options
@run_options
@as_json
@generate_options
@click.pass_context
def generate(
    ctx: click.Context, as_json: bool, prompts: tuple[str, ...], prompt_file: str | None, system: str | None,
    messages: str | None, template_args: tuple[str, ...], max_new_tokens: int, raw: bool, stop: tuple[str, ...],
    verbose: bool, **flags: Any,
) -> None:  # fmt: skip
    """Continue a prompt, or several; the text streams as it comes.

    The likeliest token is taken, unless a temperature is given; `bigrun chat` samples as the model's generation_config.json
    says. One line's end at the end of a file or of standard input is no part of the prompt.
    """
    sampling = {name: flags.pop(name) for name in SAMPLING}
    drawn = sorted(name for name in ("top_k", "top_p", "min_p", "seed") if _was_given(ctx, name))
    if drawn and not sampling["temperature"] and not flags["quiet"]:
        flag = ", ".join("--" + name.replace("_", "-") for name in drawn)
        _note([f"{flag}: nothing is drawn without a --temperature"])
    given = _prompts(prompts, prompt_file, system, messages, raw)
    arguments = read_arguments(template_args)
    from bigrun.session.generation import Stream
    from bigrun.session.prompts import prompt_ids
    from bigrun.session.request_options import RequestOptions

    # checked before a long load, not after it
    options = RequestOptions(max_new_tokens, raw, stop, arguments or None, sampling)

    def text_check(tokenizer: Any, table: int, context: int) -> None:
        for each in given:
            prompt_ids(tokenizer, each, raw, table, context, arguments)

    with _runner(ctx, flags, len(given), text_check) as runner:
        if len(given) > 1:
            _several(runner, given, options, as_json, verbose, flags["quiet"])
            return
        stream, pieces, output = Stream(runner, options.request(runner, given[0])), [], _Output()
        for piece in stream:
            pieces.append(piece)
            if not as_json:
                output.write(piece)
        text = "".join(pieces)
        if as_json:
            print(readable_json({"text": text, "token_ids": stream.token_ids, **vars(stream.stats)}))
            return
        output.end(bool(text))
        if not flags["quiet"]:
            _note(notes(stream.stats, bool(text), True, verbose))


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def _was_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is not ParameterSource.DEFAULT


class _Output:
    """Standard output for an answer: as it is, unless it is a terminal, which gets no control characters of it."""

    def __init__(self) -> None:
        self._shown = Shown() if _is_terminal() else None

    def write(self, piece: str) -> None:
        """The next piece."""
        print(piece if self._shown is None else self._shown.push(piece), end="", flush=True)

    def end(self, has_text: bool) -> None:
        """The answer is over; one that has text ends its line."""
        if has_text:
            print("" if self._shown is None else self._shown.finish(), flush=True)


def _prompts(
    prompts: tuple[str, ...], prompt_file: str | None, system: str | None, messages: str | None, raw: bool
) -> list[Any]:
    """The prompts: texts, or conversations where there is a system message or a file of messages."""
    if raw and (system is not None or messages is not None):
        what = "--system" if messages is None else "--messages"
        raise CallError(f"{what}: it is for the chat template, and --raw does without: leave one of them out")
    said: list[dict[str, Any]] = []
    if messages is not None:
        from bigrun.cli.messages_file import read_messages

        said = list(read_messages(messages, f"--messages {messages}"))
    if system is not None:
        if not system.strip():
            raise CallError("--system: it is empty: leave it out")
        if any(message["role"] == "system" for message in said):
            raise CallError(f"--system: --messages {messages} has a system message: leave one of them out")
        said = [{"role": "system", "content": system}, *said]
    if messages is not None and not prompts and prompt_file is None:
        if not said or said[-1]["role"] == "assistant":
            raise CallError(f"--messages {messages}: there is no turn to answer at its end: add one with --prompt")
        return [said]
    if len(prompts) > 1:
        if prompt_file is not None:
            raise CallError("--prompt and --prompt-file: give one of them")
        texts = []
        for number, prompt in enumerate(prompts, 1):
            if not prompt.strip():
                raise CallError(f"--prompt {number} of {len(prompts)} is empty")
            texts.append(prompt)
    else:
        texts = [read_prompt(prompts[0] if prompts else None, prompt_file)]
    return [[*said, {"role": "user", "content": text}] for text in texts] if said else list(texts)


def _runner(ctx: click.Context, flags: dict[str, Any], count: int, text_check: Any) -> "Runner":
    """The model, with a sequence for each of the prompts that are computed together."""
    from bigrun.cli.running import open_runner

    chosen = parse(flags)
    given = _was_given(ctx, "batch")
    if given and count == 1 and chosen.batch > 1 and not flags["quiet"]:
        _note([f"--batch {chosen.batch}: there is one prompt, and one answer; give --prompt several times"])
    if count == 1 or given or chosen.plan is not None:
        return open_runner(chosen, text_check)
    try:
        return open_runner(replace(chosen, batch=min(count, MOST_AT_A_TIME)), text_check)
    except PlanDoesNotFit as error:
        raise PlanDoesNotFit(f"{error}; or --batch 1, one prompt after another") from error


def _several(
    runner: "Runner", prompts: list[Any], options: "RequestOptions", as_json: bool, verbose: bool, quiet: bool
) -> None:
    """The answers to several prompts, each under its prompt, in their order and as soon as those before it are there."""
    from bigrun.cli.answer import together
    from bigrun.session.batch import run_requests

    started = time.perf_counter()
    waiting: dict[int, Generation] = {}
    printed: list[Generation] = []
    for number, answer in run_requests(runner, options.requests(runner, prompts)):
        waiting[number] = answer
        while (following := len(printed)) in waiting:
            each = waiting.pop(following)
            printed.append(each)
            if not as_json:
                _print_answer(following, prompts, each)
                if not quiet:
                    lines = notes(each.stats, bool(each.text), verbose, verbose)
                    _note([f"{following + 1}: {line}" for line in lines])
    if as_json:
        listed = [{"text": each.text, "token_ids": list(each.token_ids), **vars(each.stats)} for each in printed]
        print(readable_json({"answers": listed}))
    elif not quiet:
        _note([together([each.stats for each in printed], time.perf_counter() - started)])


def _print_answer(number: int, prompts: list[Any], answer: "Generation") -> None:
    prompt = prompts[number] if isinstance(prompts[number], str) else prompts[number][-1]["content"]
    between = "" if number == 0 else "\n"
    print(f"{between}--- {number + 1} of {len(prompts)}: {escaped(' '.join(prompt.split())):.80}")
    output = _Output()
    output.write(answer.text)
    output.end(bool(answer.text))


def _note(lines: list[str]) -> None:
    for line in lines:
        print(f"[{line}]", file=sys.stderr, flush=True)
