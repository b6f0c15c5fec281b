"""The catalog's dense models, one row each: name, repo, shape, parameters as published, and where that is."""

from typing import Any

from bigrun.model.catalog.entry import CARD, CONFIG, HUB, INDEX, TWICE, config, row

TIED = {"tie_word_embeddings": True}
HALF = {"torch_dtype": "float16"}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192}
THREE = {"rope_theta": 500000.0, "rms_norm_eps": 1e-5}
LONG = {**THREE, "rope_scaling": LLAMA3}
SMALL = {**THREE, **TIED, "rope_scaling": {**LLAMA3, "factor": 32.0}}
SMOL = {**TIED, "rms_norm_eps": 1e-5}
WIDE = {"head_dim": 128}
GEMMA = {"head_dim": 256}
WINDOW = {"sliding_window": 4096}
NO_WINDOW = {"sliding_window": None}  # as published: left out, it would be 4,096
PHI3 = {"sliding_window": 2047}
ROTARY = CONFIG + ", whose page also counts the rotary frequencies that the files hold"
FIRST = "Touvron et al. 2023 (arXiv 2302.13971), table 2; weights converted by {repo}"
OPT = "Zhang et al. 2022 (arXiv 2205.01068), table 1"
VISION = CONFIG + ", its text alone, without the part that sees; the model card states the count"
MISTRAL = "mistralai/"


def _llama(*shape: Any, **more: Any) -> dict[str, Any]:
    return config("Llama", *shape, **more)


def _bloom(hidden: int, layers: int, heads: int, dtype: str) -> dict[str, Any]:
    settings = {"architectures": ["BloomForCausalLM"], "vocab_size": 250880, "hidden_size": hidden, "n_layer": layers}
    return settings | {"n_head": heads, "seq_length": 2048, "torch_dtype": dtype}


