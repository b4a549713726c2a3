from pathlib import Path

import pytest

from prefillshare import hardware
from prefillshare.engine import command
from prefillshare.errors import UserError
from prefillshare.training.config import load_train_config
from prefillshare.training.refusals import MAX_LORA_RANK

MINIMAL = "model_name_or_path: base\ndataset_name: data.jsonl\noutput_dir: out/sql\n"


def write(folder: Path, content: str) -> Path:
    file = folder / "train.yaml"
    file.write_text(content)
    return file


def test_paths_start_at_the_files_folder_and_those_of_overrides_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load_train_config(write(tmp_path, MINIMAL), ["output_dir=new"])
    assert config.model_name_or_path == tmp_path / "base"
    assert config.output_dir == tmp_path / "elsewhere" / "new"
    assert config.module_name == "new"


def test_overrides_replace_fields_and_have_their_types(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL + "learning_rate: 0.1\n")
    overrides = ["learning_rate=1e-3", "use_peft=true", "lora_target_modules=[q_proj, v_proj]", "name=x"]
    config = load_train_config(file, overrides)
    assert config.get("learning_rate") == 1e-3
    assert config.use_peft is True
    assert config.get("lora_target_modules") == ["q_proj", "v_proj"]
    assert config.module_name == "x"


@pytest.mark.parametrize(
    ("content", "overrides", "problem"),
    [
        (MINIMAL + "pakking: true\n", [], "pakking: Extra inputs are not permitted"),
        (MINIMAL, ["learning_rat=1"], "learning_rat: Extra inputs"),
        (MINIMAL, ["learning_rate"], "override 'learning_rate': expected key=value"),
        (MINIMAL, ["learning_rate=0"], "learning_rate: .*greater than 0 .found 0"),
        (MINIMAL, ["lr_scheduler_type=wavy"], "training config: .*wavy.* is not a valid SchedulerType"),
        (MINIMAL, ["max_steps=0"], "max_steps: must be positive .found 0"),
        (MINIMAL + "trl: {seed: 1}\n", [], "trl: not a field"),
        (MINIMAL, ["report_to=comet_ml"], "report_to: 'comet_ml' is not installed"),
        (MINIMAL, ["dtype=bf16"], "dtype: must be one of auto, bfloat16, float16, float32 .found 'bf16'"),
        (MINIMAL, ["loss_type=dtf"], "loss_type: must be one of nll, dft, chunked_nll .found 'dtf'"),
        (MINIMAL + "datasets: [{path: x}]\n", [], "datasets: a mixture is one folder here"),
        (MINIMAL, ["test_split_size=0.1"], "test_split_size: rows are split beforehand"),
        (MINIMAL + "env: {X: 1}\n", [], "env: set environment variables where the command is started"),
        (MINIMAL, ["seed=[1"], "override 'seed=\\[1': the value is not valid YAML"),
        (MINIMAL, ["bf16=true", "fp16=true"], "bf16: true together with fp16: true"),
        (MINIMAL, ["warmup_ratio=1.5"], "warmup_ratio: must be at least 0 and below 1 .found 1.5"),
        (MINIMAL, ["warmup_ratio=short"], "warmup_ratio: .*valid number.* .found 'short'"),
        (MINIMAL, ["warmup_ratio=0.1", "warmup_steps=few"], "warmup_steps: .*valid number.* .found 'few'"),
        (MINIMAL, ["enable_jit_checkpoint=true", "save_only_model=true"], "enable_jit_checkpoint: with save_only_"),
        ("output_dir: x\n", [], "dataset_name: Field required"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, content: str, overrides: list[str], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        load_train_config(write(tmp_path, content), overrides)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("packing_strategy=wrapped", "it cuts conversations"),
        ("padding_free=true", "use packing: true instead"),
        ("attn_implementation=flash_attention_2", "explicit attention masks"),
        ("completion_only_loss=false", "carry no loss"),
        ("assistant_only_loss=false", "carry no loss"),
        ("load_in_4bit=true", "quantised base"),
        ("chat_template_path=x.jinja", "base's identity"),
        ("use_dora=true", "does not serve"),
        ("dataset_streaming=true", "checked before training"),
        ("dataset_config=default", "a part of a data set of the Hub"),
        ("dataset_text_field=story", "plain text have no prompt"),
        ("eval_packing=true", "one to a row"),
        ("router_aux_loss_coef=0.1", "has experts"),
        ("neftune_noise_alpha=5", "the noise would be on the responses alone"),
        ("include_num_input_tokens_seen=true", "num_tokens in the log"),
        ("include_num_input_tokens_seen=non_padding", "num_tokens in the log"),
        ("lora_r=513", "vLLM serves at most rank 512"),
        ("lora_target_modules=[q_proj, embed_tokens]", "target the layers of the blocks"),
        ("lora_target_modules=lm_head", "target the layers of the blocks"),
        ("torch_compile=true", "changes the names of the tensors"),
        ("torch_compile_backend=inductor", "changes the names of the tensors"),
        ("torch_compile_mode=default", "changes the names of the tensors"),
    ],
)
def test_options_that_cannot_work_on_base_kv_are_refused_with_the_reason(
    tmp_path: Path, option: str, reason: str
) -> None:
    with pytest.raises(UserError, match=f"{option.split('=')[0]}: .* cannot be used here: .*{reason}"):
        load_train_config(write(tmp_path, MINIMAL), [option])


@pytest.mark.parametrize("option", ["loss_type=chunked_nll", "pad_token=<pad>", "eos_token=<end>"])
def test_names_for_what_is_done_anyway_are_taken(tmp_path: Path, option: str) -> None:
    """TRL's former name of `nll`; what its own collator pads with; and the base's own token, compared where that is
    read."""
    config = load_train_config(write(tmp_path, MINIMAL), [option])
    assert config.arguments().loss_type == "nll"


def test_a_refused_option_may_have_the_value_that_takes_effect(tmp_path: Path) -> None:
    overrides = ["dataset_text_field=text", "dataset_config=null", "eval_packing=false", "neftune_noise_alpha=null"]
    overrides += ["include_num_input_tokens_seen=no", "lora_r=512", "lora_target_modules=null"]
    load_train_config(write(tmp_path, MINIMAL), overrides)


def test_the_highest_rank_is_that_of_a_worker() -> None:
    assert command._LORA_RANKS[-1] == MAX_LORA_RANK


@pytest.mark.parametrize("value", ["null", "[]", "none", "[none]"])
def test_nothing_to_report_to_is_none(tmp_path: Path, value: str) -> None:
    assert load_train_config(write(tmp_path, MINIMAL), [f"report_to={value}"]).arguments().report_to == []


def test_a_trl_config_is_taken_over(tmp_path: Path) -> None:
    """What people have in a working `trl sft` YAML, with the three paths changed."""
    config = load_train_config(
        write(
            tmp_path,
            MINIMAL
            + """
learning_rate: 2e-4  # YAML reads this as text
lr_scheduler_type: cosine
warmup_ratio: 0.1
num_train_epochs: 2
per_device_train_batch_size: 4
gradient_accumulation_steps: 8
gradient_checkpointing: true
packing: true
max_length: 2048
assistant_only_loss: true
bf16: true
logging_steps: 5
save_strategy: epoch
eval_strategy: "no"
report_to: none
use_peft: true
lora_r: 32
lora_target_modules: all-linear
dataset_test_split: validation
""",
        )
    )
    arguments = config.arguments()
    assert (arguments.learning_rate, arguments.warmup_steps, arguments.num_train_epochs) == (2e-4, 0.1, 2)
    assert (arguments.gradient_accumulation_steps, arguments.bf16, arguments.logging_steps) == (8, True, 5)
    assert config.compute_dtype == "bfloat16"
    peft = config.model_arguments()
    assert (peft.lora_r, peft.use_peft, peft.lora_target_modules) == (32, True, "all-linear")


@pytest.mark.parametrize("machine", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("overrides", "dtype"),
    [
        ([], None),
        (["bf16=true"], "bfloat16"),
        (["bf16=false"], "float32"),
        (["fp16=true"], "float16"),
        (["bf16=null", "fp16=false"], None),
        (["dtype=float32"], None),  # TRL's default
        (["dtype=float32", "bf16=true"], "bfloat16"),
        (["dtype=float32", "bf16=false"], "float32"),
        (["dtype=bfloat16"], "bfloat16"),  # under which TRL trains unless told otherwise
        (["dtype=bfloat16", "bf16=true"], "bfloat16"),
        (["dtype=float16", "fp16=true", "bf16=false"], "float16"),
        (["dtype=auto"], None),
        (["dtype=auto", "fp16=true"], "float16"),
    ],
)
def test_the_compute_dtype_is_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], dtype: str | None, machine: str
) -> None:
    """None: what the machine computes fastest."""
    monkeypatch.setattr(hardware, "preferred_dtype", lambda: machine)
    config = load_train_config(write(tmp_path, MINIMAL), overrides)
    assert config.compute_dtype == (dtype or machine)
    arguments = config.arguments()
    assert (arguments.bf16, arguments.fp16) == (config.compute_dtype == "bfloat16", config.compute_dtype == "float16")


