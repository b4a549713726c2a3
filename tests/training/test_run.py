import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file
from transformers.trainer_jit_checkpoint import JITCheckpointCallback

from prefillshare.errors import UserError
from prefillshare.identity import compute_identity
from prefillshare.module import MANIFEST_NAME, load_module, verify_module
from prefillshare.training import run
from prefillshare.training.base_cache import base_pass
from prefillshare.training.config import TrainConfig
from prefillshare.training.dataset import LoadedData, read_examples
from prefillshare.training.outcome import final_loss
from prefillshare.training.output import UNFINISHED
from prefillshare.training.record import RECORD_NAME
from prefillshare.training.reference import generate, load_base, load_decode
from prefillshare.training.sources import digest
from tests.training.tiny import CHATML, byte_tokenizer, save_base, single, tiny_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stored in bfloat16, as most bases are."""
    return save_base(tmp_path_factory.mktemp("run") / "base", tiny_model().to(torch.bfloat16))


@pytest.fixture
def config(base: Path, tmp_path: Path) -> TrainConfig:
    rows = [{"prompt": f"say {word}: ", "completion": word} for word in ("one", "two", "three", "four")]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TrainConfig(
        model_name_or_path=base,
        dataset_name=data,
        output_dir=tmp_path / "modules" / "words",
        max_steps=60,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
    )


def answer(config: TrainConfig, prompt: str) -> str:
    tokenizer = byte_tokenizer()
    base = load_base(config.model_name_or_path)
    decode = load_decode(load_module(config.output_dir), config.model_name_or_path)
    tokens = generate(
        base, decode, tokenizer(prompt)["input_ids"], max_new_tokens=9, eos_token_ids={tokenizer.eos_token_id}
    )
    return tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("use_peft", [False, True], ids=["full", "lora"])
def test_what_was_learnt_is_in_the_artefact(config: TrainConfig, use_peft: bool) -> None:
    config = config.changed(use_peft=use_peft, lora_r=8)
    module = run.train(config, show_progress=False)
    assert [answer(config, f"say {word}: ") for word in ("one", "three")] == ["one", "three"]

    assert module == load_module(config.output_dir)
    assert (module.name, module.kind) == ("words", "lora" if use_peft else "full")
    assert module.manifest.base.identity == compute_identity(config.model_name_or_path)
    verify_module(module, config.model_name_or_path)
    record = module.manifest.training
    assert record["data"]["rows"] == 4
    assert record["hyper_parameters"]["learning_rate"] == 1e-2
    assert record["steps"] == 60
    assert 0 < record["final_loss"] < 0.5
    assert not [entry for entry in config.output_dir.iterdir() if entry.is_dir()]  # no scratch folder is left

    weights = load_file(next(config.output_dir.glob("*model.safetensors")))
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    if not use_peft:
        for file in ("tokenizer.json", "chat_template.jinja"):
            assert (config.output_dir / file).read_bytes() == (config.model_name_or_path / file).read_bytes()


@pytest.mark.parametrize("use_peft", [False, True], ids=["full", "lora"])
def test_loss_on_assistant_turns_may_be_asked_for_and_is_what_there_is(
    config: TrainConfig, tmp_path: Path, use_peft: bool
) -> None:
    row = {"messages": [{"role": "user", "content": "say one"}, {"role": "assistant", "content": "one"}]}
    config.dataset_name.write_text(json.dumps(row) + "\n")
    config = config.changed(use_peft=use_peft, max_steps=1)
    plain = run.train(config, show_progress=False).manifest.training
    asked = config.changed(assistant_only_loss=True, output_dir=tmp_path / "asked")
    record = run.train(asked, show_progress=False).manifest.training
    assert record["final_loss"] == pytest.approx(plain["final_loss"], abs=1e-6)
    assert record["hyper_parameters"]["assistant_only_loss"] is True


def test_a_module_has_the_named_templates_of_its_base(config: TrainConfig, tmp_path: Path) -> None:
    base = shutil.copytree(config.model_name_or_path, tmp_path / "base")
    folder = base / "additional_chat_templates"
    folder.mkdir()
    (folder / "tool_use.jinja").write_text("{{ tools }}")
    config = config.changed(model_name_or_path=base)
    kept = config.output_dir / "additional_chat_templates" / "tool_use.jinja"
    for change in ({}, {"overwrite_output_dir": True}):
        run.train(config.changed(max_steps=1, **change), show_progress=False)
        assert kept.read_text() == "{{ tools }}"


def test_the_base_on_disk_is_not_touched(config: TrainConfig) -> None:
    def content() -> dict[str, bytes]:
        files = [file for file in config.model_name_or_path.iterdir() if not file.name.startswith(".")]
        return {file.name: file.read_bytes() for file in files}

    before = content()
    run.train(config.changed(max_steps=1), show_progress=False)
    assert content() == before


def test_an_output_folder_in_use_is_only_replaced_on_demand(config: TrainConfig) -> None:
    config.output_dir.mkdir(parents=True)
    (config.output_dir / "precious.txt").write_text("keep")
    with pytest.raises(UserError, match=r"output_dir: .*words is not empty, it holds precious.txt; .* or empty this"):
        run.train(config, show_progress=False)
    assert (config.output_dir / "precious.txt").exists()

    (config.output_dir / "precious.txt").unlink()
    config = config.changed(max_steps=1)
    run.train(config, show_progress=False)
    (config.output_dir / "precious.txt").write_text("keep")
    with pytest.raises(UserError, match="holds a module; name another folder or set overwrite_output_dir=true"):
        run.train(config, show_progress=False)
    assert (config.output_dir / "precious.txt").exists()

    # As it is after a kill while the module was put together.
    (config.output_dir / UNFINISHED).mkdir()
    shutil.copyfile(config.output_dir / MANIFEST_NAME, config.output_dir / UNFINISHED / MANIFEST_NAME)
    run.train(config.changed(overwrite_output_dir=True), show_progress=False)
    assert not (config.output_dir / "precious.txt").exists()
    assert load_module(config.output_dir).name == "words"


def test_what_is_no_earlier_module_or_run_is_never_overwritten(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "make_trainer", no_model)
    base = shutil.copytree(config.model_name_or_path, tmp_path / "here" / "base")
    data = Path(shutil.copy(config.dataset_name, tmp_path / "here" / "data.jsonl"))
    rows = tmp_path / "rows"
    rows.mkdir()
    shutil.copy(config.dataset_name, rows / "train.jsonl")
    others, foreign = tmp_path / "others", tmp_path / "foreign"
    (others / "deep" / "sql").mkdir(parents=True)
    (others / "deep" / "sql" / MANIFEST_NAME).write_text("{}")
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("keep")
    for folder in (tmp_path / "here", base, rows, others):
        (folder / RECORD_NAME).write_text("{}")  # a run that was once sent there makes it no better
    before = sorted(tmp_path.rglob("*"))
    for change, problem in (
        ({"output_dir": tmp_path / "here", "model_name_or_path": base}, rf"remove model_name_or_path {base} from"),
        ({"output_dir": base, "model_name_or_path": base}, rf"remove model_name_or_path {base} from {base}; name "),
        ({"output_dir": tmp_path / "here", "dataset_name": data}, rf"remove dataset_name {data} from"),
        ({"output_dir": rows / ".." / "rows", "dataset_name": rows}, rf"remove dataset_name {rows} from"),
        ({"output_dir": others}, rf"remove the module {others / 'deep' / 'sql'} from {others}; name another folder"),
        ({"output_dir": foreign}, rf"{foreign} is not empty and holds neither a module nor a run .*; name another"),
    ):
        with pytest.raises(UserError, match=rf"output_dir: .*{problem}"):
            run.train(config.changed(overwrite_output_dir=True, **change), show_progress=False)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_interrupted_run_leaves_the_old_module(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    short = config.changed(max_steps=1)
    before = run.train(short, show_progress=False)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    again = short.changed(overwrite_output_dir=True)
    with monkeypatch.context() as patched:
        patched.setattr(run, "save_manifest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run.train(again, show_progress=False)
    assert load_module(config.output_dir) == before
    assert run.train(again.changed(max_steps=2), show_progress=False) != before


def test_a_run_that_was_stopped_keeps_its_checkpoint_and_the_old_module(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run.train(config.changed(max_steps=1), show_progress=False)
    step = run.CacheConditionedTrainer.training_step

    def terminated_in_step_two(trainer: run.CacheConditionedTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        if trainer.state.global_step == 1:
            for callback in trainer.callback_handler.callbacks:
                if isinstance(callback, JITCheckpointCallback):  # as SIGTERM does, after three seconds
                    callback.jit_manager.is_checkpoint_requested = True
        return step(trainer, *args, **kwargs)

    again = config.changed(max_steps=4, enable_jit_checkpoint=True, overwrite_output_dir=True)
    with monkeypatch.context() as patched:
        patched.setattr(run.CacheConditionedTrainer, "training_step", terminated_in_step_two)
        with pytest.raises(UserError, match=r"stopped after step 2 of 4, .*; go on with resume_from_checkpoint=true"):
            run.train(again, show_progress=False)
    assert load_module(config.output_dir) == before
    resumed = run.train(again.changed(resume_from_checkpoint=True), show_progress=False)
    assert resumed.manifest.training["steps"] == 4


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"lr_scheduler_type": "cosine_with_min_lr"}, r"lr_scheduler_type: 'cosine_with_min_lr' .*lr_scheduler_kwargs"),
        ({"lr_scheduler_kwargs": {"wavy": 1}}, r"lr_scheduler_type: 'linear' .*wavy"),
        ({"optim": "galore_adamw"}, r"optim: 'galore_adamw' cannot be used with this config: .*"),
        ({"adam_beta1": 2.0}, r"optim: 'adamw_torch_fused' .*beta"),
    ],
)
def test_what_only_transformers_finds_wrong_costs_no_earlier_work(
    config: TrainConfig, change: dict[str, Any], problem: str
) -> None:
    before = run.train(one_step(config), show_progress=False)
    record = (config.output_dir / RECORD_NAME).read_text()
    with pytest.raises(UserError, match=problem):
        run.train(one_step(config).changed(overwrite_output_dir=True, seed=7, **change), show_progress=False)
    assert load_module(config.output_dir) == before
    assert (config.output_dir / "checkpoint-1" / "trainer_state.json").is_file()
    assert (config.output_dir / RECORD_NAME).read_text() == record


def test_an_epoch_without_a_batch_is_refused(config: TrainConfig) -> None:
    config = config.changed(dataloader_drop_last=True, per_device_train_batch_size=5)
    with pytest.raises(UserError, match=r"dataloader_drop_last: a batch of all processes has 5 rows and there are 4"):
        run.train(config, show_progress=False)


def test_tensors_are_saved_by_the_models_own_names(config: TrainConfig, tmp_path: Path) -> None:
    trainer = run.make_trainer(config, [single([1, 2], [3])], byte_tokenizer())
    trainer.model_wrapped = torch.compile(trainer.model, backend="eager")
    with pytest.raises(RuntimeError, match=r"wrapped in a way that changes its tensors: _orig_mod\."):
        run.save_weights(trainer, config, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_token_for_the_hub_is_in_no_file(config: TrainConfig) -> None:
    run.train(one_step(config).changed(hub_token="hf_secret"), show_progress=False)
    files = [file for file in config.output_dir.rglob("*") if file.is_file()]
    assert any(file.name == "training_args.bin" for file in files)  # Trainer's, beside its checkpoints
    for file in files:
        assert b"hf_secret" not in file.read_bytes(), file


def no_model(*_: object, **__: object) -> None:
    raise AssertionError("the model was loaded before the inputs were checked")


def test_bad_inputs_are_found_before_the_model_is_loaded(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "make_trainer", no_model)
    bad_row = tmp_path / "bad.jsonl"
    bad_row.write_text('{"prompt": "x"}\n')
    for change, problem in (
        ({"dataset_name": bad_row}, "line 1: field 'completion'"),
        ({"dataset_name": tmp_path / "absent.jsonl"}, "absent.jsonl: cannot read it"),
        ({"model_name_or_path": tmp_path / "absent"}, "absent is not a folder"),
        ({"output_dir": bad_row}, "output_dir: .* is a file"),
        ({"max_length": 5}, "line 1: the row has .* max_length is 5"),
        ({"max_length": 5000}, "max_length: 5000 is more than the base's 512 positions"),
    ):
        with pytest.raises(UserError, match=problem):
            run.train(config.changed(**change), show_progress=False)


class Killed(Exception):
    pass


@pytest.mark.parametrize("saved", [False, True], ids=["file", "saved-folder"])
def test_rows_that_are_trained_are_not_evaluated_as_held_out(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: bool
) -> None:
    monkeypatch.setattr(run, "make_trainer", no_model)
    if saved:
        datasets.Dataset.from_list([{"prompt": "a", "completion": "b"}]).save_to_disk(str(tmp_path / "saved"))
        config = config.changed(dataset_name=tmp_path / "saved")
    with pytest.raises(UserError, match="has no splits, so evaluation during training would be on the rows that are"):
        run.train(config.changed(eval_strategy="steps", eval_steps=30), show_progress=False)


def test_a_wish_to_evaluate_without_a_time_for_it_needs_no_rows_of_its_own(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scripts around Transformers' Trainer set `do_eval` for what they do after training."""
    given = []

    def make_trainer(*_: Any, held_out: Any, **__: Any) -> Any:
        given.append(held_out)
        raise Killed

    monkeypatch.setattr(run, "make_trainer", make_trainer)
    with pytest.raises(Killed):
        run.train(config.changed(do_eval=True), show_progress=False)
    assert given == [None]


