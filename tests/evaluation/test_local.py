import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, PreTrainedModel

from prefillshare.errors import UserError
from prefillshare.evaluation.config import EvaluateConfig
from prefillshare.evaluation.items import Item, read_items
from prefillshare.evaluation.local import LocalAnswers
from prefillshare.evaluation.mixed import generate_mixed
from prefillshare.evaluation.run import evaluate
from prefillshare.evaluation.systems import Measurement, plan
from prefillshare.identity import BaseMismatch, compute_identity
from prefillshare.instructions import Placement
from prefillshare.module import BaseReference, Manifest, save_manifest
from prefillshare.training.conversation import read_row, render_prompt
from prefillshare.training.reference import generate, load_base
from tests.evaluation.accelerator import ACCELERATOR, pretended_accelerator
from tests.training.tiny import CHATML, byte_tokenizer, save_base, tiny_model

NEW = 8
# Like Qwen3's: an answer without reasoning starts behind an empty thought.
THINKING = CHATML.replace(
    "<|im_start|>assistant\n' }}",
    "<|im_start|>assistant\n' }}{% if enable_thinking is false %}{{ '<think></think>' }}{% endif %}",
).replace(
    "message['content'] +", "('<think></think>' if message['role'] == 'assistant' else '') + message['content'] +"
)
ITEMS = [
    Item([{"role": "user", "content": "How many orders?"}], "", line=1),
    Item([{"role": "user", "content": "How many cities are there?"}], "", line=2),
    Item("Once upon", "", line=3),
]


def save_module(
    folder: Path, base: Path, model: torch.nn.Module, kind: str = "full", instructions: Placement = "in_place"
) -> Path:
    model.save_pretrained(folder)
    reference = BaseReference(name="base", identity=compute_identity(base))
    save_manifest(folder, Manifest(name="m", kind=kind, base=reference, instructions=instructions))
    return folder


def config(folder: Path, **fields: Any) -> EvaluateConfig:
    values = {"dataset_name": folder / "items.jsonl", "output_dir": folder / "out", "scorer": "exact", "batch_size": 2}
    return EvaluateConfig(**{"model_name_or_path": folder / "base", "max_new_tokens": NEW, **values, **fields})


def prompts() -> list[list[int]]:
    tokenizer = byte_tokenizer()
    return [
        tokenizer(item.prompt)["input_ids"] if isinstance(item.prompt, str) else render_prompt(item.prompt, tokenizer)
        for item in ITEMS
    ]


def text(tokens: list[int]) -> str:
    return byte_tokenizer().decode(tokens, skip_special_tokens=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_base(tmp_path / "base")
    save_base(tmp_path / "full", tiny_model(1))
    return tmp_path


def test_every_system_answers_with_its_weights_on_its_kv(folder: Path) -> None:
    base, full, module = tiny_model(0), tiny_model(1), tiny_model(2)
    save_module(folder / "module", folder / "base", module)
    settings = config(folder, module=folder / "module", full_fine_tuning=folder / "full", shares=(0.5,))
    answers = LocalAnswers(settings, ITEMS)
    end = {byte_tokenizer().eos_token_id}

    def expected(prefill: PreTrainedModel, decode: PreTrainedModel) -> list[str]:
        return [text(generate(prefill, decode, p, max_new_tokens=NEW, eos_token_ids=end)) for p in prompts()]

    def mixed(decode: PreTrainedModel) -> list[str]:
        outputs = generate_mixed(base, decode, prompts(), share=0.5, max_new_tokens=NEW, eos_token_ids=end)
        return [text(tokens) for tokens in outputs]

    found = {each.label: [answer.text for answer in answers.answers(each, ITEMS)] for each in plan(settings)}
    assert found == {
        "base": expected(base, base),
        "full fine-tuning": expected(full, full),
        "naive sharing": expected(base, full),
        "decode module": expected(base, module),
        "naive sharing, share 0.5": mixed(full),
        "decode module, share 0.5": mixed(module),
    }
    assert len({tuple(each) for each in found.values()}) == len(found)


def test_a_lora_module_answers(folder: Path) -> None:
    lora = get_peft_model(load_base(folder / "base"), LoraConfig(r=2, target_modules="all-linear"))
    torch.manual_seed(5)
    for name, weight in lora.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)
    save_module(folder / "module", folder / "base", lora.eval(), "lora")
    answers = LocalAnswers(config(folder, module=folder / "module"), ITEMS)
    end = {byte_tokenizer().eos_token_id}
    for share in (0.0, 0.5, 1.0):
        outputs = generate_mixed(tiny_model(0), lora, prompts(), share=share, max_new_tokens=NEW, eos_token_ids=end)
        found = [answer.text for answer in answers.answers(Measurement("module", share), ITEMS)]
        assert found == [text(tokens) for tokens in outputs]


