"""Decode modules that begin as a fine-tuned model of the base."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from prefillshare.errors import UserError
from prefillshare.identity import compute_identity
from prefillshare.module import MANIFEST_NAME, load_module, verify_module
from prefillshare.training import run
from prefillshare.training.config import TrainConfig, load_train_config
from prefillshare.training.models import load_model
from prefillshare.training.start import check_start
from tests.training.tiny import byte_tokenizer, save_base, tiny_model

UNMOVED = 1e-30  # a learning rate


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("start") / "base", tiny_model())


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stands for what full fine-tuning made of the base: the same shape, other weights."""
    return save_base(tmp_path_factory.mktemp("start") / "tuned", tiny_model(seed=1))


def config_of(base: Path, folder: Path) -> TrainConfig:
    data = folder / "data.jsonl"
    data.write_text(json.dumps({"prompt": "say one: ", "completion": "one"}) + "\n")
    return TrainConfig(
        model_name_or_path=base,
        dataset_name=data,
        output_dir=folder / "module",
        max_steps=1,
        learning_rate=UNMOVED,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
    )


@pytest.fixture
def config(base: Path, tmp_path: Path) -> TrainConfig:
    return config_of(base, tmp_path)


@pytest.fixture(scope="module")
def trained_adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    config = config_of(base, folder).changed(output_dir=folder / "adapter", use_peft=True, lora_r=4, learning_rate=0.1)
    return run.train(config, show_progress=False).path


@pytest.fixture
def adapter(trained_adapter: Path, tmp_path: Path) -> Path:
    """As PEFT leaves it, without a manifest. Tests change it."""
    folder = shutil.copytree(trained_adapter, tmp_path / "adapter")
    (folder / MANIFEST_NAME).unlink()
    return folder


def test_a_checkpoint_becomes_a_decode_module_of_the_base(config: TrainConfig, base: Path, tuned: Path) -> None:
    module = run.train(config.changed(start_from=tuned), show_progress=False)
    before, after = (load_file(folder / "model.safetensors") for folder in (tuned, config.output_dir))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert module.manifest.base.identity == compute_identity(base)
    verify_module(module, base)
    record = module.manifest.training["start_from"]
    assert record == {"name": "tuned", "digest": check_start(config.changed(start_from=tuned))}
    assert module.manifest.training["final_loss"] > 0


@pytest.mark.parametrize(("has_file", "starts"), [(True, True), (True, False), (False, True)])
def test_answers_end_where_the_bases_do(config: TrainConfig, tmp_path: Path, has_file: bool, starts: bool) -> None:
    """A server reads it in the module's folder, and responses end in the base's end token."""
    base, tuned = save_base(tmp_path / "base"), tiny_model(seed=1)
    tuned.config.eos_token_id = tuned.generation_config.eos_token_id = 7
    start = save_base(tmp_path / "tuned", tuned) if starts else None
    (base / "generation_config.json").unlink()
    if has_file:  # one that Transformers reads, and would not save
        content = {"eos_token_id": [5, 257], "temperature": 0.6, "do_sample": False}
        (base / "generation_config.json").write_text(json.dumps(content))
    changed = config.changed(model_name_or_path=base, start_from=start, save_strategy="steps", save_steps=1)
    module = run.train(changed, show_progress=False)
    assert GenerationConfig.from_pretrained(module.path).eos_token_id == ([5, 257] if has_file else [257])


def test_the_kv_stays_the_bases(config: TrainConfig, base: Path, tuned: Path) -> None:
    changed = config.changed(start_from=tuned)
    tokenizer = byte_tokenizer()
    trainer = run.make_trainer(changed, run.read(changed, tokenizer, "train", show_progress=False).examples, tokenizer)
    ids = torch.tensor([tokenizer("say one: ")["input_ids"]])
    with torch.no_grad(), trainer._base_role(trainer.model) as role:
        assert torch.equal(role(ids).logits, load_model(base)(ids).logits)
        assert torch.equal(trainer.model(ids).logits, load_model(tuned)(ids).logits)


