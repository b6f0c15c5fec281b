"""A Runner for a command: what is wrong with the call is said first, this host is measured on its first use, then it loads."""

from typing import TYPE_CHECKING

from bigrun.cli.plan import measured_once
from bigrun.errors import CallError

if TYPE_CHECKING:
    from bigrun.session.options import Options
    from bigrun.session.prompts import TextCheck
    from bigrun.session.runner import Runner


def open_runner(options: "Options", text_check: "TextCheck | None" = None, text: bool = True) -> "Runner":
    """The loaded model; `text_check` and `text` as `Runner.from_options` takes them."""
    from bigrun.session.runner import Runner

    check_instruction_set()
    if options.plan is None:  # which has its predictions
        from bigrun.model.resolve import resolve

        resolve(options.model_id)  # a wrong name is said at once
        measured_once(options, run=True)
    return Runner.from_options(options, text_check, text)


def check_instruction_set() -> None:
    """CallError where BIGRUN_ISA names none; commands that compute nothing do not look at it."""
    from bigrun_kernels.cpu import isa

    try:
        isa.current()
    except ValueError as error:
        raise CallError(str(error)) from error
