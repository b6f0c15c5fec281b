"""Int8 kernels for language models: LLM.int8() and finer, on CPUs (Numba) and GPUs (Triton), defined by torch references.

Imports nothing of bigrun. Importing this package is quick; the backends are loaded by `bigrun_kernels.ops`.
"""
