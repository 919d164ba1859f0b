"""Answers out of text: a table of forms, and that no string whatever breaks the verifiers."""

import re
from fractions import Fraction

import numpy as np
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
    **dict.fromkeys(["the score was 3-2", "total 3-2", "so 12:30", "so 1,5", "2^10", "so 2^{10}", "2**10", "10 - 5"]),
    **dict.fromkeys(
        ["5 sqrt 2", r"5\sqrt{2}", r"\frac{\sqrt{3}}{2}", "5 tenths", "5 and a half", "5 or 6", "5k-3", "f(5)"]
    ),
    **dict.fromkeys(
        ["on the 5th", "it is 0.3...", "101 base two", "(3, 4)", "5 x", "3 hours and 20 minutes", "5 feet, 6 inches"]
    ),
    **dict.fromkeys(["$5 and 20 cents", "5 m by 6 m", "5 degrees below zero", "x_5", "3 to 2"]),
    **dict.fromkeys(["it is about 3 million", "3 million people", "**3** million", "$3$ million"], "3 million"),
    "it costs $2.5M.": "$2.5M",
    "he ran a 5k": "5k",
    "it takes 7 hours.": "7 hours",
    "it takes 7 hours in total": "7",
    "it makes 30 km/h": "30 km/h",
    "an area of 5 m^2.": "5 m^2",
    "at 9.8 m/s^2": "9.8 m/s^2",
    "so 3, x^2": None,
    "12 are left, so 5 in total": "5",
    "it is minus 5": "-5",
    "so 5 = x": "5",
    "1 000 000": "1 000 000",
    "**Answer:** __5__": "5",
    r"so \(5\)": "5",
    "it is 5 - the total": "5",
    "it is -2": "-2",
    "about \u22124 degrees": "-4 degrees",
    "it is 1 1/2 cups": "1 1/2 cups",
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


NO_LONGER_THE_NUMBER = """5 tenths|5 hundredths|5 thousandths|2 fifths|3 fourths|2 eighths|3-fifths|5 millionth|5 sqrt 2
5 root 2|5 log 2|5sqrt|5sin|5theta|5 theta|5 alpha|5abc|5xyz|5 factorial|5 choose 2|5 to the 3|5 infinity|5 millions
5 thousands|5 hundreds|5 quadrillion|5 grand|5 lacs|5 gross|5 score|5 double|5 point five|5 remainder 2|101 base two
5 negative|0.3...|0.3\u2026|0.3\\ldots|5 M|5K|5 xy|5 seventieths|5 below zero|5 degrees below zero|5 zillion|5 x|5th
5 to|5 or so|5 apples and pears|5 hundred-dollar bills|5 hundred twenty|5 nth|5\u2075|5\u2085"""


@pytest.mark.parametrize("text", re.split(r"[|\n]", NO_LONGER_THE_NUMBER))
def test_what_follows_a_number_may_make_another_of_it(text):
    number = re.match(r"[\d.]*\d", text)[0]
    assert not is_same_answer(text, number)
    assert not is_same_answer(number, text)
    assert not is_same_answer(text, number + " m")
    assert is_same_answer(text, text)


SAME = r"""6 in|6 inches;5 kg|5 kilograms;5 km|5 kilometers;5 cm|5 centimeters;5 h|5 hours;5s|5 seconds;5g|5 grams
5L|5 liters;5 mi|5 miles;5 gal|5 gallons;5 mph|5 miles per hour;5 m²|5 m^2;5°C|5 C;5 cities|5 city;5 children|5 child
5 people|5 person;5 bus|5 buses;5 USD|$5;¥5|5;5 Million|5000000;2 hundred million|200000000;5 dozens|60
1 000 000|1000000;\frac12|1/2;½|0.5;5 = x|5;5\ \text{cm}|5;≈5|5;minus 5|-5;#5|5;1½ cups|1.5;negative 5|-5
USD 5|5 dollars;US$5|$5;$5k|5000;1\,000|1000;5 houses|5 house;5 cookies|5 cookie;5 knives|5 knife;5 lenses|5 lens
12 square meters|12 m^2;5 sq. ft.|5 ft²;5 meters per second|5 m/s;30 kph|30 km/h;5 litres|5 L;5 KM|5 km;5 lbs|5 pounds
20 degrees Celsius|20°C;5 million people|5000000;5 bags of apples|5;\(5\)|5;$5$|5 cm;5 millions|5000000;5 lacs|500000
5 quadrillion|5e15;\frac1{2}|½;x \approx 5|5;¥5|5 yen;5 metres squared|5 m²"""
SAME = [tuple(pair.split("|")) for pair in re.split(r"[;\n]", SAME)]
SAME += [
    ("1\u202f000", "1000"),
    ("\uff15", "5"),
    ("5\u200b", "5"),
    ("1\u00a0234.5", "1234.5"),
    ("5 \u00b5m", "5 micrometers"),
]


