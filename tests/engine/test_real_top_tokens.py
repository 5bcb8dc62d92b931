"""Tokens drawn among those few that top-k and top-p leave: those that vLLM draws, for every row by itself."""

import pytest
from conftest import NEEDS_VLLM_ON_CPUS, run_probe

from synthia_batch.models.demo import prepare_demo_model

pytestmark = [pytest.mark.engine, NEEDS_VLLM_ON_CPUS]

SAME_PROBE = """
import torch
import vllm._custom_ops  # loads the kernels
from synthia_batch.workers.vllm.sampler import draw_tokens
from synthia_batch.workers.vllm.sampler import find_top_tokens
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p


def draw(vocabulary, has_ties):
    torch.manual_seed(0)
    logits = torch.randn(96, vocabulary) * 1.5
    logits[torch.arange(96).unsqueeze(1), torch.randint(vocabulary, (96, 40))] += 14  # a head, as models have
    logits[1::4, : vocabulary - 30] = -torch.inf  # fewer tokens allowed than asked for
    return logits.bfloat16().float() if has_ties else logits


def compare(name, logits, k, p):
    k = None if k is None else torch.tensor(k, dtype=torch.int32).repeat(96 // len(k))
    p = None if p is None else torch.tensor(p).repeat(96 // len(p))
    top, wanted = find_top_tokens(logits, k, p), apply_top_k_top_p(logits.clone(), k, p)
    found = torch.full_like(logits, -torch.inf)
    row, column = (top.values > -torch.inf).nonzero(as_tuple=True)
    found[row, top.tokens[row, column]] = top.values[row, column]
    is_kept_alike = torch.equal(found[top.is_found], wanted[top.is_found])
    seeds = [torch.randint(0, 2**31, (96,)) for _ in range(20)]
    is_drawn_alike = all(
        torch.equal(draw_tokens(logits.clone(), one, k, p), torch.ops._C.fused_gumbel_argmax(wanted, one))
        for one in seeds
    )
    print(name, logits.shape[1], is_kept_alike, is_drawn_alike, int(top.is_found.sum()))
    if p is not None:  # Which of equal logits a top-p cuts off is open; how many, is not.
        rows = found[top.is_found].sort().values, wanted[top.is_found].sort().values
        print("values of", name, torch.equal(*rows))


for vocabulary in (49152, 32001, 16384):
    all_of_it = vocabulary
    tied, apart = draw(vocabulary, has_ties=True), draw(vocabulary, has_ties=False)
    compare("k", tied, [50], None)
    compare("many k", tied, [1, 2, 3, 7, 50, 256, 257, all_of_it], None)
    compare("k and p", apart, [50, 20, 5, all_of_it], [0.9, 0.5, 1.0, 0.05])
    compare("p", apart, None, [0.9, 0.95, 0.01])
compare("tied p", tied, None, [0.9, 0.95, 0.5])
compare("tied k and p", tied, [50, 20], [0.9, 0.5, 0.7])
compare("p of most", draw(49152, has_ties=False) * 0.01, None, [0.99])
equal, alike = torch.zeros(96, 49152), torch.zeros(96, 49152)
alike[:, ::400] = 1.0
compare("all equal", equal, [50], None)
compare("some equal", alike, [50], None)
broken = draw(49152, has_ties=True)
broken[3, 100] = torch.nan
broken[7, [5, 900]] = torch.inf
broken[9] = -torch.inf
k, seeds = torch.full((96,), 50), torch.arange(96)
wanted = torch.ops._C.fused_gumbel_argmax(apply_top_k_top_p(broken.clone(), k, None), seeds)
is_found = find_top_tokens(broken, k, None).is_found
print("no numbers", is_found.logical_not().nonzero().flatten().tolist())
print("drawn of them", torch.equal(draw_tokens(broken, seeds, k, None), wanted))
flat = draw(32001, has_ties=True)
flat[4] = 0.0
compare("one row of equals", flat, [50], None)
"""


def test_what_is_left_and_drawn_is_what_vllm_leaves_and_draws() -> None:
    printed = run_probe(SAME_PROBE, OMP_NUM_THREADS="1")
    # The last number: in how many of the 96 rows it was found, and not left to vLLM.
    for vocabulary in (49152, 32001, 16384):
        assert f"k {vocabulary} True True 96" in printed
        assert f"many k {vocabulary} True True 72" in printed
        assert f"k and p {vocabulary} True True 96" in printed
        assert f"p {vocabulary} True True 96" in printed
    assert "p of most 49152 True True 24" in printed
    assert "all equal 49152 True True 0" in printed
    assert "some equal 49152 True True 96" in printed
    assert {"values of tied p True", "values of tied k and p True"} <= set(printed)
    assert "no numbers [3, 7, 9]" in printed
    assert "drawn of them True" in printed
    assert "one row of equals 32001 True True 95" in printed


