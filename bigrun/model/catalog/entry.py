"""An entry of the catalog, and the words in which the tables of the catalog are written."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bigrun.model.families.registry import spec_from_config
from bigrun.model.spec import ModelSpec


@dataclass(frozen=True)
class Entry:
    """A model that is planned by name. `repo` is its Hugging Face id, empty where none is known to hold such weights.

    `published` is the parameter count that is stated to the unit, `published_text` one that is stated in round figures
    ("671B"); `beside` is what the stated count holds beside the parameters counted here, as `source` says.
    """

    name: str
    repo: str
    config: Mapping[str, Any]
    published: int | None
    source: str
    published_text: str = ""
    beside: int = 0
    checkpoint_bytes: int = 0  # of all weights as published, where 16 bits a parameter would be wrong
    tuned: str = ""  # the repo of the makers' instruction-tuned weights of this shape
    tuned_context: int = 0  # their max_position_embeddings, where it differs

    def spec(self) -> ModelSpec:
        model_spec = spec_from_config(self.config, self.name, f"catalog: {self.name}")
        return replace(model_spec, checkpoint_bytes=self.checkpoint_bytes)


def config(
    architecture: str, vocab: int, hidden: int, inner: int, layers: int, heads: int, kv_heads: int, context: int,
    **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """The fields of a published config.json that decide shapes and how long a context may be."""
    return {
        "architectures": [f"{architecture}ForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": context,
        "torch_dtype": "bfloat16",
        **more,
    }


CONFIG = "config.json of {repo} on the Hugging Face hub"
# The hub counts the entries of all safetensors files; an index states their bytes, two of them a parameter.
HUB = CONFIG + ", whose page counts the parameters"
INDEX = CONFIG + "; the parameters are the bytes that its model.safetensors.index.json states, halved"
CARD = CONFIG + "; the model card states the count"
TWICE = CONFIG + ", whose page counts the tied table twice, as the files hold it"


def row(name: str, repo: str, shape: Mapping[str, Any], count: int | str, source: str, **more: Any) -> Entry:
    """An entry of a table: `count` as a number is to the unit, as text it is a round figure."""
    published, text = (None, count) if isinstance(count, str) else (count, "")
    return Entry(name, repo, shape, published, source.format(repo=repo), text, **more)
