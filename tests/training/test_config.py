from pathlib import Path

import pytest

from prefillshare.errors import UserError
from prefillshare.training.config import load_train_config

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
    assert config.learning_rate == 1e-3
    assert config.use_peft is True
    assert config.lora_target_modules == ("q_proj", "v_proj")
    assert config.module_name == "x"


@pytest.mark.parametrize(
    ("content", "overrides", "problem"),
    [
        (MINIMAL + "packing: true\n", [], "packing: Extra inputs are not permitted"),
        (MINIMAL, ["learning_rat=1"], "learning_rat: Extra inputs"),
        (MINIMAL, ["learning_rate"], "override 'learning_rate': expected key=value"),
        (MINIMAL, ["learning_rate=0"], "learning_rate: .*greater than 0.*found 0"),
        (MINIMAL, ["lr_scheduler_type=wavy"], "lr_scheduler_type: Input should be 'linear', .*found 'wavy'"),
        (MINIMAL, ["max_steps=0"], "max_steps must be positive, or -1"),
        (MINIMAL, ["seed=[1"], "override 'seed=\\[1': the value is not valid YAML"),
        ("output_dir: x\n", [], "dataset_name: Field required"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, content: str, overrides: list[str], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        load_train_config(write(tmp_path, content), overrides)


def test_hyper_parameters_leave_out_paths_and_names(tmp_path: Path) -> None:
    parameters = load_train_config(write(tmp_path, MINIMAL)).hyper_parameters()
    assert parameters["learning_rate"] == 2e-5
    assert not {"model_name_or_path", "dataset_name", "output_dir", "name"} & parameters.keys()
