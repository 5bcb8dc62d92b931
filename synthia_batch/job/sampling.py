"""Sampling: every parameter of vLLM's SamplingParams that a batch job can honour.

The others are in REFUSED, each with an alternative. A row may set the job's keys, and a seed.
"""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from synthia_batch.core.formatting import clip, suggest_name
from synthia_batch.core.types import RowSampling
from synthia_batch.job.fields import Number, Section, Whole
from synthia_batch.job.markers import Flag, IdentityClass, always
from synthia_batch.job.structured import RowStructured
from synthia_batch.job.units import TokenLength

TokenId = Annotated[Whole, Field(ge=0)]
Bias = Annotated[Number, Field(ge=-100, le=100)]
Text = Annotated[str, Field(min_length=1)]

REFUSED = {
    "n": "use -n/--num-samples, which gives each sample a seed of its own",
    "best_of": "vLLM draws no more samples than it returns; make several with -n and choose among them",
    "seed": "use --seed, from which each sample's seed derives; a row may set its own (--sampling-column)",
    "prompt_logprobs": "the dataset has no column for them; score prompts with `vllm serve`",
    "prompt_logprob_token_ids": "the dataset has no column for them; score prompts with `vllm serve`",
    "prompt_logprob_start": "the dataset has no column for them; score prompts with `vllm serve`",
    "logprob_token_ids": "use --logprobs K, which gives the K likeliest tokens at each position",
    "flat_logprobs": "use --logprobs K; the format in which vLLM returns them makes no difference",
    "detokenize": "the dataset holds text, and stop strings are found in it",
    "output_kind": "an answer is read as a whole when it ends",
    "stream_interval": "an answer is read as a whole when it ends",
    "skip_clone": "it is internal to vLLM",
    "structured_outputs": "use --json-schema, --regex, --choice or --grammar",
    "guided_json": "use --json-schema FILE",
    "guided_regex": "use --regex",
    "guided_choice": "use --choice",
    "guided_grammar": "use --grammar FILE",
    "response_format": "use --json-schema FILE",
    "truncate_prompt_tokens": "a prompt that was cut would no longer be the row's; one that is too long ends "
    "in failed/ (prompt_too_long), and of conversations --on-overflow truncate-oldest leaves out the oldest",
    "skip_reading_prefix_cache": "use --set engine.enable_prefix_caching=false; in strict determinism there "
    "is no such cache",
    "routed_experts_prompt_start": "the dataset has no column for the experts that were chosen",
    "trace_decode_token_ids": "it replays tokens that are known, and makes none",
    "watermarking": "the engine's watermark is for all samples: --set engine.watermark_config=...",
    "use_beam_search": "vLLM's engine has no beam search; draw several samples with -n",
    "length_penalty": "it belongs to beam search, which vLLM's engine does not have",
    "early_stopping": "it belongs to beam search, which vLLM's engine does not have",
    "logits_processors": "name their classes with --set engine.logits_processors=[MODULE:CLASS], and "
    "pass them sampling.extra_args",
    "stop_strings": "use sampling.stop",
    "do_sample": "use sampling.temperature: 0 takes the likeliest token each time",
    "max_new_tokens": "use sampling.max_tokens",
    "max_completion_tokens": "use sampling.max_tokens",
}
"""Parameters of vLLM, OpenAI or transformers that a job does not support, and alternatives."""


class RepetitionDetection(Section):
    """Ends an answer that repeats itself, with the finish_reason `repetition`. In tokens."""

    max_pattern_size: Annotated[Whole, Field(ge=1)]
    """The longest pattern to look for."""
    min_pattern_size: Annotated[Whole, Field(ge=1)] = 1
    """The shortest."""
    min_count: Annotated[Whole, Field(ge=2)]
    """How often it must occur consecutively."""

    @field_validator("min_pattern_size")
    @classmethod
    def _fit(cls, value: int, info: Any) -> int:
        if value > info.data.get("max_pattern_size", value):
            raise ValueError("Input should be at most max_pattern_size")
        return value


