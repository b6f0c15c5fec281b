"""The same tokens on one CPU and on two virtual GPUs of 60 MB and the CPU: only the places differ.

python examples/virtual_gpus.py
"""

from bigrun import Runner

PROMPT = "Name three rivers of Europe."
with Runner(progress=False) as alone:
    expected = alone.generate(PROMPT, max_new_tokens=40)
with Runner(gpus="2x60MB", virtual=True, progress=False) as spread:
    print(spread.plan)
    result = spread.generate(PROMPT, max_new_tokens=40)
    for name, memory in spread.memories.items():
        print(f"{name}: allocated {memory.peak_bytes:,} of a budget of {memory.budget_bytes:,} bytes")
print(result.text)
assert result.token_ids == expected.token_ids
