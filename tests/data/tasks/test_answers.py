"""Answers out of text: a table of forms, and that no string whatever breaks the verifiers."""

from fractions import Fraction

import pytest
from hypothesis import given, strategies as st

from jaxmix.data.tasks.answers import extract_answer, is_same_answer, parse_number

HALF = Fraction(1, 2)
NUMBERS = {
    "42": 42,
    "-7": -7,
    "+7": 7,
    "\u22123": -3,
    "- 3": -3,
    "1,250": 1250,
    "12,345,678.5": Fraction(24691357, 2),
    "$18": 18,
    "-$18.00": -18,
    "\u20ac1,000": 1000,
    "50%": 50,
    r"50\%": 50,
    "3/4": Fraction(3, 4),
    "-1/2": -HALF,
    "1 / 2": HALF,
    "1 1/2": 1 + HALF,
    "-2 1/2": -2 - HALF,
    r"\frac{1}{2}": HALF,
    r"-\dfrac{1}{2}": -HALF,
    r"\frac{10}{20}": HALF,
    ".5": HALF,
    "0.50": HALF,
    "5.": 5,
    "2.5e3": 2500,
    "1e-1": Fraction(1, 10),
    "3 million": 3_000_000,
    "$2.5M": 2_500_000,
    r"2{,}500": 2500,
    "12 apples": 12,
    "12apples": 12,
    "12-inch": 12,
    "7 miles per hour": 7,
    "9 cm^2": 9,
    r"5\text{ cm}": 5,
    r"5 \mathrm{kg}": 5,
    "x = 5": 5,
    "= 5": 5,
    "(5)": 5,
    "{5}": 5,
    "90\u00b0": 90,
    "007": 7,
}
NO_NUMBERS = [
    "",
    "x",
    "five",
    "1/0",
    "1 1/0",
    "1, 2",
    "3 4",
    "1.2.3",
    "12/3/4",
    "1e9999",
    "--3",
    "5+3",
    "9" * 500,
    "2 = 3",
    "5k-3",
    "y = 6z",
    "6p",
]
ANSWERS = {
    "5 * 3 = 15\n#### 15": "15",
    "#### 3\nno, wait\n####  -1,200 ": "-1,200",
    "####\nthe answer is 7": "7",
    r"so \boxed{42}.": "42",
    r"\boxed{1} then \boxed{\frac{3}{4}}": r"\frac{3}{4}",
    r"\boxed{a{b}c}": "a{b}c",
    r"\boxed 5 and \boxed{6": "6",
    "#### 4 and \\boxed{5}": "4 and \\boxed{5}",
    "He has 12 apples, then 1,200 apples.": "1,200",
    "it costs $3.50.": "$3.50",
    "that is 10-5=5": "5",
    "the score was 3-2": "2",
    "it is -2": "-2",
    "about \u22124 degrees": "-4",
    "it is 1 1/2 cups": "1 1/2",
    r"which is \frac{3}{8} of it": "3/8",
    "7, 8 and 9!": "9",
    "no number here": None,
    "#### Work\n4+5=9\n#### Result\n\\boxed{9}": "9",
    "#### Result\nthe answer is 12": "12",
    "#### **9**": "9",
    "#### yes": "yes",
    r"#### \boxed{72}": "72",
    "#### The answer is 72": "72",
    "#### Answer: 72": "72",
    "#### 72,": "72",
    "#### 72</s>": "72",
    "\\boxed{72}\n#### Final": "72",
    "#### 2. Add\nThe final answer is \\boxed{72}": "72",
    r"it costs \$2{,}500": "$2,500",
    "": None,
}


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers(text):
    assert parse_number(text) == NUMBERS[text]


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_no_number(text):
    assert parse_number(text) is None


@pytest.mark.parametrize("text", ANSWERS)
def test_extraction(text):
    assert extract_answer(text) == ANSWERS[text]


@pytest.mark.parametrize(
    ("given_text", "expected", "is_same"),
    [
        ("72", "72.0", True),
        ("$1,250.00", "1250", True),
        (r"\frac{1}{2}", "0.5", True),
        ("12 apples", "12", True),
        ("East.", "east", True),
        ("a  b", "A B", True),
        ("72", "73", False),
        ("0.333", "1/3", False),
        ("east", "west", False),
        (None, "1", False),
        ("", "0", False),
        ("5", "5k-3", False),
        ("6", "y=6z", False),
        ("6p", "6q", False),
        ("6p", "6", False),
        ("3", "3 million", False),
        ("3,000,000", "3 million", True),
        ("2.5", "$2.5M", False),
        ("$2,500,000", "$2.5M", True),
        ("7 minutes", "7 hours", False),
        ("7 minutes", "7", True),
        ("1 minute", "1 minutes", True),
        ("$5", "5 dollars", True),
        ("$5", "\u20ac5", False),
        ("30 km/h", "30", True),
        (r"45^\circ", "45", True),
        (r"45^{\circ}", "45 degrees", True),
        ("**9**", "9", True),
        ("5 m", "5", True),
        ("12 square meters", "12 square feet", False),
        *((text, "34", False) for text in ("3*4", "3(4)", "3{4}", "3_4")),
        ("2**10", "210", False),
        ("(1)(2)", "12", False),
        ("2*3/4", "23/4", False),
        ("(3,400)", "3,400", False),
        *((text, "5", False) for text in ("5 hundred", "5 dozen", "$5 mil", "5 and a half", "5 or six", "5 minus 2")),
        *((text, "5", False) for text in ("5 squared", "5\u00b2", "5 quarters")),
        *((text, "2", False) for text in ("2xy", "2 pi r", "2 pi")),
        ("5 hundred", "500", True),
        ("5 dozen", "60", True),
        (r"\text{East}", "East", True),
        ("(A)", "A", True),
        ("(3, 4)", "(3,4)", True),
        ("3 feet", "3 foot", True),
        ("3 boxes", "3 box", True),
        ("3 hrs", "3 hours", True),
        ("12 km", "12km", True),
        ("5 qt", "5", True),
        ("5 million qt", "5000000", True),
    ],
)
def test_comparison(given_text, expected, is_same):
    assert is_same_answer(given_text, expected) is is_same


MARKS = st.sampled_from(
    ["####", "\\boxed{", "}", "{", "\\frac{", "1", "0", ",", ".", "/", "-", "$", " ", "\n", "e9", "%", "\u0664"]
)
STRINGS = st.one_of(st.text(), st.lists(MARKS, max_size=30).map("".join))


@given(STRINGS, STRINGS)
def test_no_string_breaks_them(left, right):
    answer = extract_answer(left)
    assert answer is None or isinstance(answer, str)
    assert is_same_answer(answer, right) in (True, False)
    assert left.strip(" .$") == "" or is_same_answer(left, left)


@given(st.fractions(max_denominator=999), st.integers(0, 3))
def test_a_number_survives_its_own_text(value, decimals):
    assert parse_number(str(value)) == value
    rounded = f"{float(round(value * 10**decimals)) / 10**decimals:,.{decimals}f}"
    assert parse_number(rounded) == Fraction(rounded.replace(",", ""))
    assert extract_answer(f"thus it is {rounded} km") == rounded


@pytest.mark.parametrize(
    "text", ["\\boxed{" * 5000, "#### " * 5000, "1," * 20_000, "(" * 30_000, "9" * 30_000, "1 " * 20_000]
)
def test_long_texts_take_no_time(text):
    assert is_same_answer(extract_answer(text), "1") in (True, False)
