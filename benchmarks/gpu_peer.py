"""A Llama made of random numbers, as a checkpoint and as plain torch: what gpu_models.py compares bigrun with.

The numbers are a function of a tensor's name, so that files and peers hold the same ones without reading each other.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from gpu_bench import Bench
from torch import Tensor
from torch.nn import functional

THETA, EPS = 10000.0, 1e-5


@dataclass(frozen=True)
class Config:
    """A Llama's dimensions."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocab: int
    outlier: float = 12.0  # how much larger every norm makes one column of 512: what LLM.int8() was made for
    context: int = 4096

    @property
    def dim(self) -> int:
        return self.hidden // self.heads

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], float]]:
        """Every tensor's shape and standard deviation (0: a norm). A block adds a little to a stream of about one; gates
        and ups are small, so that no column of their product is an outlier; logits spread by two."""
        h, kv, deep = self.hidden, self.kv_heads * self.dim, (2 * self.layers) ** -0.5
        tensors: dict[str, tuple[tuple[int, ...], float]] = {"model.embed_tokens.weight": ((self.vocab, h), 1.0)}
        for i in range(self.layers):
            block = f"model.layers.{i}."
            tensors[f"{block}input_layernorm.weight"] = ((h,), 0.0)
            for name, rows in (("q", h), ("k", kv), ("v", kv)):
                tensors[f"{block}self_attn.{name}_proj.weight"] = ((rows, h), h**-0.5)
            tensors[f"{block}self_attn.o_proj.weight"] = ((h, h), 4 * deep * h**-0.5)
            tensors[f"{block}post_attention_layernorm.weight"] = ((h,), 0.0)
            for name in ("gate", "up"):
                tensors[f"{block}mlp.{name}_proj.weight"] = ((self.inner, h), 0.4 * h**-0.5)
            tensors[f"{block}mlp.down_proj.weight"] = ((h, self.inner), 8 * deep * self.inner**-0.5)
        tensors["model.norm.weight"] = ((h,), 0.0)
        tensors["lm_head.weight"] = ((self.vocab, h), 2 * h**-0.5)
        return tensors

    def tensor(self, name: str, device: torch.device) -> Tensor:
        """bfloat16."""
        shape, deviation = self.shapes[name]
        generator = torch.Generator(device).manual_seed(crc32(f"{self.name} {name}".encode()))
        noise = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
        if deviation:
            return noise.mul_(deviation)
        noise = 1 + 0.1 * noise
        if name != "model.norm.weight":
            noise[7::512] *= self.outlier
        return noise


def config(b: Bench, size: str) -> Config:
    if size == "7b":
        return b.pick(Config(size, 4096, 32, 32, 32, 11008, 32000), Config(size, 32, 2, 2, 2, 32, 64, 6.5))
    return b.pick(Config(size, 768, 12, 12, 4, 2048, 32000), Config(size, 32, 1, 2, 1, 32, 64, 6.5))