def test_models_are_moved_to_the_accelerator(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`meta` stands for it: the models themselves are asked where they are, and nothing is computed."""
    lora = get_peft_model(load_base(folder / "base"), LoraConfig(r=2, target_modules="all-linear"))
    save_module(folder / "lora", folder / "base", lora, "lora")
    save_module(folder / "module", folder / "base", tiny_model(2))
    asked: list[set[str]] = []

    def generate_nothing(base: torch.nn.Module, decode: torch.nn.Module, prompts: Any, **_: Any) -> Any:
        asked.append({each.device.type for model in (base, decode) for each in [*model.parameters(), *model.buffers()]})
        return [[1] for _ in prompts]

    monkeypatch.setattr("prefillshare.evaluation.local.generate_mixed", generate_nothing)
    monkeypatch.setattr(
        "prefillshare.evaluation.local.generate_batch", lambda *args, **_: (generate_nothing(*args), None)
    )
    devices = {"accelerator": torch.device("meta"), "none": None}
    for name, device in devices.items():
        monkeypatch.setattr("torch.accelerator.current_accelerator", lambda device=device, **_: device)
        for module in ("module", "lora"):
            settings = config(folder, module=folder / module, full_fine_tuning=folder / "full", shares=(0.5,))
            answers, where = LocalAnswers(settings, ITEMS[:1]), "cpu" if device is None else device.type
            asked.clear()
            for measurement in plan(settings):
                assert list(answers.answers(measurement, ITEMS[:1]))
                assert answers.depends_on(measurement)["device"] == where
            assert asked == [{where}] * len(plan(settings)), (name, module)


def test_auto_is_bfloat16_where_an_accelerator_computes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefillshare.hardware._cpu_flags", lambda _: set())
    for device, dtype in ((torch.device("meta"), "bfloat16"), (None, "float32")):
        monkeypatch.setattr("torch.accelerator.current_accelerator", lambda device=device, **_: device)
        assert LocalAnswers(config(folder, dtype="auto"), ITEMS).dtype == dtype


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_an_accelerator_answers_as_the_cpu_does(folder: Path, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Everything that is computed with the models has to be made where they are."""
    measurement, settings = Measurement("full", share), config(folder, full_fine_tuning=folder / "full")
    expected = [answer.text for answer in LocalAnswers(settings, ITEMS).answers(measurement, ITEMS)]
    loaded = {settings.model_name_or_path: tiny_model(0), settings.full_fine_tuning: tiny_model(1)}
    monkeypatch.setattr("prefillshare.evaluation.local.load_base", lambda path, **_: loaded[path])
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda **_: ACCELERATOR)
    answers = LocalAnswers(settings, ITEMS)
    with pretended_accelerator():
        assert [answer.text for answer in answers.answers(measurement, ITEMS)] == expected
    assert {model.device for model in loaded.values()} == {ACCELERATOR}