@pytest.mark.parametrize(("left", "right"), SAME)
def test_spellings_of_one_number_and_unit(left, right):
    assert is_same_answer(left, right)
    assert is_same_answer(right, left)


@pytest.mark.parametrize(
    "pair",
    """5 mW|5 MW;5 mHz|5 MHz;5 m|5 m^2;5 km/h|5 km;5 m/s|5 km/h;5 plans|5 planes;$5 per hour|$5 per day;5 in|5 cm
    ¥5|$5;5 C|5 F;5 g|5 kg;5 cars|5 cares;50%|0.5""".replace("\n    ", ";").split(";"),
)
def test_units_that_differ_are_not_the_same(pair):
    left, right = pair.split("|")
    assert not is_same_answer(left, right)
    assert not is_same_answer(right, left)


def test_plain_numbers_are_the_same_only_if_their_values_are():
    random = np.random.default_rng(0)
    scales = {"": 1, " hundred": 100, "k": 1000, " dozen": 12, " million": 10**6, " million dozen": 12 * 10**6}
    units = ["", " km", " apples", " m^2", "%", " dollars per hour", "\u00b0C"]
    answers = []
    for _ in range(40):
        digits, places = int(random.integers(0, 40)) * 10 ** int(random.integers(0, 5)), int(random.integers(0, 3))
        name = str(random.choice(list(scales)))
        text = f"{digits / 10**places:{random.choice(['', ','])}.{places}f}"
        sign = str(random.choice(["", "-", "\u2212", "minus "]))
        value = (-1 if sign else 1) * Fraction(digits, 10**places) * scales[name]
        answers.append((sign + text + name + str(random.choice(units)), value))
    for left, value in answers:
        assert parse_number(left) == value, left
        assert is_same_answer(left, left)
        assert is_same_answer(extract_answer(f"so it is {left}."), left)
        for right, other in answers:
            assert is_same_answer(left, right) is is_same_answer(right, left)
            assert value == other or not is_same_answer(left, right), (left, right)


MARKS = st.sampled_from(
    ["####", "\\boxed{", "}", "{", "\\frac{", "1", "0", ",", ".", "/", "-", "$", " ", "\n", "e9", "%", "\u0664"]
)
STRINGS = st.one_of(st.text(), st.lists(MARKS, max_size=30).map("".join))


@given(STRINGS, STRINGS)
def test_no_string_breaks_them(left, right):
    answer = extract_answer(left)
    assert answer is None or isinstance(answer, str)
    assert is_same_answer(answer, right) in (True, False)
    assert is_same_answer(left, right) is is_same_answer(right, left)
    assert left.strip(" .$") == "" or is_same_answer(left, left)


@given(st.fractions(max_denominator=999), st.integers(0, 3))
def test_a_number_survives_its_own_text(value, decimals):
    assert parse_number(str(value)) == value
    rounded = f"{float(round(value * 10**decimals)) / 10**decimals:,.{decimals}f}"
    assert parse_number(rounded) == Fraction(rounded.replace(",", ""))
    assert extract_answer(f"thus it is {rounded} as expected") == rounded
    assert extract_answer(f"thus it is {rounded} km") == f"{rounded} km"


@pytest.mark.parametrize(
    "text", ["\\boxed{" * 5000, "#### " * 5000, "1," * 20_000, "(" * 30_000, "9" * 30_000, "1 " * 20_000, " " * 30_000]
)
def test_long_texts_take_no_time(text):
    assert is_same_answer(extract_answer(text), "1") in (True, False)
