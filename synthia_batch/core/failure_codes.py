"""The codes of failed samples: the column `code` of failed/, and what each of them means."""

from collections.abc import Mapping

FAILURE_CODES: Mapping[str, str] = {
    "bad_row": "its row has a fault, and the job has `on_bad_row: fail`",
    "prompt_empty": "its prompt has no text",
    "prompt_too_long": "its prompt leaves no room for an answer in `max_model_len`",
    "context_overflow": "a later turn of its conversation left no room for an answer",
    "prompt_not_expressible": "the chat template refuses the conversation, or leaves out a part of it",
    "adapter_unknown": "its row names a LoRA adapter that the job does not have",
    "structured_output_invalid": "its answer does not match the required structure",
    "structured_output_cut_off": "`max_tokens` or the context ended its answer within the structure",
    "reasoning_not_parsed": "vLLM's reasoning parser failed on its answer",
    "tool_calls_not_parsed": "vLLM's parser of tool calls failed on its answer",
    "refused_by_engine": "vLLM's own validation, or a server, refused its request",
    "content_filter": "the server's content filter refused or ended its answer",
    "engine_error": "vLLM ended it with an error three times, or a server failed on it four times",
    "engine_crash": "the engine died or hung twice with this sample alone in it",
    "not_accepted": "`accept` refused its last candidate as well",
    "accept_failed": "`accept` has no value for one of its answers",
    "not_selected": "of a selection: a step did not keep it",
    "expression_failed": "of a selection: an expression failed on it",
    "flagged_empty": "`drop_flagged`: its answer is blank",
    "flagged_repetition": "`drop_flagged`: its answer repeats itself",
    "flagged_refusal": "`drop_flagged`: its answer begins like a refusal",
    "flagged_language": "`drop_flagged`: its answer is in another language than the question",
    "flagged_duplicate": "`drop_flagged`: an earlier sample of the same shard has the same answer",
    "scripted_failure": "the scripted engine is configured to fail it",
}
"""The meaning of each code: why the sample failed. Codes are stable: scripts and saved runs have them."""
