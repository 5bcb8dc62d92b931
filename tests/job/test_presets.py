"""Presets: every value with its line in a card, and the prompts that they make, to the byte."""

import json
from pathlib import Path

import pytest
from card_loop import WITH_LOOP, play_loop, read_card, read_prompt_block
from conftest import Command

from synthia_batch.core.types import Message
from synthia_batch.errors import UsageError
from synthia_batch.job.loading.merge import Layer, merge_layers
from synthia_batch.job.presets import Preset, Sourced, find_preset, list_presets, read_preset
from synthia_batch.models.prompts.formats import PromptFormat, SynthiaCardFormat, SynthiaFormat
from synthia_batch.models.prompts.system_messages import load_system_message

OF_CARDS = (
    "synthia-70b", "synthia-70b-gguf", "synthia-70b-v1.1", "synthia-70b-v1.2b-awq", "synthia-7b",
    "synthia-v3-11b",
)  # fmt: skip
QUESTIONS = (
    "What is Earth's atmosphere like? What is Earth's magnetic field like? What is the relationship between "
    "the two?",
    "Elaborate the the complex relationship between the two",
    "Please explain the bow shock wave, Van Allen radiation belts in detail",
    "Does the Van Allen belt present any danger to Geo stationary satellites?",
    "Does spacecraft actually create strong magnetic fields? ",
)
"""Of the sample conversation in the card of Synthia-70B-v1.1."""
GENERATED = (
    " Earth's atmosphere is a layer of gases.\n",
    "It can be elaborated upon in several ways.\n\nFirstly, ...  \nUSER: And then?",
    " \n The bow shock wave is a phenomenon.",
    "Yes. USER:",
    "Yes, spacecraft can.",
)


def list_entries() -> list[tuple[str, str, Sourced]]:
    presets = [read_preset(name) for name in list_presets()]
    return [
        (preset.name, key, entry)
        for preset in presets
        for section in (preset.job, preset.placement, preset.facts)
        for key, entry in section.items()
    ]


def test_there_are_the_six_cards_and_two_more() -> None:
    assert list_presets() == ("chat", "demo", *OF_CARDS)


def test_every_value_stands_in_a_line_of_its_card_or_has_a_reason() -> None:
    for name, key, entry in list_entries():
        assert entry.line or entry.reason, f"{name}: {key} has no source"
        if entry.line:
            card = entry.card.rpartition("/")[2].lower() if entry.card else name
            assert entry.line in read_card(card), f"{name}: {key}: not in the card: {entry.line}"


def test_the_table_of_the_gguf_card_is_the_presets() -> None:
    preset, card = read_preset("synthia-70b-gguf"), read_card("synthia-70b-gguf")
    assert len(preset.memory_table) == 10
    for row in preset.memory_table:
        said = f"| {row.quantization} | {row.bits} | {row.size_gb:.2f} GB| {row.ram_gb:.2f} GB |"
        assert said in card


@pytest.mark.parametrize("name", list_presets())
def test_every_preset_is_a_valid_layer(name: str) -> None:
    layers = [
        Layer(origin="flag", values={"input": {"path": "q"}}),
        read_preset(name).make_layer(None, on_gpu=True),
    ]
    assert merge_layers(layers).job.prompt_format == ("synthia" if name in OF_CARDS else "chat")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("migtissera/Synthia-7B", "synthia-7b"),
        ("MIGTISSERA/synthia-7b", "synthia-7b"),
        ("migtissera/Synthia-70B", "synthia-70b"),
        ("migtissera/Synthia-70B-v1.1", "synthia-70b-v1.1"),
        ("migtissera/Synthia-v3.0-11B", "synthia-v3-11b"),
        ("TheBloke/Synthia-70B-v1.2b-AWQ", "synthia-70b-v1.2b-awq"),
        ("TheBloke/Synthia-70B-GGUF:Q5_K_M", "synthia-70b-gguf"),
        ("TheBloke/Synthia-70B-GGUF", "synthia-70b-gguf"),
        ("demo", "demo"),
        ("migtissera/Synthia-13B", "chat"),
        ("./Synthia-7B", "chat"),
    ],
)
def test_a_model_finds_its_preset_by_its_name(model: str, name: str) -> None:
    assert find_preset(model).name == name


def merge(preset: Preset, model: str | None, *, on_gpu: bool = False) -> dict[str, object]:
    said = {"input": {"path": "q"}} | ({"model": {"name": model}} if model else {})
    layer = preset.make_layer(model, on_gpu=on_gpu)
    merged = merge_layers([Layer(origin="flag", values=said), layer]).job
    return {
        "name": merged.model.name,
        "quantization": merged.model.quantization,
        "length": merged.model.max_model_len,
        "gpus": merged.pool.tensor_parallel_size,
        "temperature": merged.sampling.temperature,
    }


