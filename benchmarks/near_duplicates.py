"""What finding near duplicates costs: time, and the most memory of the process.

    python -m benchmarks.near_duplicates 20000 100000

Half of the texts are new, of 40 invented words; half are copies of one before with two words changed.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

from synthia_batch.results.select.near import SIGNATURE_NUMBERS, find_near, sign

WORDS = 40
CHANGED = 2
REMEMBERED = 1000
"""Copies are of one of the last so many texts."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", nargs="+", type=int, help="texts")
    parser.add_argument("--near", type=float, default=0.85, help="similarity")
    parser.add_argument("--here", action="store_true", help="measure in this process")
    arguments = parser.parse_args()
    for size in arguments.sizes:
        if arguments.here:
            print(json.dumps(measure(size, arguments.near)), flush=True)
        else:  # A process of its own has a peak of memory of its own.
            again = [sys.executable, "-m", "benchmarks.near_duplicates", str(size), "--here"]
            subprocess.run([*again, "--near", str(arguments.near)], check=True)


def make_texts(size: int) -> Iterator[str]:
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 10))) for _ in range(20_000)]
    last: list[list[str]] = []
    for number in range(size):
        if last and rng.random() < 0.5:
            text = list(rng.choice(last))
            for _ in range(CHANGED):
                text[rng.randrange(WORDS)] = rng.choice(words)
        else:
            text = rng.choices(words, k=WORDS)
        if len(last) < REMEMBERED:
            last.append(text)
        else:
            last[number % REMEMBERED] = text
        yield " ".join(text)


def measure(size: int, near: float) -> dict[str, object]:
    signed, seconds, letters = bytearray(), 0.0, 0
    for text in make_texts(size):
        letters += len(text)
        started = time.perf_counter()
        signed.extend(sign(text))
        seconds += time.perf_counter() - started
    signatures = np.frombuffer(signed, np.uint32).reshape(-1, SIGNATURE_NUMBERS)
    started = time.perf_counter()
    found = sum(1 for _ in find_near(signatures, np.arange(size), near))
    return {
        "texts": size,
        "letters": round(letters / size),
        "near": near,
        "sign_seconds": round(seconds, 1),
        "find_seconds": round(time.perf_counter() - started, 1),
        "found": found,
        "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


if __name__ == "__main__":
    main()