def test_an_adapter_goes_on_and_the_base_is_read_without_it(config: TrainConfig, base: Path, adapter: Path) -> None:
    changed = config.changed(start_from=adapter, use_peft=True)
    tokenizer = byte_tokenizer()
    trainer = run.make_trainer(changed, run.read(changed, tokenizer, "train", show_progress=False).examples, tokenizer)
    ids = torch.tensor([tokenizer("say one: ")["input_ids"]])
    with torch.no_grad():
        plain = load_model(base)(ids).logits
        with trainer._base_role(trainer.model) as role:
            assert torch.equal(role(ids).logits, plain)
        assert not torch.allclose(trainer.model(ids).logits, plain)
    module = run.train(changed, show_progress=False)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, config.output_dir))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (module.kind, module.manifest.training["start_from"]["name"]) == ("lora", "adapter")
    again = changed.changed(output_dir=config.output_dir.with_name("moved"), learning_rate=0.1)
    run.train(again, show_progress=False)
    moved = load_file(again.output_dir / "adapter_model.safetensors")
    assert any(not torch.equal(before[name], moved[name]) for name in before)


@pytest.mark.parametrize(
    ("name", "use_peft", "message"),
    [
        ("nowhere", False, r"start_from: .*nowhere has no config.json; name the folder of a fine-tuned model"),
        ("nowhere", True, r"start_from: .*nowhere has no adapter_config.json"),
        ("adapter", False, r"start_from: .*adapter is an adapter; set use_peft=true, or merge it first"),
        ("tuned", True, r"start_from: .* is a checkpoint; leave use_peft out, or name an adapter"),
        ("smaller", False, r"start_from: .*smaller was not fine-tuned from .*: its num_hidden_layers is 2, not 3"),
        ("empty", False, r"start_from: .*empty has no \*.safetensors weights"),
        ("merged", False, r"start_from: .*merged has adapter_config\.json beside its config\.json"),
    ],
)
def test_what_no_module_can_start_from_is_refused_before_the_model_is_loaded(
    name: str,
    use_peft: bool,
    message: str,
    config: TrainConfig,
    tuned: Path,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folders = {"tuned": tuned, "adapter": adapter}
    for other in ("smaller", "empty", "merged"):
        folder = folders[other] = save_base(tmp_path / other, tiny_model(seed=1))
        if other == "merged":  # into the folder of the adapter
            shutil.copy(adapter / "adapter_config.json", folder)
            continue
        if other == "empty":
            (folder / "model.safetensors").unlink()
            continue
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 2}))
    monkeypatch.delattr(run, "make_trainer")
    changed = config.changed(start_from=folders.get(name, tmp_path / name), use_peft=use_peft)
    with pytest.raises(UserError, match=message):
        run.train(changed, show_progress=False)


@pytest.mark.parametrize(
    ("written", "fields", "message"),
    [
        ({"peft_type": "IA3"}, {}, r"start_from: .* is of type 'IA3'; only LoRA adapters can be served"),
        ({"use_dora": True}, {}, r"start_from: .* has use_dora, which vLLM does not serve"),
        ({"modules_to_save": ["lm_head"]}, {}, r"start_from: .* has modules_to_save"),
        ({"bias": "lora_only"}, {}, r"start_from: .* has bias, which vLLM does not serve"),
        ({"layer_replication": [[0, 2]]}, {}, r"start_from: .* has layer_replication"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            {},
            r"'pissa_niter_4', with which PEFT changes the base's own weights",
        ),
        ({}, {"lora_r": 8, "lora_alpha": 4}, r"lora_alpha: the adapter .* its own; leave lora_alpha, lora_r out"),
        ({}, {"use_rslora": True}, r"use_rslora: the adapter .* its own; leave use_rslora out"),
        ({"r": 5}, {}, r"start_from: .*adapter does not fit the base"),
        ({"r": 1024}, {}, r"start_from: .*adapter has rank 1024; vLLM serves at most 512"),
        ({"rank_pattern": {"q_proj": 640}}, {}, r"start_from: .*adapter has rank 640; vLLM serves at most 512"),
        ({"r": None}, {}, r"start_from: .*adapter_config\.json does not name a rank r"),
    ],
)
def test_an_adapter_that_cannot_go_on_is_refused(
    written: dict, fields: dict, message: str, config: TrainConfig, adapter: Path
) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | written))
    with pytest.raises(UserError, match=message):
        run.train(config.changed(start_from=adapter, use_peft=True, **fields), show_progress=False)