def test_an_answer_says_whether_it_was_cut_off(folder: Path) -> None:
    (end,) = {byte_tokenizer().eos_token_id}
    tokens = generate(tiny_model(0), tiny_model(0), prompts()[2], max_new_tokens=NEW)
    assert end not in tokens
    base = tiny_model(0)
    base.generation_config.eos_token_id = [tokens[3]]
    save_base(folder / "stops", base)
    for checkpoint, cut_off, length in (("base", True, NEW), ("stops", False, 4)):
        answers = LocalAnswers(config(folder, model_name_or_path=folder / checkpoint), ITEMS)
        (answer,) = answers.answers(Measurement("base", 1.0), ITEMS[2:])
        assert (answer.cut_off, answer.text) == (cut_off, text(tokens[:length]))


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_an_answer_ends_where_a_server_of_the_weights_that_decode_ends_it(folder: Path, kind: str) -> None:
    """vLLM reads generation_config.json, or else config.json, of the folder that it loads: of an adapter the base's."""
    module: torch.nn.Module = tiny_model(2)
    if kind == "lora":
        module = get_peft_model(load_base(folder / "base"), LoraConfig(r=2, target_modules="all-linear"))
    save_module(folder / "module", folder / "base", module, kind)
    end = byte_tokenizer().eos_token_id
    GenerationConfig(eos_token_id=[5, end]).save_pretrained(folder / "module")
    (folder / "full" / "generation_config.json").unlink()
    other = json.loads((folder / "full" / "config.json").read_text()) | {"eos_token_id": 6}
    (folder / "full" / "config.json").write_text(json.dumps(other))
    settings = config(folder, module=folder / "module", full_fine_tuning=folder / "full")
    answers = LocalAnswers(settings, ITEMS)
    ends = {each.decode: answers.depends_on(each)["ends"] for each in plan(settings)}
    assert ends == {"base": [end], "full": [6, end], "module": [5, end] if kind == "full" else [end]}


def test_a_modules_own_end_ends_its_answer(folder: Path) -> None:
    save_module(folder / "module", folder / "base", tiny_model(2))
    tokens = generate(tiny_model(0), tiny_model(2), prompts()[2], max_new_tokens=NEW)
    GenerationConfig(eos_token_id=tokens[3]).save_pretrained(folder / "module")
    answers = LocalAnswers(config(folder, module=folder / "module"), ITEMS)
    (answer,) = answers.answers(Measurement("module", 1.0), ITEMS[2:])
    assert (answer.cut_off, answer.text) == (False, text(tokens[: tokens.index(tokens[3]) + 1]))


def test_answers_on_prompts_with_the_days_date_are_of_that_day(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class OneDay(date):
        @classmethod
        def today(cls) -> Self:
            return cls(2024, 2, 29)

    monkeypatch.setattr("prefillshare.evaluation.local.date", OneDay)

    def inputs(*, tell: bool = False) -> dict[str, Any]:
        return LocalAnswers(config(folder), ITEMS, tell=tell).depends_on(Measurement("base", 1.0))

    assert "day" not in inputs(tell=True)
    assert capsys.readouterr().err == ""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + CHATML
    tokenizer.save_pretrained(folder / "base")
    assert inputs()["day"] == "2024-02-29"
    assert capsys.readouterr().err == ""
    inputs(tell=True)
    assert capsys.readouterr().err.count("prints today's date") == 1

    told = [replace(item, template_kwargs={"date_string": "26 Jul 2024"}) for item in ITEMS]
    base = Measurement("base", 1.0)
    assert "day" in LocalAnswers(config(folder), told).depends_on(base)  # which this template does not read
    tokenizer.chat_template = "{{ date_string or strftime_now('%d %b %Y') }}" + CHATML
    tokenizer.save_pretrained(folder / "base")
    assert "day" in LocalAnswers(config(folder), ITEMS).depends_on(base)
    for items in (told, ITEMS[2:]):  # and a text is rendered by none
        assert "day" not in LocalAnswers(config(folder), items, tell=True).depends_on(base)
    assert capsys.readouterr().err == ""


def test_another_template_that_a_checkpoint_has_learned_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(folder, full_fine_tuning=folder / "full")
    LocalAnswers(settings, ITEMS, tell=True)
    assert capsys.readouterr().err == ""
    (folder / "full" / "chat_template.jinja").write_text("{{ messages }}")
    LocalAnswers(settings, ITEMS)
    assert capsys.readouterr().err == ""
    LocalAnswers(settings, ITEMS, tell=True)
    assert f"full_fine_tuning: {folder / 'full'} differs from the base {folder / 'base'} in the chat template; " in (
        capsys.readouterr().err
    )


def test_what_answers_depend_on_follows_the_weights(folder: Path) -> None:
    def inputs() -> dict[str, Any]:
        return LocalAnswers(config(folder, full_fine_tuning=folder / "full"), ITEMS).depends_on(
            Measurement("full", 1.0)
        )

    before = inputs()
    assert before == inputs()
    save_base(folder / "full", tiny_model(3))
    assert inputs() != before


def test_what_every_systems_answers_depend_on_follows_the_modules_placement(folder: Path) -> None:
    system = {"role": "system", "content": "You count."}
    items = [
        Item([system, *item.prompt] if isinstance(item.prompt, list) else item.prompt, "x", line=item.line)
        for item in ITEMS
    ]
    (folder / "items.jsonl").write_text(
        "".join(json.dumps({"prompt": i.prompt, "expected": "x"}) + "\n" for i in items)
    )
    settings = config(folder, full_fine_tuning=folder / "full")
    evaluate(settings, show_progress=False)
    save_module(folder / "module", folder / "base", tiny_model(2), instructions="behind_context")
    with_module = settings.model_copy(update={"module": folder / "module"})
    fresh = with_module.model_copy(update={"output_dir": folder / "fresh"})

    def found(config: EvaluateConfig) -> dict[str, list[str]]:
        systems = evaluate(config, show_progress=False).systems
        return {name: [answer.text for answer in outcome.answers] for name, outcome in systems.items()}

    assert found(with_module) == found(fresh)


def test_a_prompt_is_rendered_with_the_rows_arguments_of_the_template(folder: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = THINKING
    tokenizer.save_pretrained(folder / "base")
    row = {"messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Three."}]}
    rows = [row, row | {"chat_template_kwargs": {"enable_thinking": False}}]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = LocalAnswers(config(folder), read_items(folder / "items.jsonl"))._prompts
    for line, row in enumerate(rows, start=1):
        (example,) = read_row(row, tokenizer)
        assert prompts[line] == example.ids[: example.spans[0][0]]
    assert prompts[1] != prompts[2]