@pytest.mark.parametrize(
    ("overrides", "said", "way"),
    [
        (["dtype=bfloat16", "bf16=false"], "bfloat16 together with bf16: false and fp16: null", "bf16: true"),
        (["dtype=bfloat16", "fp16=true"], "bfloat16 together with bf16: null and fp16: true", "bf16: true"),
        (["dtype=float16"], "float16 together with bf16: null and fp16: null", "fp16: true"),
        (["dtype=float16", "bf16=true"], "float16 together with bf16: true and fp16: null", "fp16: true"),
        (["dtype=auto", "bf16=false"], "auto together with bf16: false and fp16: null", "bf16: true or fp16: true"),
        (["dtype=null", "bf16=false"], "null together with bf16: false and fp16: null", "bf16: true or fp16: true"),
    ],
)
def test_a_dtype_that_would_be_another_computation_in_trl_is_refused(
    tmp_path: Path, overrides: list[str], said: str, way: str
) -> None:
    with pytest.raises(UserError, match=f"dtype: {said} is not .*; set {way} .*, or leave dtype out"):
        load_train_config(write(tmp_path, MINIMAL), overrides)


@pytest.mark.parametrize("ratio_first", [False, True])
@pytest.mark.parametrize(("steps", "expected"), [(20, 20), (0, 0.1)])
def test_warm_up_steps_win_over_the_ratio_whatever_the_order(
    tmp_path: Path, steps: int, expected: float, ratio_first: bool
) -> None:
    """As in Transformers 4, from which configs have both."""
    lines = [f"warmup_steps: {steps}\n", "warmup_ratio: 0.1\n"]
    config = load_train_config(write(tmp_path, MINIMAL + "".join(reversed(lines) if ratio_first else lines)))
    assert config.arguments().warmup_steps == expected
    assert config.changed(warmup_ratio=0.2).get("warmup_steps") == (20 if steps else 0.2)


def test_a_changed_config_is_checked_again(tmp_path: Path) -> None:
    config = load_train_config(write(tmp_path, MINIMAL), ["seed=3"])
    assert config.changed(max_steps=4).get("max_steps") == 4
    assert config.changed(max_steps=4).get("seed") == 3
    with pytest.raises(ValueError, match="max_steps: must be positive"):
        config.changed(max_steps=0)


def test_hyper_parameters_leave_out_paths_and_names(tmp_path: Path) -> None:
    parameters = load_train_config(write(tmp_path, MINIMAL), ["learning_rate=2e-5", "name=x"]).hyper_parameters()
    assert parameters["learning_rate"] == 2e-5
    assert not {"model_name_or_path", "dataset_name", "output_dir", "name"} & parameters.keys()


def test_a_token_for_the_hub_goes_nowhere(tmp_path: Path) -> None:
    config = load_train_config(write(tmp_path, MINIMAL), ["hub_token=hf_secret"])
    assert "hub_token" not in config.hyper_parameters()
    assert config.arguments().hub_token is None