class Sampling(Section):
    """How tokens are drawn. The defaults are those of the Synthia model cards."""

    temperature: Annotated[
        Number,
        Field(ge=0, le=2),
        Flag("Sampling", "[0.75]", takes=float),
        always("sampling.temperature", "which token is drawn"),
    ] = 0.75
    """0 takes the likeliest token each time."""
    top_p: Annotated[
        Number,
        Field(gt=0, le=1),
        Flag("Sampling", "[1.0]", takes=float),
        always("sampling.top_p", "likewise"),
    ] = 1.0
    """Draw from the likeliest tokens whose probabilities add up to this."""
    top_k: Annotated[
        Whole,
        Field(ge=0),
        BeforeValidator(lambda value: 0 if type(value) is int and value == -1 else value),
        Flag("Sampling", "0 or -1 takes every token. [50]", takes=int),
        always("sampling.top_k", "likewise"),
    ] = 50
    """0 considers every token, and so does -1, vLLM's word for it."""
    min_p: Annotated[Number, Field(ge=0, le=1), always("sampling.min_p", "likewise")] = 0.0
    """Leave out tokens less probable than this share of the likeliest one's probability."""
    repetition_penalty: Annotated[
        Number,
        Field(gt=0),
        always("sampling.repetition_penalty", "likewise"),
    ] = 1.0
    """Over 1 disfavours tokens of the prompt and of the answer so far."""
    presence_penalty: Annotated[
        Number,
        Field(ge=-2, le=2),
        always("sampling.presence_penalty", "likewise"),
    ] = 0.0
    """Over 0 disfavours tokens that are in the answer."""
    frequency_penalty: Annotated[
        Number,
        Field(ge=-2, le=2),
        always("sampling.frequency_penalty", "likewise"),
    ] = 0.0
    """Over 0 disfavours tokens by how often the answer has them."""
    max_tokens: Annotated[
        TokenLength,
        Field(ge=1),
        Flag("Sampling", "New tokens per answer, such as 512 or 4K. [1024]", metavar="COUNT"),
        always("sampling.max_tokens", "where an answer ends"),
    ] = 1024
    """New tokens per answer; fewer if prompt and answer would exceed max_model_len."""
    stop: Annotated[
        tuple[Text, ...],
        Flag("Sampling", "Ends an answer. Repeatable.", metavar="TEXT", takes=list),
        always("sampling.stop", "where an answer ends; with the prompt format's own stop strings"),
    ] = ()
    """Strings that end an answer and are not part of it."""
    min_tokens: Annotated[
        TokenLength,
        Field(ge=0),
        always(
            "sampling",
            "where an answer may end; this key and the next ones only if not at their defaults",
        ),
    ] = 0
    """No answer ends by itself before it has this many tokens; max_tokens takes precedence."""
    stop_token_ids: Annotated[tuple[TokenId, ...], always("sampling", "where an answer ends")] = ()
    """Tokens that end an answer, beside the model's own."""
    ignore_eos: Annotated[bool, always("sampling", "likewise")] = False
    """Continue past the model's end token, up to max_tokens."""
    include_stop_str_in_output: Annotated[
        bool,
        always("sampling", "which part of an answer is its text"),
    ] = False
    """Leave the stop string that ended an answer at its end."""
    skip_special_tokens: Annotated[bool, always("sampling", "likewise")] = True
    """Leave special tokens out of an answer's text."""
    spaces_between_special_tokens: Annotated[bool, always("sampling", "likewise")] = True
    """Write spaces between special tokens, if they are in the text."""
    bad_words: Annotated[tuple[Text, ...], always("sampling", "which token is drawn")] = ()
    """Texts that no answer may contain. Their last token is never drawn after the others."""
    logit_bias: Annotated[dict[TokenId, Bias], always("sampling", "likewise")] = Field(default_factory=dict)
    """Added to a token's logit, by its id: from -100, never, to 100."""
    allowed_token_ids: Annotated[tuple[TokenId, ...], always("sampling", "likewise")] = ()
    """Draw from these tokens only."""
    repetition_detection: Annotated[
        RepetitionDetection | None,
        always("sampling", "where an answer ends"),
    ] = None
    """Ends an answer that repeats itself."""
    logprobs: Annotated[
        Annotated[Whole, Field(ge=0)] | None,
        Flag("Sampling", "Keep each token's log-probability and the K likeliest.", metavar="K", takes=int),
        always("sampling", "a column of the output"),
    ] = None
    """Keep the log-probabilities of each token and of this many likeliest at its position, in a column."""
    thinking_token_budget: Annotated[
        Annotated[TokenLength, Field(ge=0)] | None,
        always("sampling", "how long the reasoning is"),
    ] = None
    """The maximum number of reasoning tokens; needs a reasoning parser. Default: no separate limit."""
    extra_args: Annotated[
        dict[str, Any],
        always("sampling", "the user's own logits processors depend on it"),
    ] = Field(default_factory=dict)
    """Arguments for your own logits processors (engine.logits_processors)."""

    @field_validator("stop", "bad_words", mode="before")
    @classmethod
    def _accept_one_string(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("stop_token_ids", "allowed_token_ids", mode="before")
    @classmethod
    def _accept_one_token(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value


def identify_sampling(sampling: Sampling) -> dict[str, Any]:
    """Return the part of `sampling` that belongs to a job's identity, as JSON values.

    Keys with a field of their own are always in it, the others only if not at their defaults.
    """
    fields = Sampling.model_fields
    return {
        name: value
        for name, value in sampling.model_dump(mode="json").items()
        if _is_always_identified(name)
        or getattr(sampling, name) != fields[name].get_default(call_default_factory=True)
    }


def _is_always_identified(name: str) -> bool:
    classes = (entry for entry in Sampling.model_fields[name].metadata if isinstance(entry, IdentityClass))
    return any(entry.field == f"sampling.{name}" for entry in classes)


class RowKeys(Sampling):
    """The keys of `sampling`, and a seed. Keys that a row does not set are the job's."""

    seed: Annotated[Whole, Field(ge=0, lt=2**63)] | None = None
    """The seed of the row's first sample; those of the others are derived from it."""
    structured: RowStructured | None = None
    """The structure of the row's answers."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the chat template for the row's prompts, over those of the job."""

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if "logprobs" in self.model_fields_set:
            raise ValueError("logprobs: the column exists for every row or for none; use --logprobs K")
        if {"min_tokens", "max_tokens"} <= self.model_fields_set and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}")
        if self.structured is not None and (self.min_tokens or self.ignore_eos):
            raise ValueError(
                "structured: it determines where an answer ends; leave out min_tokens and ignore_eos"
            )
        return self

    def to_row(self) -> RowSampling:
        """Return the value that is kept with a row."""
        values = {
            name: getattr(self, name) for name in Sampling.model_fields if name in self.model_fields_set
        }
        structure = self.structured.to_structure() if self.structured is not None else None
        return RowSampling(
            values=values,
            seed=self.seed,
            structure=structure,
            template_kwargs=self.chat_template_kwargs,
        )


def explain_row_fault(exc: ValidationError) -> str:
    """Return the faults in the keys and values of a row, on one line."""
    return "; ".join(
        _explain(fault["loc"], fault["type"], fault["msg"], fault["input"]) for fault in exc.errors()
    )


def _explain(place: tuple[int | str, ...], kind: str, message: str, value: object) -> str:
    key = ".".join(map(str, place))
    what = message.removeprefix("Value error, ")
    if kind != "extra_forbidden":
        return f"{key}: {what}, got {clip(repr(value), 80)}" if key else what
    name = str(place[-1])
    if name in REFUSED:
        return f"{key}: not supported in a row: {REFUSED[name]}"
    hint = suggest_name(name, RowKeys.model_fields, f"a row may have {', '.join(RowKeys.model_fields)}", repr)
    return f"{name!r} is not a key of sampling; {hint}"