def test_of_another_model_a_preset_knows_how_to_ask_and_not_what_it_is() -> None:
    awq = read_preset("synthia-70b-v1.2b-awq")
    assert merge(awq, None) == {
        "name": "TheBloke/Synthia-70B-v1.2b-AWQ", "quantization": "awq", "length": 4096, "gpus": 1,
        "temperature": 0.7,
    }  # fmt: skip
    assert merge(awq, "demo") == {
        "name": "demo", "quantization": None, "length": None, "gpus": 1, "temperature": 0.7,
    }  # fmt: skip


def test_a_suggested_placement_holds_on_gpus_and_for_the_cards_own_model() -> None:
    large = read_preset("synthia-70b")
    assert merge(large, None, on_gpu=True)["gpus"] == 2
    assert merge(large, None)["gpus"] == 1
    assert merge(large, "demo", on_gpu=True)["gpus"] == 1
    assert merge(read_preset("synthia-70b-v1.2b-awq"), None, on_gpu=True)["gpus"] == 1


def make_turns(system: str, turns: int) -> list[Message]:
    """The sample conversation up to the question of `turns`, its answers as the loop keeps them."""
    messages = [Message("system", system)]
    for n in range(turns):
        messages.append(Message("user", QUESTIONS[n]))
        if n < turns - 1:
            messages.append(Message("assistant", GENERATED[n].split("USER:")[0].strip()))
    return messages


def find_system(name: str) -> str:
    (system,) = read_preset(name).job["system"].value
    return load_system_message(system).text


GOLDEN_TURNS = (
    "USER: What is Earth's atmosphere like? What is Earth's magnetic field like? What is the relationship "
    "between the two?\nASSISTANT:",
    " Earth's atmosphere is a layer of gases.\nUSER: Elaborate the the complex relationship between the two\n"
    "ASSISTANT:",
    " It can be elaborated upon in several ways.\n\nFirstly, ...\nUSER: Please explain the bow shock wave, "
    "Van Allen radiation belts in detail\nASSISTANT:",
    " The bow shock wave is a phenomenon.\nUSER: Does the Van Allen belt present any danger to Geo "
    "stationary satellites?\nASSISTANT:",
    " Yes.\nUSER: Does spacecraft actually create strong magnetic fields? \nASSISTANT:",
)


@pytest.mark.parametrize("turns", [1, 3, 5])
@pytest.mark.parametrize("name", OF_CARDS)
def test_the_prompt_of_every_card_is_golden(name: str, turns: int) -> None:
    system_line = read_prompt_block(name).splitlines()[0] if name != "synthia-70b-gguf" else None
    # The GGUF card leaves the message open; its original's block, in the same card, has it.
    system_line = system_line or read_preset(name).job["system"].line
    written = SynthiaFormat().write(make_turns(find_system(name), turns))
    assert written == f"{system_line}\n" + "".join(GOLDEN_TURNS[:turns])


@pytest.mark.parametrize("name", [name for name in OF_CARDS if name != "synthia-70b-gguf"])
def test_one_turn_is_the_cards_own_block(name: str) -> None:
    block = read_prompt_block(name)
    question = block.splitlines()[1].removeprefix("USER: ")
    assert SynthiaFormat().write([Message("system", find_system(name)), Message("user", question)]) == block


@pytest.mark.parametrize("turns", [1, 3, 5])
@pytest.mark.parametrize("name", WITH_LOOP)
def test_the_card_format_is_what_the_cards_loop_feeds_to_the_model(name: str, turns: int) -> None:
    played = play_loop(name, QUESTIONS[:turns], GENERATED)
    system = played.prompts[0].removeprefix("SYSTEM: ").partition(" \nUSER:")[0]
    assert system in {load_system_message(key).text for key in ("superintelligence", "tree-of-thoughts-v3")}
    card = SynthiaCardFormat()
    for turn in range(turns):
        assert card.write(make_turns(system, turn + 1)) == played.prompts[turn]
        assert card.read(GENERATED[turn]).response == played.answers[turn]


@pytest.mark.parametrize("prompt_format", [SynthiaFormat(), SynthiaCardFormat()])
def test_no_stop_string_is_left_in_an_answer(prompt_format: PromptFormat) -> None:
    assert prompt_format.stop == ("USER:",)
    for text in GENERATED:
        assert "USER:" not in prompt_format.read(text).response


def test_a_conversation_without_a_system_message_begins_with_the_user() -> None:
    assert SynthiaCardFormat().write([Message("user", "Why?")]) == "USER: Why? \nASSISTANT: "


def test_an_unknown_preset_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean synthia-v3-11b"):
        read_preset("synthia-v3.0-11b")


def test_presets_are_listed_and_shown_with_their_lines(synthia: Command, tmp_path: Path) -> None:
    listed = synthia("presets")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(list_presets())
    shown = synthia("presets", "synthia-7b")
    assert 'card: "temperature": 0.75,' in shown.stdout
    as_json = json.loads(synthia("presets", "synthia-70b-gguf", "--json").stdout)
    assert as_json["job"]["sampling.temperature"]["value"] == 0.7
    assert as_json["memory_table"][5] == ["Q4_K_M", 4, 41.38, 43.88]
    assert len(json.loads(synthia("presets", "--json").stdout)) == 8
    assert synthia("presets", "synthia-8b").returncode == 2
