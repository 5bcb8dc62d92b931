"""How a resolved job's conversations are written."""

from synthia_batch.job.resolved import PromptSpec
from synthia_batch.prompts.formats import (
    ChatFormat,
    PlainChatFormat,
    PromptFormat,
    SynthiaCardFormat,
    SynthiaFormat,
)
from synthia_batch.prompts.tokenizer import ByteTokenizer, FastTokenizer, Renderer


def open_renderer(spec: PromptSpec) -> Renderer:
    """Return what renders the job's conversations to token ids."""
    tokenizer = ByteTokenizer() if spec.tokenizer is None else FastTokenizer(spec.tokenizer)
    return Renderer(open_format(spec), tokenizer)


def open_format(spec: PromptSpec) -> PromptFormat:
    """Return the job's prompt format."""
    if spec.format == "synthia":
        return SynthiaFormat()
    if spec.format == "synthia-card":
        return SynthiaCardFormat()
    if spec.template is None:
        return PlainChatFormat()
    return ChatFormat(spec.template, spec.special_tokens)
