"""Family: what bigrun knows of the models of some architectures beside their configuration."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from bigrun.errors import CallError
from bigrun.model.families.fields import Fields
from bigrun.model.source import Dialect, Source
from bigrun.model.spec import ModelSpec

Module = Literal["embed", "block", "norm", "head", "experts", "inside"]
Modules = Mapping[Module, tuple[str, ...]]
Describe = Callable[[Fields, str], ModelSpec]


@dataclass(frozen=True)
class Family:
    """`describe` makes the spec, `sources` says which checkpoint tensors fill a part (None: for planning alone), `modules`
    names accelerate's: of a mixture of experts also where, in a block, the experts are and what else is "inside"."""

    name: str  # transformers' model_type
    architectures: tuple[str, ...]
    describe: Describe
    sources: Callable[[ModelSpec, str, Dialect], dict[str, tuple[Source, ...]]] | None
    prefixes: tuple[str, ...]  # that published checkpoints put before the names of the decoder's tensors
    modules: Modules

    @property
    def refusal(self) -> str:
        """Why models of this family cannot be run; "" where they can."""
        return "" if self.sources else f"models of the family {self.name} can be planned but not run yet"

    def tensors(self, spec: ModelSpec, part: str, dialect: Dialect) -> dict[str, tuple[Source, ...]]:
        """`sources`; CallError for a family that can only be planned."""
        if self.sources is None:
            raise CallError(f"{spec.name}: {self.refusal}")
        return self.sources(spec, part, dialect)


def planned(name: str, architecture: str, describe: Describe, modules: Modules) -> Family:
    """A family for planning alone: its tensors' names are known to nobody here, since nothing reads them."""
    return Family(name, (architecture,), describe, None, (), modules)