def test_what_it_has_learned_of_other_tokens_is_said(
    config: TrainConfig, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(tuned, tmp_path / "other")
    (other / "chat_template.jinja").write_text("{{ messages }}")
    run.train(config.changed(start_from=tuned))
    assert "start_from" not in capsys.readouterr().err
    run.train(config.changed(start_from=other, overwrite_output_dir=True))
    assert f"start_from: {other} differs from the base {config.model_name_or_path} in the chat template; " in (
        capsys.readouterr().err
    )


Weights = dict[str, torch.Tensor]
PREFIX = "base_model.model.model."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: {name.replace(PREFIX, PREFIX + "language_model."): each for name, each in weights.items()},
            r"does not fit the base: its file and its adapter_config\.json differ in base_model\.model\.model\.lang",
        ),
        (
            lambda weights: {name: each for name, each in weights.items() if "layers.1" not in name},
            r"does not fit the base: .* differ in base_model\.model\.model\.layers\.1\.",
        ),
        (
            lambda weights: weights | {PREFIX + "embed_tokens.weight": torch.zeros(258, 32)},
            r"has base_model\.model\.model\.embed_tokens\.weight, which vLLM does not serve",
        ),
        (
            lambda weights: weights | {"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 32)},
            r"has base_model\.model\.lm_head\.lora_A\.weight, which vLLM does not serve",
        ),
    ],
)
def test_an_adapters_tensors_are_those_of_its_config(
    change: Callable[[Weights], Weights], message: str, config: TrainConfig, adapter: Path
) -> None:
    """PEFT warns of what it has no place for, and begins without it; embeddings it writes over the base's."""
    file = adapter / "adapter_model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    with pytest.raises(UserError, match=f"start_from: {adapter} {message}"):
        run.train(config.changed(start_from=adapter, use_peft=True), show_progress=False)


def test_a_checkpoints_tensors_are_those_of_its_config(config: TrainConfig, tuned: Path, tmp_path: Path) -> None:
    compiled = shutil.copytree(tuned, tmp_path / "compiled")
    file = compiled / "model.safetensors"
    save_file({f"_orig_mod.{name}": each for name, each in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(UserError, match=rf"{compiled}: its weights are not those of its config\.json"):
        run.train(config.changed(start_from=compiled), show_progress=False)


def test_a_module_may_go_on_but_not_one_of_another_base(
    config: TrainConfig, base: Path, tuned: Path, tmp_path: Path
) -> None:
    run.train(config, show_progress=False)
    more = config.changed(start_from=config.output_dir, output_dir=tmp_path / "more")
    run.train(more, show_progress=False)
    assert load_module(more.output_dir).manifest.training["start_from"]["name"] == "module"
    other = config.changed(model_name_or_path=tuned, start_from=config.output_dir, output_dir=tmp_path / "other")
    with pytest.raises(
        UserError, match=r"start_from: .*module is a decode module of another base than .*tuned: base, "
    ):
        run.train(other, show_progress=False)


def test_a_run_goes_on_only_with_what_it_started_from(config: TrainConfig, tuned: Path) -> None:
    first = config.changed(save_strategy="steps", save_steps=1, max_steps=2, start_from=tuned)
    run.train(first, show_progress=False)
    (config.output_dir / MANIFEST_NAME).unlink()
    again = first.changed(resume_from_checkpoint=True, max_steps=3)
    with pytest.raises(UserError, match=r"start_from: was \w+, is None"):
        run.train(again.changed(start_from=None), show_progress=False)
    run.train(again, show_progress=False)


def test_the_folder_that_is_overwritten_must_not_hold_it(config: TrainConfig, adapter: Path) -> None:
    inside = config.changed(
        output_dir=adapter.parent, start_from=adapter, use_peft=True, overwrite_output_dir=True, dataset_name=adapter
    )
    with pytest.raises(UserError, match="overwrite_output_dir=true would remove"):
        run.train(inside, show_progress=False)


def test_its_path_starts_at_the_yaml(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"model_name_or_path: {base}\ndataset_name: d.jsonl\noutput_dir: out\nstart_from: ./tuned\n")
    assert load_train_config(file).start_from == tmp_path / "tuned"
    assert load_train_config(file, ["start_from=tuned"]).start_from == Path("tuned").absolute()
