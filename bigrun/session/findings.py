"""What a run of a model would meet, found before its first weight is fetched or read: one list for a run, `plan`, `convert`
and `inspect`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bigrun.checkpoint.leftovers import quantised
from bigrun.checkpoint.tensor_map import map_tensors, problems, surplus
from bigrun.errors import BigrunError, CheckpointError, TokenizerError
from bigrun.execute.supported import why_not_executable
from bigrun.loading.conversion_folder import Conversion
from bigrun.loading.open import model_spec, open_hub, open_model
from bigrun.text.vocabulary_files import has_tokenizer, no_tokenizer

if TYPE_CHECKING:
    from bigrun.checkpoint.base import Checkpoint
    from bigrun.loading.open import ModelFiles
    from bigrun.model.resolve import Model
    from bigrun.model.spec import ModelSpec
    from bigrun.text.tokenizer import Tokenizer

NO_TOKENIZER = "none (text cannot be generated; bench runs without)"
MOST_TOKENS = 3  # that a line names


@dataclass(frozen=True)
class Findings:
    """`problems` keep a model from running, `text_problems` from running with text, or with its chat template, in the order in
    which a load would meet them; `warnings` are what its user should know; `ignored` tensors are of no use, (name, why).
    `tokenizer` is what text becomes tokens with, where that could be read, and `about_tokenizer` says what it is."""

    problems: tuple[str, ...] = ()
    text_problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    ignored: tuple[tuple[str, str], ...] = ()
    tokenizer: Tokenizer | None = None
    about_tokenizer: str = "unknown"

    def check(self, text: bool = False) -> None:
        """CheckpointError with the first of the problems; where there will be `text`, TokenizerError if there is no tokenizer.
        Whoever uses the chat template meets what is wrong with it."""
        for problem in self.problems:
            raise CheckpointError(problem)
        for problem in self.text_problems if text and self.tokenizer is None else ():
            raise TokenizerError(problem)


def examine(files: ModelFiles, spec: ModelSpec, text: bool = True, tensors: bool = True) -> Findings:
    """The findings of open files. Their headers are read; no weight is, but for biases that have no place.

    `text`: look at the tokenizer as well. `tensors`: nothing is known of them, if not.
    """
    about, tokenizer, text_problems, warnings = _tokenizer(files, spec) if text else ("unknown", None, (), ())
    wrong = tuple(f"{files.where}: {why}" for why in _refusal(spec))
    ignored: tuple[tuple[str, str], ...] = ()
    if not isinstance(files, Conversion):
        if not wrong and tensors:
            tensor_map = map_tensors(files, spec)
            wrong = tuple(problems(tensor_map))
            ignored = tuple((name, why) for name, why in surplus(tensor_map) if why)
        warnings = (*files.notes, *(_unused(files) if tensors and not wrong else ()), *warnings)
    return Findings(wrong, text_problems, warnings, ignored, tokenizer, about)


def described(model: Model, revision: str | None = None) -> tuple[ModelSpec, Findings]:
    """The spec of a model, and what a run of it would meet as far as that is known without fetching it: of a catalog's name
    nothing, of a hub id what the headers of its files say, of what is here all but what only reading its tokenizer shows, which
    takes longer than planning."""
    if model.repo is not None and model.entry is None:
        hub_files, spec = open_hub(model, revision)
        return spec, Findings() if hub_files is None else examine(hub_files, spec, text=False)
    if model.folder is None and model.gguf is None:
        return model_spec(model, revision), Findings()
    try:
        files, spec = open_model(model)
        findings = examine(files, spec, text=False)
        missing = (f"{files.where} {no_tokenizer(files.folder)}",) if _lacks_tokenizer(files) else ()
        return spec, replace(findings, warnings=(*findings.warnings, *missing))
    except CheckpointError as error:  # a plan needs the configuration alone, and whoever reads that says what it lacks
        return model_spec(model), Findings((str(error),))


def _refusal(spec: ModelSpec) -> Iterator[str]:
    if why := why_not_executable(spec):
        yield why


def _unused(files: Checkpoint) -> Iterator[str]:
    """What the configuration asks for and a run does in its own way."""
    used = {info.dtype for info in files.tensors.values()}
    if files.config.get("quantization_config") is not None and not any(dtype.startswith("F8") for dtype in used):
        how = quantised(files.config, ()) or "fp8"
        yield f"{files.where}: quantization_config ({how}) is not used: the weights are {', '.join(sorted(used))}"


def tokenizer_of(files: ModelFiles) -> Tokenizer:
    """The tokenizer of open files. TokenizerError where they have none, or none that can be read."""
    from bigrun.text.tokenizer import Tokenizer

    if (metadata := files.metadata) is not None:
        return Tokenizer.from_gguf(metadata)
    return Tokenizer.from_folder(files.folder)


def _tokenizer(files: ModelFiles, spec: ModelSpec) -> tuple[str, Tokenizer | None, tuple[str, ...], tuple[str, ...]]:
    """(the tokenizer in words, itself, problems, warnings)."""
    if _lacks_tokenizer(files):
        return NO_TOKENIZER, None, (f"{files.where} {no_tokenizer(files.folder)}",), ()
    try:
        tokenizer = tokenizer_of(files)
    except BigrunError as error:
        return "unreadable", None, (str(error),), ()
    chat = "with a chat template" if tokenizer.chat_template else "no chat template"
    wrong: tuple[str, ...] = ()
    try:
        tokenizer.check_template()
    except BigrunError as error:
        chat, wrong = "with a chat template that fails", (f"{files.where}: {error} (--raw does without)",)
    return f"{tokenizer.vocab_size} tokens, {chat}", tokenizer, wrong, tuple(beyond_table(tokenizer, spec))


def _lacks_tokenizer(files: ModelFiles) -> bool:
    return files.metadata is None and not has_tokenizer(files.folder)


def beyond_table(tokenizer: Tokenizer, spec: ModelSpec) -> Iterator[str]:
    """A line for the tokens, and one for the stop tokens, whose ids the embedding table has no row for."""
    if outside := tokenizer.ids_from(spec.vocab):
        named = ", ".join(f"{text!r:.40} ({index})" for index, text in outside[:MOST_TOKENS])
        more = f" and {len(outside) - MOST_TOKENS} more" if len(outside) > MOST_TOKENS else ""
        yield (
            f"the embedding table has {spec.vocab} rows, but the tokenizer also makes {named}{more}: a prompt with such a "
            "token is refused"
        )
    if never := sorted(index for index in tokenizer.stop_ids if index >= spec.vocab):
        yield f"stop tokens {', '.join(map(str, never[:MOST_TOKENS]))} are beyond the table of {spec.vocab}: they cannot come"