ALONE_PROBE = """
import torch
import vllm._custom_ops  # loads the kernels
from synthia_batch.workers.vllm.sampler import draw_tokens, score_tokens
from synthia_batch.workers.vllm.sampler import find_top_tokens

torch.manual_seed(0)
logits = torch.randn(96, 49152) * 2
logits[:48, ::300] += torch.randn(48, 164) * 8
logits = logits.bfloat16().float()
logits[5] = 0.0
k = torch.tensor([50, 49152, 7, 256, 300, 49152], dtype=torch.int32).repeat(16)
p = torch.tensor([1.0, 0.9, 0.5, 0.95, 0.8, 1.0, 0.3, 0.99]).repeat(12)
seeds = torch.arange(96) * 1_000_003


def take(rows, with_k, with_p):
    given = logits[rows].clone(), k[rows] if with_k else None, p[rows] if with_p else None
    top = find_top_tokens(*given)
    scores = score_tokens(top, seeds[rows])
    is_kept = top.values > -torch.inf
    kept = [
        (tokens[mask].tolist(), values[mask].tolist())
        for tokens, values, mask in zip(top.tokens, scores, is_kept)
    ]
    return list(zip(top.is_found.tolist(), kept)), draw_tokens(given[0], seeds[rows], *given[1:]).tolist()


for name, with_k, with_p in (("k", True, False), ("p", False, True), ("both", True, True)):
    wanted = take(slice(None), with_k, with_p)
    for rows in (1, 2, 5, 17, 64):
        pieces = [take(slice(start, start + rows), with_k, with_p) for start in range(0, 96, rows)]
        found = tuple([one for piece in pieces for one in piece[part]] for part in (0, 1))
        print(name, rows, found == wanted)
"""


def test_a_row_is_drawn_alike_among_any_others() -> None:
    printed = run_probe(ALONE_PROBE, OMP_NUM_THREADS="1")
    expected = [f"{name} {rows} True" for name in ("k", "p", "both") for rows in (1, 2, 5, 17, 64)]
    assert printed[-len(expected) :] == expected


ASKED_PROBE = """
from types import SimpleNamespace
import torch
import vllm._custom_ops  # as an engine has it
from synthia_batch.workers.vllm.sampler import can_draw_from_top

k, p = torch.tensor([50]), torch.tensor([0.9])


def ask(mode="raw_logprobs", is_fp64=False, rows=1, vocabulary=49152, k=k, p=p):
    sampler = SimpleNamespace(logprobs_mode=mode, use_fp64_gumbel=is_fp64)
    return can_draw_from_top(sampler, torch.zeros(rows, vocabulary), k, p)


print(ask(), ask(mode="raw_logits"), ask(k=None), ask(p=None))
print(ask(mode="processed_logprobs"), ask(mode="processed_logits"), ask(is_fp64=True))
print(ask(rows=0), ask(vocabulary=16383), ask(k=None, p=None))
"""


def test_vllm_draws_itself_where_more_is_asked_or_nothing_is_left_out() -> None:
    assert run_probe(ASKED_PROBE)[-3:] == ["True True True True", "False False False", "False False False"]


ENGINE_PROBE = """
import dataclasses
import sys
from pathlib import Path
from synthia_batch.workers import load_engine
from synthia_batch.workers.engine import Placement
from synthia_batch.core.types import Request
from test_engine_environment import SPEC

sampling = SPEC.sampling.model_copy(update={"temperature": 1.0, "top_k": 40})
model = dataclasses.replace(SPEC.model, path=Path(sys.argv[1]))
spec = dataclasses.replace(SPEC, model=model, sampling=sampling, max_model_len=512)
engine = load_engine(spec, Placement())

from synthia_batch.workers.vllm import sampler as vllm_draw

can_draw_from_top = vllm_draw.can_draw_from_top


def make(is_allowed):
    answers = []

    def can_draw(*given):
        answers.append(is_allowed and can_draw_from_top(*given))
        return answers[-1]

    vllm_draw.can_draw_from_top = can_draw
    for n in range(6):
        engine.add(Request(ordinal=n, token_ids=range(1000 + n, 1040 + n), seed=n, max_tokens=24))
    texts = {}
    while len(texts) < 6:
        texts |= {outcome.ordinal: outcome.response for outcome in engine.step()}
    return texts, sum(answers)


ours, theirs = make(True), make(False)
print("same", ours[0] == theirs[0], "texts", len(set(ours[0].values())))
print("steps among few", ours[1] >= 24, theirs[1])
"""


def test_an_engine_draws_the_tokens_that_vllm_draws() -> None:
    printed = run_probe(ENGINE_PROBE, str(prepare_demo_model()))
    assert printed[-2:] == ["same True texts 6", "steps among few True 0"]
