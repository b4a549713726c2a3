from pathlib import Path

import pytest

from prefillshare.errors import UserError
from prefillshare.simulate.accelerators import ACCELERATORS, accelerator_of

L40S = "flops: 362e12\nmemory_bytes: 48e9\nmemory_bandwidth: 8.64e11\nnetwork: 12.5e9\n"


def file_of(folder: Path, text: str) -> str:
    file = folder / "device.yaml"
    file.write_text(text)
    return str(file)


def test_known_accelerators_go_by_their_names() -> None:
    assert accelerator_of("h100") is ACCELERATORS["h100"]


def test_others_are_read_from_a_file(tmp_path: Path) -> None:
    found = accelerator_of(file_of(tmp_path, L40S))
    assert (found.flops, found.memory_bytes, found.memory_bandwidth, found.network) == (362e12, 48e9, 864e9, 12.5e9)
    assert (found.nvlink, found.max_num_batched_tokens) == (None, 2048)
    more = accelerator_of(file_of(tmp_path, L40S + "nvlink: 50e9\nmax_num_batched_tokens: 4096\n"))
    assert (more.nvlink, more.max_num_batched_tokens) == (50e9, 4096)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (L40S.replace("362e12", "362"), r"flops: .*greater than or equal to 1000000000 \(found 362\)"),
        (L40S.replace("48e9", "a lot"), r"memory_bytes: .* \(found 'a lot'\)"),
        (L40S.replace("12.5e9", ".inf"), "network: .*finite"),
        (L40S.replace("network: 12.5e9\n", ""), "network: Field required"),
        (L40S + "cores: 3\n", "cores: Extra inputs"),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_the_units(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        accelerator_of(file_of(tmp_path, text))
    assert str(caught.value).startswith("hardware: ")
    assert "`flops: 312e12`" in str(caught.value)


def test_an_unknown_one_is_refused_with_what_there_is() -> None:
    message = r"hardware: there is no 'a10'; there is a100-80g, h100, or give a YAML file with flops, .*network"
    with pytest.raises(UserError, match=message):
        accelerator_of("a10")