def _opt(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    settings = config("OPT", 50272, hidden, 0, layers, heads, heads, 2048, ffn_dim=4 * hidden, **HALF)
    return {key: value for key, value in settings.items() if key not in ("intermediate_size", "num_key_value_heads")}


def _qwen2(*shape: int, **more: Any) -> dict[str, Any]:
    return config("Qwen2", *shape, use_sliding_window=False, **more)


def _qwen3(hidden: int, inner: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return config("Qwen3", 151936, hidden, inner, layers, heads, 8, 40960, head_dim=128, **more)


def _gemma3(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    more |= {"sliding_window": 1024, "sliding_window_pattern": 6}
    return config("Gemma3", 262208, hidden, inner, layers, heads, kv_heads, 131072, **more)


def _falcon(hidden: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    settings = {"architectures": ["FalconForCausalLM"], "vocab_size": 65024, "hidden_size": hidden}
    settings |= {"num_hidden_layers": layers, "num_attention_heads": heads, "parallel_attn": True, "multi_query": True}
    return settings | {"bias": False, "alibi": False, "torch_dtype": "bfloat16", **more}


def _new(kv_heads: int) -> dict[str, Any]:
    return {"new_decoder_architecture": True, "num_kv_heads": kv_heads}


# fmt: off
ENTRIES = (
    row("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct",
        _llama(49152, 576, 1536, 30, 9, 3, 8192, rope_theta=100000.0, **SMOL), 134_515_008, HUB),
    row("smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct",
        _llama(49152, 960, 2560, 32, 15, 5, 8192, rope_theta=100000.0, **SMOL), 361_821_120, HUB),
    row("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        _llama(49152, 2048, 8192, 24, 32, 32, 8192, rope_theta=130000.0, **SMOL), 1_711_376_384, HUB),
    row("tinyllama-1.1b", "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        _llama(32000, 2048, 5632, 22, 32, 4, 2048), 1_100_048_384, HUB),

    row("llama-7b", "huggyllama/llama-7b", _llama(32000, 4096, 11008, 32, 32, 32, 2048, **HALF), "6.7B", FIRST),
    row("llama-13b", "huggyllama/llama-13b", _llama(32000, 5120, 13824, 40, 40, 40, 2048, **HALF), "13.0B", FIRST),
    row("llama-30b", "huggyllama/llama-30b", _llama(32000, 6656, 17920, 60, 52, 52, 2048, **HALF), "32.5B", FIRST),
    # The table says 65.2B; the shapes of the same table give 65.29.
    row("llama-65b", "huggyllama/llama-65b", _llama(32000, 8192, 22016, 80, 64, 64, 2048, **HALF), "65B", FIRST),
    row("llama-2-7b", "meta-llama/Llama-2-7b-hf", _llama(32000, 4096, 11008, 32, 32, 32, 4096, **HALF),
        6_738_417_664, ROTARY, beside=32 * 64, tuned="meta-llama/Llama-2-7b-chat-hf"),
    row("llama-2-13b", "meta-llama/Llama-2-13b-hf", _llama(32000, 5120, 13824, 40, 40, 40, 4096, **HALF),
        13_015_866_880, ROTARY, beside=40 * 64, tuned="meta-llama/Llama-2-13b-chat-hf"),
    row("llama-2-70b", "meta-llama/Llama-2-70b-hf", _llama(32000, 8192, 28672, 80, 64, 8, 4096, **HALF),
        68_976_653_312, ROTARY, beside=80 * 64, tuned="meta-llama/Llama-2-70b-chat-hf"),
    row("codellama-34b", "codellama/CodeLlama-34b-hf", _llama(32000, 8192, 22016, 48, 64, 8, 16384),
        "34B", CARD, tuned="codellama/CodeLlama-34b-Instruct-hf"),
    row("llama-3-8b", "meta-llama/Meta-Llama-3-8B", _llama(128256, 4096, 14336, 32, 32, 8, 8192, **THREE),
        8_030_261_248, HUB, tuned="meta-llama/Meta-Llama-3-8B-Instruct"),
    row("llama-3-70b", "meta-llama/Meta-Llama-3-70B", _llama(128256, 8192, 28672, 80, 64, 8, 8192, **THREE),
        70_553_706_496, HUB, tuned="meta-llama/Meta-Llama-3-70B-Instruct"),
    row("llama-3.1-8b", "meta-llama/Llama-3.1-8B", _llama(128256, 4096, 14336, 32, 32, 8, 131072, **LONG),
        8_030_261_248, HUB, tuned="meta-llama/Llama-3.1-8B-Instruct"),
    row("llama-3.1-70b", "meta-llama/Llama-3.1-70B", _llama(128256, 8192, 28672, 80, 64, 8, 131072, **LONG),
        70_553_706_496, HUB, tuned="meta-llama/Llama-3.1-70B-Instruct"),
    row("llama-3.1-405b", "meta-llama/Llama-3.1-405B", _llama(128256, 16384, 53248, 126, 128, 8, 131072, **LONG),
        405_853_388_800, HUB, tuned="meta-llama/Llama-3.1-405B-Instruct"),
    row("llama-3.2-1b", "meta-llama/Llama-3.2-1B", _llama(128256, 2048, 8192, 16, 32, 8, 131072, head_dim=64, **SMALL),
        1_235_814_400, HUB, tuned="meta-llama/Llama-3.2-1B-Instruct"),
    row("llama-3.2-3b", "meta-llama/Llama-3.2-3B", _llama(128256, 3072, 8192, 28, 24, 8, 131072, **WIDE, **SMALL),
        3_212_749_824, HUB, tuned="meta-llama/Llama-3.2-3B-Instruct"),
    row("llama-3.3-70b", "meta-llama/Llama-3.3-70B-Instruct",
        _llama(128256, 8192, 28672, 80, 64, 8, 131072, **LONG), 70_553_706_496, HUB),
    row("yi-34b", "01-ai/Yi-34B", _llama(64000, 7168, 20480, 60, 56, 8, 4096), 34_388_917_248, HUB,
        tuned="01-ai/Yi-34B-Chat"),

    row("mistral-7b", MISTRAL + "Mistral-7B-v0.1", config("Mistral", 32000, 4096, 14336, 32, 32, 8, 32768, **WINDOW),
        7_241_732_096, INDEX, tuned=MISTRAL + "Mistral-7B-Instruct-v0.1"),
    row("mistral-7b-v0.3", MISTRAL + "Mistral-7B-v0.3", config("Mistral", 32768, 4096, 14336, 32, 32, 8, 32768, **NO_WINDOW),
        7_248_023_552, INDEX, tuned=MISTRAL + "Mistral-7B-Instruct-v0.3"),
    row("mistral-nemo-12b", MISTRAL + "Mistral-Nemo-Instruct-2407",
        config("Mistral", 131072, 5120, 14336, 40, 32, 8, 131072, **WIDE, **NO_WINDOW), 12_247_782_400, INDEX),
    row("mistral-small-24b", MISTRAL + "Mistral-Small-24B-Base-2501",
        config("Mistral", 131072, 5120, 32768, 40, 32, 8, 32768, **WIDE, **NO_WINDOW), 23_572_403_200, HUB,
        tuned=MISTRAL + "Mistral-Small-24B-Instruct-2501"),
    row("mistral-large", MISTRAL + "Mistral-Large-Instruct-2407",
        config("Mistral", 32768, 12288, 28672, 88, 96, 8, 131072, **WIDE, **NO_WINDOW), "123B", CARD),

    row("qwen2-7b", "Qwen/Qwen2-7B", _qwen2(152064, 3584, 18944, 28, 28, 4, 131072), 7_615_616_512, INDEX,
        tuned="Qwen/Qwen2-7B-Instruct", tuned_context=32768),
    row("qwen2-72b", "Qwen/Qwen2-72B", _qwen2(152064, 8192, 29568, 80, 64, 8, 131072), 72_706_203_648, INDEX,
        tuned="Qwen/Qwen2-72B-Instruct", tuned_context=32768),
    row("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B", _qwen2(151936, 896, 4864, 24, 14, 2, 32768, **TIED), 494_032_768, HUB,
        tuned="Qwen/Qwen2.5-0.5B-Instruct"),
    row("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B", _qwen2(151936, 1536, 8960, 28, 12, 2, 131072, **TIED),
        1_543_714_304, HUB, tuned="Qwen/Qwen2.5-1.5B-Instruct", tuned_context=32768),
    row("qwen2.5-3b", "Qwen/Qwen2.5-3B", _qwen2(151936, 2048, 11008, 36, 16, 2, 32768, **TIED), 3_085_938_688, INDEX,
        tuned="Qwen/Qwen2.5-3B-Instruct"),
    row("qwen2.5-7b", "Qwen/Qwen2.5-7B", _qwen2(152064, 3584, 18944, 28, 28, 4, 131072), 7_615_616_512, INDEX,
        tuned="Qwen/Qwen2.5-7B-Instruct", tuned_context=32768),
    row("qwen2.5-14b", "Qwen/Qwen2.5-14B", _qwen2(152064, 5120, 13824, 48, 40, 8, 131072), 14_770_033_664, INDEX,
        tuned="Qwen/Qwen2.5-14B-Instruct", tuned_context=32768),
    row("qwen2.5-32b", "Qwen/Qwen2.5-32B", _qwen2(152064, 5120, 27648, 64, 40, 8, 131072), 32_763_876_352, INDEX,
        tuned="Qwen/Qwen2.5-32B-Instruct", tuned_context=32768),
    row("qwen2.5-72b", "Qwen/Qwen2.5-72B", _qwen2(152064, 8192, 29568, 80, 64, 8, 131072), 72_706_203_648, INDEX,
        tuned="Qwen/Qwen2.5-72B-Instruct", tuned_context=32768),
    row("qwq-32b", "Qwen/QwQ-32B", _qwen2(152064, 5120, 27648, 64, 40, 8, 40960), "32.8B",
        CONFIG + ", whose page says 32.8B (its card says 32.5B)"),
    row("qwen3-0.6b", "Qwen/Qwen3-0.6B", _qwen3(1024, 3072, 28, 16, **TIED), 751_632_384, TWICE, beside=151936 * 1024),
    row("qwen3-1.7b", "Qwen/Qwen3-1.7B", _qwen3(2048, 6144, 28, 16, **TIED), 2_031_739_904, TWICE, beside=151936 * 2048),
    row("qwen3-4b", "Qwen/Qwen3-4B", _qwen3(2560, 9728, 36, 32, **TIED), 4_022_468_096, INDEX),
    row("qwen3-8b", "Qwen/Qwen3-8B", _qwen3(4096, 12288, 36, 32), 8_190_735_360, INDEX),
    row("qwen3-14b", "Qwen/Qwen3-14B", _qwen3(5120, 17408, 40, 40), 14_768_307_200, INDEX),
    row("qwen3-32b", "Qwen/Qwen3-32B", _qwen3(5120, 25600, 64, 64), 32_762_123_264, INDEX),

    row("gemma-2b", "google/gemma-2b", config("Gemma", 256000, 2048, 16384, 18, 8, 1, 8192, **GEMMA),
        2_506_172_416, HUB),
    row("gemma-7b", "google/gemma-7b", config("Gemma", 256000, 3072, 24576, 28, 16, 16, 8192, **GEMMA),
        8_537_680_896, HUB),
    # The files of the bases of Gemma 2 hold 32 bits a parameter; these are the ones that people run.
    row("gemma-2-2b", "google/gemma-2-2b-it",
        config("Gemma2", 256000, 2304, 9216, 26, 8, 4, 8192, **GEMMA, **WINDOW), 2_614_341_888, HUB),
    row("gemma-2-9b", "google/gemma-2-9b-it",
        config("Gemma2", 256000, 3584, 14336, 42, 16, 8, 8192, **GEMMA, **WINDOW), 9_241_705_984, HUB),
    row("gemma-2-27b", "google/gemma-2-27b-it",
        config("Gemma2", 256000, 4608, 36864, 46, 32, 16, 8192, **WIDE, **WINDOW), 27_227_128_320, HUB),
    row("gemma-3-1b", "google/gemma-3-1b-it",
        config("Gemma3", 262144, 1152, 6912, 26, 4, 1, 32768, **GEMMA, sliding_window=512, sliding_window_pattern=6),
        999_885_952, HUB),
    row("gemma-3-4b", "google/gemma-3-4b-it", _gemma3(2560, 10240, 34, 8, 4, **GEMMA), "4B", VISION),
    row("gemma-3-12b", "google/gemma-3-12b-it", _gemma3(3840, 15360, 48, 16, 8, **GEMMA), "12B", VISION),
    row("gemma-3-27b", "google/gemma-3-27b-it", _gemma3(5376, 21504, 62, 32, 16, **WIDE), "27B", VISION),

    row("phi-2", "microsoft/phi-2",
        config("Phi", 51200, 2560, 10240, 32, 32, 32, 2048, partial_rotary_factor=0.4, **HALF), 2_779_683_840, HUB),
    row("phi-3-mini", "microsoft/Phi-3-mini-4k-instruct",
        config("Phi3", 32064, 3072, 8192, 32, 32, 32, 4096, **PHI3), 3_821_079_552, INDEX),
    row("phi-3-medium", "microsoft/Phi-3-medium-4k-instruct",
        config("Phi3", 32064, 5120, 17920, 40, 40, 10, 4096, **PHI3), "14B", CARD),
    row("phi-4", "microsoft/phi-4", config("Phi3", 100352, 5120, 17920, 40, 40, 10, 16384), 14_659_507_200, INDEX),

    row("gpt-neox-20b", "EleutherAI/gpt-neox-20b",
        config("GPTNeoX", 50432, 6144, 24576, 44, 64, 64, 2048, rotary_pct=0.25, **HALF), 20_554_567_680, CARD),
    row("pythia-12b", "EleutherAI/pythia-12b",
        config("GPTNeoX", 50688, 5120, 20480, 36, 40, 40, 2048, rotary_pct=0.25, **HALF), 11_846_072_320, CARD),
    row("falcon-7b", "tiiuae/falcon-7b", _falcon(4544, 32, 71), 7_217_189_760, TWICE, beside=65024 * 4544),
    row("falcon-40b", "tiiuae/falcon-40b", _falcon(8192, 60, 128, **_new(8)), 41_835_970_560, TWICE, beside=65024 * 8192),
    row("falcon-180b", "tiiuae/falcon-180B", _falcon(14848, 80, 232, **_new(8)), 179_522_565_120, TWICE,
        beside=65024 * 14848),
    row("command-r", "CohereForAI/c4ai-command-r-v01", config("Cohere", 256000, 8192, 22528, 40, 64, 64, 8192, **HALF),
        "35B", CARD),

    row("bloom-560m", "bigscience/bloom-560m", _bloom(1024, 24, 16, "float16"), 559_214_592, CARD),
    row("bloom-3b", "bigscience/bloom-3b", _bloom(2560, 30, 32, "float16"), 3_002_557_440, CARD),
    row("bloom-7b1", "bigscience/bloom-7b1", _bloom(4096, 30, 32, "float16"), 7_069_016_064, CARD),
    row("bloom-176b", "bigscience/bloom", _bloom(14336, 70, 112, "bfloat16"), 176_247_271_424, CARD),
    row("opt-1.3b", "facebook/opt-1.3b", _opt(2048, 24, 32), "1.3B", OPT),
    row("opt-6.7b", "facebook/opt-6.7b", _opt(4096, 32, 32), "6.7B", OPT),
    row("opt-13b", "facebook/opt-13b", _opt(5120, 40, 40), "13B", OPT),
    row("opt-30b", "facebook/opt-30b", _opt(7168, 48, 56), "30B", OPT),
    row("opt-66b", "facebook/opt-66b", _opt(9216, 64, 72), "66B", OPT),
    # The weights of the largest OPT were given out on request only: a name for planning.
    row("opt-175b", "", _opt(12288, 96, 96), "175B", OPT),
)
# fmt: on