def losses(folder: Path) -> dict[int, float]:
    state = json.loads((folder / "trainer_state.json").read_text())
    return {entry["step"]: entry["loss"] for entry in state["log_history"] if "loss" in entry}


@pytest.mark.parametrize("use_peft", [False, True], ids=["full", "lora"])
def test_a_run_that_was_killed_goes_on_with_the_same_losses(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_peft: bool
) -> None:
    config = config.changed(
        use_peft=use_peft,
        max_steps=8,
        per_device_train_batch_size=2,  # an epoch has two steps, so step 5 is in the middle of one
        logging_steps=1,
        save_strategy="steps",
        save_steps=1,
    )
    whole = run.train(config.changed(output_dir=tmp_path / "whole"), show_progress=False)

    step = run.CacheConditionedTrainer.training_step

    def die_in_step_six(trainer: run.CacheConditionedTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        if trainer.state.global_step == 5:
            raise Killed
        return step(trainer, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(run.CacheConditionedTrainer, "training_step", die_in_step_six)
        with pytest.raises(Killed):
            run.train(config, show_progress=False)
    with pytest.raises(UserError, match="holds checkpoints of an unfinished run; go on with resume_from_checkpoint"):
        run.train(config, show_progress=False)
    (config.output_dir / "notes.txt").write_text("keep")
    resumed = run.train(config.changed(resume_from_checkpoint=True), show_progress=False)
    assert (config.output_dir / "notes.txt").exists()

    expected = losses(whole.path / "checkpoint-8")
    assert list(expected) == list(range(1, 9))
    assert losses(resumed.path / "checkpoint-8") == pytest.approx(expected, abs=1e-5)
    weights = [load_file(next(module.path.glob("*model.safetensors"))) for module in (whole, resumed)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor)


@pytest.mark.parametrize("use_peft", [False, True], ids=["full", "lora"])
def test_a_run_that_goes_on_leaves_no_other_modules_files(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, use_peft: bool
) -> None:
    """Beside a full module's, an earlier adapter would be loaded on top of the weights."""
    run.train(config.changed(max_steps=1, use_peft=not use_peft, lora_r=4), show_progress=False)
    old = {file.name for file in config.output_dir.iterdir()}
    (config.output_dir / "notes.txt").write_text("keep")
    step = run.CacheConditionedTrainer.training_step

    def die_in_step_two(trainer: run.CacheConditionedTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        if trainer.state.global_step == 1:
            raise Killed
        return step(trainer, *args, **kwargs)

    again = one_step(config).changed(use_peft=use_peft, lora_r=4, max_steps=2)
    with monkeypatch.context() as patched:
        patched.setattr(run.CacheConditionedTrainer, "training_step", die_in_step_two)
        with pytest.raises(Killed):
            run.train(again.changed(overwrite_output_dir=True), show_progress=False)
    assert old <= {file.name for file in config.output_dir.iterdir()}
    module = run.train(again.changed(resume_from_checkpoint=True), show_progress=False)
    left = {file.name for file in module.path.iterdir()}
    full = {"config.json", "generation_config.json", "model.safetensors"}
    lora = {"adapter_config.json", "adapter_model.safetensors"}
    ours, others = (lora, full) if use_peft else (full, lora)
    assert ours | {"notes.txt"} <= left
    assert not others & left


def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(
    config: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config.changed(max_steps=2, save_strategy="steps", save_steps=1, logging_steps=1)
    run.train(config, show_progress=False)
    first, cut = config.output_dir / "checkpoint-1", config.output_dir / "checkpoint-2"
    expected = losses(cut)
    (cut / "trainer_state.json").unlink()
    again = config.changed(resume_from_checkpoint=True)
    assert run.train(again).manifest.training["steps"] == 2
    assert f"passed over {cut}, which was not written to its end" in capsys.readouterr().err
    assert losses(cut) == pytest.approx(expected, abs=1e-5)

    for checkpoint in (first, cut):
        (checkpoint / "trainer_state.json").unlink()
    with pytest.raises(UserError, match=r"holds no finished checkpoint; .*overwrite_output_dir=true"):
        run.train(again, show_progress=False)
    with pytest.raises(UserError, match=rf"{cut} is not a finished checkpoint: .*trainer_state.json; name another"):
        run.train(config.changed(resume_from_checkpoint=str(cut)), show_progress=False)


def test_a_checkpoint_of_weights_alone_is_refused(config: TrainConfig) -> None:
    """Transformers would go on from it without a word, with a new optimiser and another warm-up."""
    run.train(one_step(config).changed(save_only_model=True), show_progress=False)
    checkpoint = config.output_dir / "checkpoint-1"
    for named in (True, str(checkpoint)):
        with pytest.raises(UserError, match=rf"{checkpoint} has no optimiser and schedule .*save_only_model"):
            run.train(config.changed(resume_from_checkpoint=named), show_progress=False)


def one_step(config: TrainConfig) -> TrainConfig:
    return config.changed(max_steps=1, save_strategy="steps", save_steps=1)


ROWS_PER_STEP = "per_device_train_batch_size * gradient_accumulation_steps * processes"


def test_a_checkpoint_of_something_else_is_refused_by_name(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.train(one_step(config), show_progress=False)
    other_base = save_base(tmp_path / "other", tiny_model(5))
    other_data = tmp_path / "other.jsonl"
    other_data.write_text(config.dataset_name.read_text().replace("say", "tell"))
    digests = [compute_identity(folder).digest for folder in (config.model_name_or_path, other_base)]

    again = one_step(config).changed(resume_from_checkpoint=True)
    with monkeypatch.context() as patched:
        patched.setattr(run, "make_trainer", no_model)
        for change, line in (
            ({"model_name_or_path": other_base}, f"model_name_or_path: was {digests[0]}, is {digests[1]}"),
            ({"dataset_name": other_data}, f"dataset_name: was {digest(config.dataset_name)}, is {digest(other_data)}"),
            ({"use_peft": True}, "use_peft: was full, is lora"),
            ({"instructions": "behind_context"}, "instructions: was in_place, is behind_context"),
            ({"shuffle_dataset": True}, "shuffle_dataset: was False, is True"),
            ({"seed": 7}, "seed: was 42, is 7"),
            ({"learning_rate": 1e-3}, "learning_rate: was 0.01, is 0.001"),
            ({"per_device_train_batch_size": 2}, f"{ROWS_PER_STEP}: was 4, is 2"),
        ):
            with pytest.raises(UserError, match=r"checkpoint-1 was made with .*overwrite_output_dir=true") as caught:
                run.train(again.changed(**change), show_progress=False)
            assert str(caught.value).splitlines()[1:] == [f"  {line}"]

        with pytest.raises(UserError, match=r"\n  rows that are used .*: was 4 conversations, .* is 2 conv") as caught:
            run.train(again.changed(max_length=14, skip_invalid=True), show_progress=False)
        assert len(str(caught.value).splitlines()) == 2

    moved = config.dataset_name.rename(tmp_path / "moved.jsonl")  # the same rows under another name
    longer = again.changed(dataset_name=moved, max_steps=2)
    assert run.train(longer, show_progress=False).manifest.training["steps"] == 2

    record = config.output_dir / RECORD_NAME
    for content, problem in (("{}", f"cannot use {record}"), (None, f"has no {RECORD_NAME}, so nothing says")):
        record.write_text(content) if content else record.unlink()
        with pytest.raises(UserError, match=rf"resume_from_checkpoint: .*{problem}(.|\n)*overwrite_output_dir=true"):
            run.train(longer, show_progress=False)


def test_an_adapter_goes_on_only_as_the_function_that_it_was(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = one_step(config).changed(use_peft=True)
    run.train(config, show_progress=False)
    again = config.changed(resume_from_checkpoint=True, max_steps=2)
    with monkeypatch.context() as patched:
        patched.setattr(run, "make_trainer", no_model)
        with pytest.raises(UserError, match=r"checkpoint-1 was made with .*\n  lora_alpha: was 32, is 64$"):
            run.train(again.changed(lora_alpha=64), show_progress=False)
    assert run.train(again.changed(lora_dropout=0.2), show_progress=False).manifest.training["steps"] == 2


def test_a_checkpoint_may_lie_elsewhere(config: TrainConfig, tmp_path: Path) -> None:
    """Then the output folder is that of a new run, and its record is as well."""
    first = run.train(one_step(config), show_progress=False)
    new = config.changed(
        output_dir=tmp_path / "new", resume_from_checkpoint=str(first.path / "checkpoint-1"), max_steps=2
    )
    with pytest.raises(UserError, match=r"was made with .*\n  instructions: was in_place, is behind_context"):
        run.train(new.changed(instructions="behind_context"), show_progress=False)
    assert not new.output_dir.exists()

    (new.output_dir / "checkpoint-9").mkdir(parents=True)
    with pytest.raises(UserError, match="holds checkpoints of an unfinished run"):
        run.train(new, show_progress=False)
    second = run.train(new.changed(overwrite_output_dir=True), show_progress=False)
    assert second.manifest.training["steps"] == 2
    assert not (new.output_dir / "checkpoint-9").exists()
    assert (second.path / RECORD_NAME).read_text() == (first.path / RECORD_NAME).read_text()


def test_starting_again_does_not_remove_the_checkpoint_that_it_starts_from(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that did not end, so that its folder holds no module."""
    run.train(one_step(config), show_progress=False)
    earlier = config.output_dir / "earlier"
    run.train(one_step(config).changed(output_dir=earlier), show_progress=False)
    (earlier / MANIFEST_NAME).unlink()
    (tmp_path / "linked").symlink_to(earlier)
    again = config.changed(overwrite_output_dir=True, max_steps=2)
    with monkeypatch.context() as patched:
        patched.setattr(run, "make_trainer", no_model)
        for folder in (earlier, tmp_path / "linked"):
            checkpoint = folder / "checkpoint-1"
            message = f"overwrite_output_dir=true would remove resume_from_checkpoint {earlier}/checkpoint-1 "
            with pytest.raises(UserError, match=message):
                run.train(again.changed(resume_from_checkpoint=str(checkpoint)), show_progress=False)
    own = again.changed(resume_from_checkpoint=str(config.output_dir / "checkpoint-1"))
    assert run.train(own, show_progress=False).manifest.training["steps"] == 2  # these stay
    assert not earlier.exists()


def die(*_: object, **__: object) -> None:
    raise Killed


def test_a_fresh_run_has_a_record_of_its_own(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = one_step(config)
    with monkeypatch.context() as patched:
        patched.setattr(run.CacheConditionedTrainer, "training_step", die)
        with pytest.raises(Killed):
            run.train(config, show_progress=False)
    (config.output_dir / "runs" / "Jan01").mkdir(parents=True)  # as with `report_to: tensorboard`
    run.train(config, show_progress=False)  # nothing there is worth keeping
    assert (config.output_dir / "runs" / "Jan01").is_dir()
    behind = config.changed(instructions="behind_context", overwrite_output_dir=True)
    run.train(behind, show_progress=False)
    again = behind.changed(resume_from_checkpoint=True, max_steps=2)
    assert run.train(again, show_progress=False).manifest.instructions == "behind_context"


def test_what_else_a_run_left_is_replaced_on_demand(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = one_step(config)
    with monkeypatch.context() as patched:
        patched.setattr(run.CacheConditionedTrainer, "training_step", die)
        with pytest.raises(Killed):
            run.train(config, show_progress=False)
    (config.output_dir / "emissions.csv").touch()  # as with `report_to: codecarbon`
    with pytest.raises(UserError, match=r"it holds emissions.csv; .* start again with overwrite_output_dir=true"):
        run.train(config, show_progress=False)
    assert run.train(config.changed(overwrite_output_dir=True), show_progress=False).manifest.training["steps"] == 1


def test_the_rows_that_were_read_are_not_kept_while_it_trains(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    for split in ("train", "test"):
        shutil.copy(config.dataset_name, rows / f"{split}.jsonl")
    read, step, stores, alive = run.read, run.CacheConditionedTrainer.training_step, [], []

    def watched_read(*args: Any, **kwargs: Any) -> LoadedData:
        data = read(*args, **kwargs)
        stores.append(weakref.ref(data.examples))
        return data

    def watched_step(*args: Any, **kwargs: Any) -> torch.Tensor:
        gc.collect()
        alive.append([store() is not None for store in stores])
        return step(*args, **kwargs)

    monkeypatch.setattr(run, "read", watched_read)
    monkeypatch.setattr(run.CacheConditionedTrainer, "training_step", watched_step)
    config = config.changed(dataset_name=rows, eval_strategy="steps", max_steps=1)
    data = run.train(config, show_progress=False).manifest.training["data"]
    assert alive == [[False, False]]
    assert (data["rows"], data["responses"]) == (4, 4)


def test_another_end_token_than_the_bases_is_refused(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    module = run.train(config.changed(max_steps=1, eos_token="<|im_end|>"), show_progress=False)
    assert "eos_token" not in module.manifest.training["hyper_parameters"]
    monkeypatch.setattr(run, "make_trainer", no_model)
    with pytest.raises(UserError, match=r"eos_token: 'a' is not the base's, '<\|im_end\|>': .*in the base's"):
        run.train(config.changed(eos_token="a", overwrite_output_dir=True), show_progress=False)


def test_the_manifest_is_about_the_weights_that_were_saved(config: TrainConfig, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    config.dataset_name.rename(folder / "train.jsonl")
    # What training moves away from: the first checkpoint is the best.
    (folder / "test.jsonl").write_text('{"prompt": "say one: ", "completion": "four"}\n')
    config = config.changed(
        dataset_name=folder, load_best_model_at_end=True, eval_strategy="steps", eval_steps=10, save_strategy="steps",
        save_steps=10, logging_steps=5, learning_rate=3e-2, max_steps=30,
    )  # fmt: skip
    record = run.train(config, show_progress=False).manifest.training
    state = json.loads((config.output_dir / "checkpoint-30" / "trainer_state.json").read_text())
    best = state["best_global_step"]
    assert best < 30
    assert (record["steps"], record["final_loss"]) == (best, losses(config.output_dir / "checkpoint-30")[best])
    saved = load_file(config.output_dir / "model.safetensors")
    for name, tensor in load_file(config.output_dir / f"checkpoint-{best}" / "model.safetensors").items():
        assert torch.equal(saved[name], tensor.to(torch.bfloat16))

    late = config.changed(logging_steps=20, overwrite_output_dir=True)
    record = run.train(late, show_progress=False).manifest.training
    assert (record["steps"], record["final_loss"]) == (best, None)  # nothing was logged by then


def test_held_out_rows_are_evaluated_on_the_way(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    config.dataset_name.rename(folder / "train.jsonl")
    (folder / "validation.jsonl").write_text('{"prompt": "say six: ", "completion": "six"}\n')
    run.train(
        config.changed(
            dataset_name=folder, dataset_test_split="validation", eval_strategy="steps", eval_steps=2,
            save_strategy="steps", save_steps=4, max_steps=4, logging_steps=1,
        ),
    )  # fmt: skip
    history = json.loads((config.output_dir / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [2, 4]
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training words: step ")]
    assert len(told) == len(history) + 1  # and the summary of the run, which comes after its last checkpoint
    assert [line.split(", ")[0] for line in told if "eval_loss" in line] == [
        f"training words: step {step} of 4" for step in (2, 4)
    ]


def test_a_chat_template_that_prints_the_date_is_named_once(
    config: TrainConfig, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dated = shutil.copytree(base, tmp_path / "dated")
    (dated / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}" + CHATML)
    run.train(config.changed(model_name_or_path=dated, max_steps=1))
    assert capsys.readouterr().err.count("prints today's date") == 1


def test_rows_that_are_left_out_are_counted(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    config.dataset_name.write_text(config.dataset_name.read_text() + '{"prompt": "x", "completion": " "}\n')
    config = config.changed(max_steps=1)
    with pytest.raises(UserError, match=r"1 of 5 rows cannot be used.*\n.*line 5: field 'completion'"):
        run.train(config, show_progress=False)
    module = run.train(config.changed(skip_invalid=True))
    assert (module.manifest.training["data"]["rows"], module.manifest.training["data"]["skipped"]) == (4, 1)
    assert "left out 1 rows that cannot be used (the first:" in capsys.readouterr().err


def test_the_manifest_records_where_instructions_stand(config: TrainConfig) -> None:
    module = run.train(config.changed(max_steps=1, instructions="behind_context"), show_progress=False)
    assert module.manifest.instructions == "behind_context"


def test_packed_rows_train_the_same_conversations(config: TrainConfig) -> None:
    config = config.changed(packing=True, max_length=64)
    tokenizer = byte_tokenizer()
    examples = read_examples(config.dataset_name, tokenizer).examples
    packed = run.make_trainer(config, examples, tokenizer).train_dataset
    assert len(packed) < len(examples)
    assert sum(len(row["conversations"]) for row in packed) == len(examples)
    run.train(config, show_progress=False)
    assert answer(config, "say two: ") == "two"


def test_packed_rows_are_as_long_as_those_of_trl(config: TrainConfig, tmp_path: Path) -> None:
    """And not as the base's context, of which an epoch would be a few rows; longer only where a conversation is."""
    wide = tiny_model()
    wide.config.max_position_embeddings = 4096
    config = config.changed(packing=True, model_name_or_path=save_base(tmp_path / "wide", wide))
    for longest, lengths in ((100, [1000, 1000]), (1500, [1500, 1500])):
        examples = [single([1] * 90, [2] * 10)] * 20
        examples[0] = single([1] * (longest - 10), [2] * 10)
        rows = run.make_trainer(config, examples, byte_tokenizer()).train_dataset
        assert sorted(rows["length"])[-2:] == lengths


def test_rows_are_shuffled_by_the_seed_where_it_is_asked_for(config: TrainConfig) -> None:
    """As TRL does it: with sequential sampling, shuffling the dataset is what decides the order."""
    tokenizer = byte_tokenizer()
    examples = read_examples(config.dataset_name, tokenizer).examples
    rows = datasets.Dataset.from_list([{"number": number} for number in range(len(examples))])
    for seed in (1, 2):
        shuffled = config.changed(shuffle_dataset=True, seed=seed)
        order = [
            row["conversations"][0]["ids"] for row in run.make_trainer(shuffled, examples, tokenizer).train_dataset
        ]
        assert order == [examples[number].ids for number in rows.shuffle(seed=seed)["number"]]
    assert order != [example.ids for example in examples]


def test_an_unproven_architecture_is_refused_by_name(config: TrainConfig, tmp_path: Path) -> None:
    base = save_base(tmp_path / "strange")
    settings = json.loads((base / "config.json").read_text())
    for architecture in ("gpt_neox", "no_such_thing"):
        (base / "config.json").write_text(json.dumps({**settings, "model_type": architecture}))
        with pytest.raises(
            UserError, match=rf"architecture '{architecture}'.*gemma2, gemma3_text, llama, mistral, qwen2, qwen3"
        ):
            run.train(config.changed(model_name_or_path=base), show_progress=False)


def test_target_modules_that_the_base_lacks_are_refused(config: TrainConfig) -> None:
    config = config.changed(use_peft=True, lora_target_modules=["no_such_proj"])
    with pytest.raises(UserError, match=r"lora_target_modules: .*no_such_proj"):
        run.train(config, show_progress=False)


@pytest.mark.parametrize("use_peft", [False, True], ids=["full", "lora"])
def test_the_base_is_kept_in_the_compute_dtype_and_trained_weights_in_float32(
    config: TrainConfig, tmp_path: Path, use_peft: bool
) -> None:
    config = config.changed(bf16=True, use_peft=use_peft, max_steps=2)
    examples = read_examples(config.dataset_name, byte_tokenizer()).examples
    trainer = run.make_trainer(config, examples, byte_tokenizer())
    prefixes = [[example.ids[: example.spans[0][0] - 1]] for example in examples]
    kv = trainer.base_kv(trainer.model, prefixes)
    if not use_peft:  # bit for bit what a server in that dtype computes, rotary frequencies included
        with torch.no_grad():
            served = base_pass(load_base(config.model_name_or_path, dtype=torch.bfloat16), prefixes)
        assert all(
            torch.equal(a, b)
            for ours, theirs in zip(kv.layers, served.layers, strict=True)
            for a, b in zip(ours, theirs, strict=True)
        )
    assert kv.layers[0][0].dtype == torch.bfloat16
    assert {weight.dtype for weight in trainer.model.parameters() if weight.requires_grad} == {torch.float32}
    trainer.train()
    assert final_loss(trainer) > 0
