"""The same tokens on one CPU and on two virtual GPUs and the CPU: only the places differ.

python examples/virtual_gpus.py [MODEL [GPUS]]
"""

import sys

from bigrun import BigrunError, Runner

PROMPT = "Name three rivers of Europe."


def main(model: str = "smollm2-135m", gpus: str = "2x60MB") -> None:
    with Runner(model, gpus="none", progress=False) as alone:
        expected = alone.generate(PROMPT, max_new_tokens=40)
    with Runner(model, gpus=gpus, virtual=True, progress=False) as spread:
        print(spread.plan)
        result = spread.generate(PROMPT, max_new_tokens=40)
        for name, memory in spread.memories.items():
            print(f"{name}: allocated {memory.peak_bytes:,} of a budget of {memory.budget_bytes:,} bytes")
    print(result.text)
    assert result.token_ids == expected.token_ids, "only the places differ"


try:
    main(*sys.argv[1:3])
except BigrunError as error:
    sys.exit(str(error))
