"""A job made and read back from Python: `python examples/from_python.py [FOLDER]`.

It rehearses with the scripted engine, in a second. Leave out `engine` and `pool` and the embedded model
answers, on workers under Ray. Killed and started again, the script goes on where it was.
"""

import sys
from collections import Counter
from pathlib import Path

from synthia_batch import Job, SynthiaBatchError, open_run, run_job

QUESTIONS = Path(__file__).parent.parent / "inputs" / "questions.jsonl"
FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs")

job = Job(
    input={"path": QUESTIONS, "id_column": "id", "keep_columns": ["topic"]},
    system=["synthia", "Answer as a pirate."],
    num_samples=2,
    sampling={"temperature": 0.7, "max_tokens": 200},
    engine={"kind": "scripted"},
    pool={"kind": "local"},
    output=FOLDER / "from-python",
)

try:
    result = run_job(job, progress=True)
except SynthiaBatchError as exc:  # Each says what happened, where, and what to do next.
    sys.exit(f"{type(exc).__name__}: {exc}")
if not result.is_complete:
    sys.exit(f"{result.finished} of {result.samples} samples so far: start it again to go on")

run = open_run(result.directory)
numbers = run.statistics()
print(
    f"{numbers.finished} samples, {numbers.completion_tokens} tokens, ended by {dict(numbers.finish_reasons)}"
)
print("of each topic:", dict(Counter(sample.kept["topic"] for sample in run.samples())))

whole = [sample for sample in run.samples(kept=[]) if not sample.is_cut_off]
longest = max(whole, key=lambda sample: sample.completion_tokens)
print(f"the longest answer, to {longest.id} by {longest.system!r}: {longest.response}")

for failure in run.failed():
    print(f"{failure.place}: {failure.code}: {failure.message}")
