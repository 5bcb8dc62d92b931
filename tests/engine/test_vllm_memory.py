"""The KV cache of CPU engines takes memory as it is used."""

import subprocess
import sys

PROGRAM = """
import os, torch
from synthia_batch.workers.vllm.cpu_patches import LAZY_BYTES, lazy_zeros

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

eager = torch.zeros
with lazy_zeros():
    before = resident()
    cache = torch.zeros(4 * LAZY_BYTES, dtype=torch.int8, device=torch.device("cpu"))
    assert resident() - before < LAZY_BYTES // 16, "the cache was touched"
    assert torch.zeros(3, 4).shape == (3, 4) and torch.zeros(4, dtype=torch.int8).tolist() == [0] * 4
    assert torch.zeros(LAZY_BYTES // 2, dtype=torch.float16).dtype is torch.float16
assert torch.zeros is eager
assert cache.data_ptr() % 4096 == 0 and cache.dtype is torch.int8
assert not cache[::2**20].any()
cache[123456789] = 7
assert int(cache.view(torch.int32)[123456789 // 4].item()) == 7 << 8
print("lazy")
"""


def test_a_large_cache_is_zero_and_there_only_from_the_first_touch_on() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.stdout == "lazy\n", done.stderr
