"""Inference: generation, streams and logits of a loaded model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload
from weakref import WeakSet

from bigrun.errors import CallError, RunError
from bigrun.session.batch import run_requests
from bigrun.session.calls import checked_call
from bigrun.session.findings import tokenizer_of
from bigrun.session.generation import Generation, Stream, run_request
from bigrun.session.prompts import MANY, Message, checked_ids, one_prompt, prompt_ids, read_prompt
from bigrun.session.request_options import RequestOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bigrun.execute.executor import Executor
    from bigrun.loading.open import ModelFiles
    from bigrun.model.spec import ModelSpec
    from bigrun.planning.plan import Plan
    from bigrun.session.options import Options
    from bigrun.text.tokenizer import Tokenizer


class Inference:
    """What a Runner does once its model is loaded; `Runner` itself loads and closes it."""

    options: Options
    files: ModelFiles
    spec: ModelSpec
    plan: Plan
    executor: Executor
    live_streams: WeakSet[Any]  # generators of streams that may not be at their end
    _in_use = False

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, read when it is first asked for."""
        return tokenizer_of(self.files)

    def use_threads(self) -> None:
        """Have the CPU's kernels use this Runner's number of threads: another's may have set its own."""
        from bigrun_kernels.cpu import threads

        threads.use(self.options.arithmetic.threads)

    def check_open(self) -> None:
        """CallError where this Runner was closed."""
        if "executor" not in self.__dict__:
            raise CallError("this Runner is closed and its memory given back: make another one")

    @contextmanager
    def sole_use(self) -> Iterator[None]:
        """Reserves this Runner's one sequence; CallError while another stream has it."""
        self.check_open()
        if self._in_use:
            raise CallError(
                "another stream of this Runner is not at its end: read it to the end or close() it; if another thread has it, "
                "wait for that, or make a second Runner"
            )
        self._in_use = True
        try:
            yield
        finally:
            self._in_use = False

    @checked_call("Runner.encode")
    def encode(
        self, prompt: str | Sequence[Message], raw: bool = False, *, template_args: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Token ids of a prompt. CallError where it is empty, or does not leave room in the context for an answer.

        prompt: text, or messages, each with its role and content.
        raw: a text as it is; otherwise as the user's turn of the model's chat template, if it has one.
        template_args: variables for the chat template, as {"enable_thinking": False}.
        """
        return prompt_ids(
            self.tokenizer, one_prompt(prompt), raw, self.spec.vocab, self.plan.context_tokens, template_args
        )

    @overload
    def generate(
        self, prompt: str | Sequence[int] | Sequence[Message], max_new_tokens: int | None = 128, raw: bool = False, *,
        temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, repetition_penalty: float = 1.0,
        seed: int | None = None, stop: str | Sequence[str] = (), template_args: Mapping[str, Any] | None = None,
    ) -> Generation: ...  # fmt: skip

    @overload
    def generate(
        self, prompt: list[str] | tuple[str, ...] | Sequence[Sequence[Message]], max_new_tokens: int | None = 128,
        raw: bool = False, *,
        temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, repetition_penalty: float = 1.0,
        seed: int | None = None, stop: str | Sequence[str] = (), template_args: Mapping[str, Any] | None = None,
    ) -> list[Generation]: ...  # fmt: skip

    @checked_call("Runner.generate")
    def generate(
        self, prompt: Any, max_new_tokens: int | None = 128, raw: bool = False, *, temperature: float = 0.0, top_k: int = 0,
        top_p: float = 1.0, min_p: float = 0.0, repetition_penalty: float = 1.0, seed: int | None = None,
        stop: str | Sequence[str] = (), template_args: Mapping[str, Any] | None = None,
    ) -> Generation | list[Generation]:  # fmt: skip
        """The continuation of a prompt, whole; of a list of prompts, a list of them, computed `batch` at a time (the Runner's).

        Each stops at the model's end token, at a text of `stop`, at `max_new_tokens`, or where the context is full. What a
        prompt begins with as the one of the call before did is not computed again. CallError for what makes no sense; RunError
        where logits are no numbers.

        prompt: text, token ids, or messages (dictionaries of role and content); or a list of texts, or of lists of messages.
        max_new_tokens: tokens at most, at least 1; None: as many as the context holds.
        raw: a text as it is; otherwise as the user's turn of the model's chat template, if it has one.
        temperature: 0 takes the likeliest token; above, tokens are drawn from logits divided by it.
        top_k: draw from the likeliest so many; 0: from all.
        top_p: draw from the likeliest tokens that make up this probability, above 0 and at most 1.
        min_p: draw from tokens of at least this share of the likeliest one's probability; 0: from all.
        repetition_penalty: above 1, tokens that the prompt or the answer has are less likely; 1: no penalty.
        seed: of the noise: the same seed draws the same tokens; None: a random one, which `stats.seed` tells.
        stop: a text, or several, before which the answer ends.
        template_args: variables for the chat template, as {"enable_thinking": False}.
        """
        options = RequestOptions(
            max_new_tokens, raw, stop, template_args,
            {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
             "repetition_penalty": repetition_penalty, "seed": seed},
        )  # fmt: skip
        kind, read = read_prompt(prompt)
        if kind not in MANY:
            return run_request(self, options.request(self, read))
        ended = dict(run_requests(self, options.requests(self, read)))
        return [ended[number] for number in range(len(read))]

    @checked_call("Runner.stream")
    def stream(
        self, prompt: str | Sequence[int] | Sequence[Message], max_new_tokens: int | None = 128, raw: bool = False, *,
        temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, repetition_penalty: float = 1.0,
        seed: int | None = None, stop: str | Sequence[str] = (), template_args: Mapping[str, Any] | None = None,
    ) -> Stream:  # fmt: skip
        """The continuation of a prompt as an iterator over pieces of text, as they come. A Runner has one at a time: CallError
        where another has begun and not ended.

        prompt: text, token ids, which are taken as they are, or messages, dictionaries of role and content.
        max_new_tokens: tokens at most, at least 1; None: as many as the context holds.
        raw: a text as it is; otherwise as the user's turn of the model's chat template, if it has one.
        temperature: 0 takes the likeliest token; above, tokens are drawn from logits divided by it.
        top_k: draw from the likeliest so many; 0: from all.
        top_p: draw from the likeliest tokens that make up this probability, above 0 and at most 1.
        min_p: draw from tokens of at least this share of the likeliest one's probability; 0: from all.
        repetition_penalty: above 1, tokens that the prompt or the answer has are less likely; 1: no penalty.
        seed: of the noise: the same seed draws the same tokens; None: a random one, which `stats.seed` tells.
        stop: a text, or several, before which the answer ends. What may still become one is held back.
        template_args: variables for the chat template, as {"enable_thinking": False}.
        """
        options = RequestOptions(
            max_new_tokens, raw, stop, template_args,
            {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
             "repetition_penalty": repetition_penalty, "seed": seed},
        )  # fmt: skip
        return Stream(self, options.request(self, prompt))

    @checked_call("Runner.logits")
    def logits(self, ids: Any) -> Any:
        """Logits of every position, [batch, seq, vocab] float32: a torch tensor of one, else a NumPy array.

        RunError where they are no numbers.

        ids: token ids, whole numbers [batch, seq], at most the context in a row; each row is a sequence of its own.
        """
        import numpy as np

        try:
            rows = np.asarray(ids)
        except ValueError as error:  # rows of different lengths
            raise CallError("logits: ids must be a whole-number array [batch, seq]: give rows of one length") from error
        if rows.ndim != 2 or rows.dtype.kind not in "iu" or rows.shape[1] == 0:
            raise CallError("logits: ids must be a whole-number array [batch, seq] with at least one token a row")
        checked = [checked_ids(row, self.spec.vocab, self.plan.context_tokens) for row in rows]
        result = np.empty((*rows.shape, self.spec.vocab), np.float32)
        with self.sole_use():
            self.use_threads()
            for i, row in enumerate(checked):
                self.executor.clear(0)
                result[i] = self.executor.forward({0: row}, every=True)[0]
            self.executor.clear(0)
        if not np.isfinite(result).all():
            raise RunError(f"{self.spec.name}: logits are no numbers: its weights, or this mode, go beyond float32")
        if type(ids).__module__.startswith("torch"):
            import torch

            return torch.from_numpy(result)
        return result
