from pathlib import Path

import pytest

from prefillshare.errors import UserError
from prefillshare.router.placement import rules
from prefillshare.router.placement.rules.balance import Balance
from prefillshare.router.placement.rules.prefix import Prefix
from prefillshare.router.placement.table import build_rules, known_rules, policies
from prefillshare.router_config import PlacementConfig

DOCS = Path(__file__).parents[3] / "docs" / "router.md"


def build(*entries: object) -> list:
    return build_rules(PlacementConfig.model_validate({"prefill": entries}).prefill, "router.placement.prefill")


def test_every_file_is_one_rule_of_its_name_explained_and_tested() -> None:
    files = {path.stem for path in Path(rules.__path__[0]).glob("*.py")} - {"__init__"}
    assert known_rules().keys() == files
    for name, rule in known_rules().items():
        assert rule.__doc__
        assert (Path(__file__).parent / "rules" / f"test_{name}.py").is_file()
        assert f"| `{name}` |" in DOCS.read_text(), f"docs/router.md does not explain {name}"


def test_rules_come_in_the_files_order_with_their_parameters() -> None:
    assert build({"prefix": {"share": 0.5}}, "balance", {"balance": {"tokens": 7}}) == [
        Prefix(share=0.5),
        Balance(),
        Balance(tokens=7),
    ]


def test_the_defaults_are_known_rules() -> None:
    assert len(policies(PlacementConfig())) == 2


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("nearest", r"^router\.placement\.prefill\.1: there is no rule 'nearest'; there is balance, .*, session$"),
        ({"session": {"ttl": 3}}, r"^router\.placement\.prefill\.1\.session\.ttl: .*its parameters are: none$"),
        ({"balance": {"token": 3}}, r"\.1\.balance\.token: .*its parameters are: factor, tokens$"),
        ({"balance": {"factor": 0.5}}, r"\.1\.balance\.factor: .*greater than or equal to 1 \(found 0\.5\)$"),
        ({"prefix": {"share": "much"}}, r"\.1\.prefix\.share: .*number.*\(found 'much'\)$"),
    ],
)
def test_what_is_wrong_is_named_with_what_would_be_right(entry: object, says: str) -> None:
    with pytest.raises(UserError, match=says):
        build("load", entry)


def test_both_legs_are_read() -> None:
    with pytest.raises(UserError, match=r"^router\.placement\.decode\.0: "):
        policies(PlacementConfig.model_validate({"decode": ["nearest"]}))
