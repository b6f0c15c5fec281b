"""What a shell offers for the value of an option (`_BIGRUN_COMPLETE`): catalog names, forms, files."""

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem


class Offered(click.ParamType):
    """Text, taken as it is, for which a shell offers some words, and files where `files` says so and no word fits."""

    name = "text"

    def __init__(self, words: Callable[[], Iterable[str]] = tuple, files: bool = False):
        self.words, self.files = words, files

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        fitting = [CompletionItem(word) for word in self.words() if word.startswith(incomplete)]
        # "file" comes first: in bash it empties the list, and files are looked for where the list stays empty
        return [*([CompletionItem(incomplete, type="file")] if self.files else []), *fitting]


def _models() -> Iterable[str]:
    from bigrun.model.catalog.lookup import ENTRIES

    return sorted(ENTRIES)


def _modes() -> Iterable[str]:
    from bigrun.session.options import MODES

    return MODES


def _kernels() -> Iterable[str]:
    from bigrun.session.options import KERNELS

    return KERNELS


def _forms(option: str) -> Callable[[], Iterable[str]]:
    def forms() -> Iterable[str]:
        from bigrun.model import storage

        return {"weights": storage.FORMATS, "head": storage.HEAD_FORMATS, "kv": storage.KV_FORMATS}[option]

    return forms


FILE = Offered(files=True)
MODEL = Offered(_models, files=True)
MODE, KERNELS = Offered(_modes), Offered(_kernels)
WEIGHTS, HEAD, KV = (Offered(_forms(name)) for name in ("weights", "head", "kv"))
