"""What the model cards show: transformers, one prompt after the other.

python -m benchmarks.throughput.sides.cards_loop DIRECTORY
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.throughput.process import Ended, python_command
from benchmarks.throughput.sides.base import Answer, Command, Reading
from benchmarks.throughput.workload import Workload

PROMPTS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CardsLoop:
    """Implements `Side`."""

    @property
    def name(self) -> str:
        """The row in the tables."""
        return "the cards' loop"

    @property
    def note(self) -> str:
        """Why its answers are others."""
        return f"the first {PROMPTS} prompts; bfloat16; torch's random numbers, so its answers are others"

    def select(self, workload: Workload) -> Workload:
        """The first few: all of them would take half an hour."""
        return workload.take(PROMPTS)

    def prepare(self, workload: Workload, directory: Path) -> Command:
        """It reads the conversations from the workload."""
        workload.save(directory / "workload")
        return Command(arguments=python_command("benchmarks.throughput.sides.cards_loop", directory))

    def find_first(self, directory: Path) -> bool:
        """It keeps its own times."""
        return False

    def read(self, workload: Workload, directory: Path, ended: Ended) -> Reading:
        """Read what the loop wrote at its end."""
        result = json.loads((directory / "result.json").read_text())
        return Reading(
            answers=[Answer.from_dict(record) for record in result["answers"]],
            ready=result["ready"],
            first=result["answers"][0]["time"],
            last=result["answers"][-1]["time"],
        )


def main(directory: Path) -> None:
    """Answer one prompt after the other, as the cards do."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    workload = Workload.load(directory / "workload")
    loader: Any = AutoModelForCausalLM
    device = workload.engine.device
    tokenizer = AutoTokenizer.from_pretrained(workload.model)
    if workload.is_dummy:
        with torch.device(device):
            config = AutoConfig.from_pretrained(workload.model)
            model = loader.from_config(config, dtype=torch.bfloat16)
    else:
        model = loader.from_pretrained(workload.model, dtype=torch.bfloat16).to(device)
    model.eval()
    sampling = workload.engine.sampling
    ready, answers = time.time(), []
    for prompt in workload.prompts:
        messages = [asdict(message) for message in prompt.messages]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        tokens = torch.tensor([tokenizer.encode(text, add_special_tokens=False)], device=device)
        length = tokens.shape[1]
        torch.manual_seed(prompt.seed)
        with torch.no_grad():
            output = model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                max_length=length + workload.max_tokens,
                use_cache=True,
                do_sample=True,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
            )[0][length:]
        answer = tokenizer.decode(output, skip_special_tokens=True)
        answers.append({"prompt_tokens": length, "tokens": len(output), "text": answer, "time": time.time()})
    (directory / "result.json").write_text(json.dumps({"ready": ready, "answers": answers}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