def test_a_row_that_the_chat_template_refuses_is_named_by_its_line(folder: Path) -> None:
    item = Item([{"role": "user", "content": "How many?"}], "", template_kwargs={"tokenize": True}, line=4)
    with pytest.raises(UserError, match=r"items\.jsonl, line 4: .*chat template"):
        LocalAnswers(config(folder), [item])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"full_fine_tuning": "nowhere"}, "full_fine_tuning.*config.json"),
        ({"full_fine_tuning": "module"}, "full_fine_tuning.*is a decode module"),
        ({"full_fine_tuning": "other"}, "full_fine_tuning.*model_type 'qwen2'"),
        ({"full_fine_tuning": "merged"}, r"full_fine_tuning.*merged has adapter_config\.json beside"),
        ({"module": "full"}, "module.*prefillshare.json"),
        ({"model_name_or_path": "nowhere"}, "base.*nowhere"),
        ({"model_name_or_path": "unproven"}, "model_name_or_path.*unproven is of architecture 'gpt_neox'"),
        ({"max_new_tokens": 500}, "line 1.*512 positions"),
    ],
)
def test_what_cannot_be_used_is_named_before_anything_is_loaded(
    folder: Path, fields: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_module(folder / "module", folder / "base", tiny_model(1))
    save_base(folder / "other", tiny_model(0, "qwen2"))
    (save_base(folder / "merged", tiny_model(1)) / "adapter_config.json").write_text("{}")
    settings = save_base(folder / "unproven") / "config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "model_type": "gpt_neox"}))
    monkeypatch.setattr("prefillshare.evaluation.local.load_base", lambda *_, **__: pytest.fail("loaded"))
    fields = {name: folder / value if isinstance(value, str) else value for name, value in fields.items()}
    with pytest.raises(UserError, match=message):
        LocalAnswers(config(folder, **fields), ITEMS)


def test_a_module_of_another_base_is_refused(folder: Path) -> None:
    save_module(folder / "module", folder / "full", tiny_model(1))
    with pytest.raises(BaseMismatch):
        LocalAnswers(config(folder, module=folder / "module"), ITEMS)
