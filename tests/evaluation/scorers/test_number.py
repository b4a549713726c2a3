import time
from fractions import Fraction
from typing import Any

import pytest

from prefillshare.evaluation.items import BadField, Item
from prefillshare.evaluation.scorers import SCORERS
from prefillshare.evaluation.scorers.number import final_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42),
        ("The answer is 42.", 42),
        ("6 * 7 = 42, so there are 42 of 50 left? No: 8", 8),
        ("3 + 4 = 7\n#### 7\nThat took 5 steps", 7),
        ("$1,234.50", Fraction("1234.5")),
        ("it costs -$3", -3),
        ("-3", -3),
        ("\u22123", -3),
        ("= -0.5", Fraction(-1, 2)),
        (".25", Fraction(1, 4)),
        ("10-3", 3),
        ("(10) - 3", 3),
        ("50%", 50),
        ("1/2", Fraction(1, 2)),
        ("The answer is 3/4.", Fraction(3, 4)),
        ("It is 3/4, so", Fraction(3, 4)),
        ("1/2.", Fraction(1, 2)),
        ("#### 3/4.", Fraction(3, 4)),
        ("= 24 / 36.\n", Fraction(2, 3)),
        ("3/4.5", Fraction(9, 2)),
        ("6/1,200", 1200),
        ("on 3/4/2020.", 2020),
        ("3/4/2020", 2020),
        ("3 / 4 / 2020", 2020),
        ("/data/3/4", 4),
        (r"\boxed{\frac{3}{4}}", Fraction(3, 4)),
        (r"\boxed{1\frac{3}{4}}", Fraction(7, 4)),
        (r"That is -12 \dfrac{1}{2}.", Fraction(-25, 2)),
        (r"It is $\frac{3}{4}$, or \frac{3}{4}.", Fraction(3, 4)),
        (r"\boxed{\frac{-1}{2}}", Fraction(-1, 2)),
        ("\\frac{\u22121}{2}", Fraction(-1, 2)),
        (r"\frac{1}{ -2 }", Fraction(-1, 2)),
        (r"x=-\frac{-1}{2}", Fraction(1, 2)),
        (r"x\frac{-1}{2}", Fraction(-1, 2)),
        (r"\frac{3.5}{2}", Fraction(7, 4)),
        (r"\tfrac{.5}{\$1,000}", Fraction(1, 2000)),
        (r"\dfrac{1{,}000}{3\,000}", Fraction(1, 3)),
        (r"\frac12", Fraction(1, 2)),
        (r"-2\frac 1{4}", Fraction(-9, 4)),
        (r"5-\frac{1}{2}", Fraction(1, 2)),
        (r"\frac{1}{2}-3", 3),
        (r"x^{2}-3", 3),
        (r"\text{so:}-3", -3),
        (r"\frac{k}{2} = 7", 7),
        ("use \\frac{1 for it\nso 3", 3),
        (r"#### \frac{-3}{4} of 5", Fraction(-3, 4)),
        (r"= 3 = \frac{\pi}{2}", None),
        (r"\frac{\sqrt{3}}{2}", None),
        (r"\frac{\frac{1}{2}}{3}", None),
        (r"2\frac{-1}{2}", None),
        (r"2\frac{3.5}{2}", None),
        (r"\frac{1}{2", None),
        (r"so \frac1{24", None),
        ("x = \\frac{\n1}{24", None),
        (r"\frac{1}{0}", None),
        (r"\boxed{1{,}234}", 1234),
        (r"-1{,}234{,}567.5", Fraction("-1234567.5")),
        (r"1\,234\,567\text{ m}", 1234567),
        (r"1,\!000", 1000),
        (r"1{,\!}000", 1000),
        (r"1{\,}000", 1000),
        (r"1\ 000", 1000),
        (r"3.141\,592", Fraction("3.141592")),
        (r"1{,}234\frac{1}{2}", Fraction(2469, 2)),
        (r"1{,}2345", 2345),
        (r"(1,\,234)", 234),
        (r"12\,m of 345", 345),
        (r"H2\,000", 0),
        ("1.5e3", 1500),
        ("2E-2", Fraction(1, 50)),
        ("1,2345", 2345),
        ("x is 3, 4", 4),
        ("15kg", 15),
        ("12 of H2O", 12),
        ("7/0", None),
        ("none", None),
        ("", None),
    ],
)
def test_the_final_number(text: str, number: Any) -> None:
    assert final_number(text) == number


@pytest.mark.parametrize("text", [r"\frac{", r"\frac{1}{", r"\frac{{{{", r"\frac ", r"1\,", r"1\,234", "1" * 9, "-"])
def test_a_model_that_repeats_itself_is_read_in_no_time(text: str) -> None:
    started = time.monotonic()
    final_number(text * 10_000)
    assert time.monotonic() - started < 5  # it takes a hundredth of that; quadratic would be minutes


def test_a_huge_exponent_is_not_written_out() -> None:
    final_number("1e999999999")  # returns at all


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("#### 1,000", "1000", True),
        ("0.5", "1/2", True),
        ("3.0", 3, True),
        ("0.3", 0.1 + 0.2, True),
        ("0.3001", 0.3, False),
        ("41", 42, False),
        ("no idea", 42, False),
        ("-5", 5, False),
        (r"\frac{-1}{2}", "2", False),
        (r"\frac{-1}{2}", "-0.5", True),
        (r"\boxed{1{,}234}", "1,234", True),
        ("0", 0, True),
    ],
)
def test_numbers_are_compared_by_value(answer: str, expected: Any, right: bool) -> None:
    assert SCORERS["number"](answer, Item("q", expected)) is right


@pytest.mark.parametrize("answer", ["1" * 5000, "1/" + "3" * 5000, "0." + "3" * 5000, r"\frac{1}{" + "3" * 5000 + "}"])
def test_more_digits_than_python_converts_are_no_number(answer: str) -> None:
    assert not SCORERS["number"](answer, Item("q", "3"))
    with pytest.raises(BadField, match="expected"):
        SCORERS["number"].check(Item("q", answer))


@pytest.mark.parametrize("expected", ["many", True, None, [1], r"\frac{\pi}{2}"])
def test_an_item_without_a_number_is_refused(expected: Any) -> None:
    with pytest.raises(BadField, match="expected"):
        SCORERS["number"].check(Item("q", expected))