def checkpoint(b: Bench, size: str) -> Path:
    """The folder of its safetensors shards, which are written if they are not there."""
    from safetensors.torch import save_file

    made, folder = config(b, size), b.folder / size
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    need = 2 * sum(torch.Size(shape).numel() for shape, _ in made.shapes.values())
    if shutil.disk_usage(folder).free < need + 10**9:
        raise OSError(f"{need / 1e9:.0f} GB of a checkpoint do not fit the temporary folder: TMPDIR names another")
    names, where = list(made.shapes), {}
    count = b.pick(8, 2) if size == "7b" else 1
    for i in range(count):
        part = names[i * len(names) // count : (i + 1) * len(names) // count]
        file = f"model-{i + 1:05}-of-{count:05}.safetensors" if count > 1 else "model.safetensors"
        save_file({name: made.tensor(name, b.device).cpu() for name in part}, folder / file)
        where.update(dict.fromkeys(part, file))
    if count > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    described = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": made.hidden, "rope_theta": THETA,
        "num_hidden_layers": made.layers, "num_attention_heads": made.heads, "num_key_value_heads": made.kv_heads,
        "intermediate_size": made.inner, "vocab_size": made.vocab, "max_position_embeddings": made.context,
        "rms_norm_eps": EPS, "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(described))  # last: it says that all is there
    return folder


Linear = Callable[[Tensor], Tensor]


class Peer:
    """The same model in plain torch: bfloat16 weights on the device, q, k, v and gate, up in one product each, a static
    KV cache, scaled_dot_product_attention. `wide`: computed in float32, one layer's weights widened at a time.
    `make`: what computes a linear of a weight, torch's own product unless told."""

    def __init__(
        self, b: Bench, made: Config, length: int, wide: bool = False, make: Callable[[Tensor], Linear] | None = None
    ):
        self.made, self.length, self.device = made, length, b.device
        self.dtype = torch.float32 if wide else torch.bfloat16
        make = make or (lambda w: lambda x: functional.linear(x, w.to(x.dtype)))

        def get(*names: str) -> Tensor:
            return torch.cat([made.tensor(f"{name}.weight", b.device) for name in names])

        self.embedding = get("model.embed_tokens")
        self.norm, self.head = get("model.norm"), make(get("lm_head"))
        self.layers: list[tuple[Tensor, Linear, Linear, Tensor, Linear, Linear]] = []
        for i in range(made.layers):
            block = f"model.layers.{i}."
            qkv = make(get(*(f"{block}self_attn.{name}_proj" for name in "qkv")))
            out, down = make(get(f"{block}self_attn.o_proj")), make(get(f"{block}mlp.down_proj"))
            up = make(get(f"{block}mlp.gate_proj", f"{block}mlp.up_proj"))
            norms = get(f"{block}input_layernorm"), get(f"{block}post_attention_layernorm")
            self.layers.append((norms[0], qkv, out, norms[1], up, down))
        shape = (made.layers, 2, 1, made.kv_heads, length, made.dim)
        self.cache = torch.zeros(shape, dtype=self.dtype, device=b.device)
        exponents = torch.arange(0, made.dim, 2, device=b.device, dtype=torch.float64) / made.dim
        angles = torch.arange(length, device=b.device)[:, None] * THETA**-exponents
        self.cos, self.sin = (f(angles).to(self.dtype) for f in (torch.cos, torch.sin))
        self.ids = torch.zeros(1, dtype=torch.int64, device=b.device)
        self.position = torch.zeros(1, dtype=torch.int64, device=b.device)

    @torch.inference_mode()
    def prompt(self, ids: Tensor, every: bool = False) -> Tensor:
        """Logits of the last token of a prompt, or of all; keys and values into the cache, which it begins."""
        positions = torch.arange(len(ids), device=self.device)
        x = self._blocks(functional.embedding(ids, self.embedding).to(self.dtype), positions, None)
        return self._logits(x if every else x[-1:])

    @torch.inference_mode()
    def step(self) -> None:
        """One token more: the most likely one becomes the next id. Nothing waits, so that a graph can hold it."""
        mask = (torch.arange(self.length, device=self.device) <= self.position)[None]
        x = self._blocks(functional.embedding(self.ids, self.embedding).to(self.dtype), self.position, mask)
        self.ids.copy_(self._logits(x)[0].argmax(dim=0, keepdim=True))
        self.position += 1

    def _logits(self, x: Tensor) -> Tensor:
        return self.head(functional.rms_norm(x, x.shape[-1:], self.norm.to(x.dtype), EPS))

    def _blocks(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        made, count = self.made, len(x)
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        for (before, qkv, out, between, up, down), cache in zip(self.layers, self.cache, strict=True):
            heads = qkv(functional.rms_norm(x, x.shape[-1:], before.to(x.dtype), EPS)).view(count, -1, made.dim)
            turned, v = heads.split([made.heads + made.kv_heads, made.kv_heads], dim=1)
            low, high = turned.chunk(2, dim=-1)
            turned = torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)
            q, k = turned.split([made.heads, made.kv_heads], dim=1)
            q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
            cache[0].index_copy_(2, positions, k)
            cache[1].index_copy_(2, positions, v)
            if mask is not None:
                k, v = cache[0], cache[1]
            attended = functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=made.heads != made.kv_heads
            )
            x = x + out(attended[0].transpose(0, 1).reshape(count, -1))
            gate, rest = up(functional.rms_norm(x, x.shape[-1:], between.to(x.dtype), EPS)).chunk(2, dim=-1)
            x = x + down(functional.silu(gate) * rest)
        return x


def reference_logits(b: Bench, made: Config, ids: Tensor) -> Tensor:
    """float32 logits of every token, on the host."""
    return Peer(b, made, len(ids), wide=True).prompt(ids, every=True).cpu()


def llm_int8(w: Tensor) -> Linear:
    """bitsandbytes' LLM.int8() of a weight. ImportError without it."""
    import bitsandbytes as bnb

    rows, columns = w.shape
    layer = bnb.nn.Linear8bitLt(columns, rows, bias=False, has_fp16_weights=False, threshold=6.0)
    layer.weight = bnb.nn.Int8Params(w.half().cpu(), requires_grad=False, has_fp16_weights=False)
    layer = layer.to(w.device)
    return lambda x: layer(x.half()).to(x.dtype)


def apart(ours: Any, theirs: Tensor) -> tuple[float, float]:
    """(relative Frobenius error, mean KL from theirs) of logits [tokens, vocabulary]."""
    ours, theirs = torch.as_tensor(ours).double(), theirs.double()
    expected, got = theirs.log_softmax(dim=-1), ours.log_softmax(dim=-1)
    kl = (expected.exp() * (expected - got)).sum(dim=-1).mean()
    return float((ours - theirs).norm() / theirs.norm()), float(kl)


def tokens(made: Config, count: int) -> Iterator[int]:
    """The prompt of every measurement."""
    return ((7 + 13 * i) % made.vocab for i in range(count))
