"""Charts as SVG: what is drawn where, in which color, and that names are text whatever they hold."""

import math
import re
from xml.etree import ElementTree

import pytest

from jaxmix.report.charts import (
    COLORS,
    Dot,
    Line,
    Matrix,
    bars,
    dots,
    heat_maps,
    heat_over_steps,
    lines,
    panels,
    scatters,
    stacked,
)

SVG = "{http://www.w3.org/2000/svg}"
LABELS = {"x_label": "step", "y_label": "nats"}


class Drawing:
    """A parsed chart; y grows upwards here, as in the data."""

    def __init__(self, svg):
        self.root = ElementTree.fromstring(svg)
        self.texts = [element.text for element in self.root.iter(f"{SVG}text")]
        self.places = {
            e.text: (float(e.get("x")), -float(e.get("y"))) for e in self.root.iter(f"{SVG}text") if e.get("x")
        }
        frames = [e for e in self.root.iter(f"{SVG}g") if re.fullmatch(r".*-axes_\d+", e.get("id", ""))]
        self.frames = [points(frame.find(f"{SVG}g/{SVG}path")) for frame in frames]

    def paths(self, **style):
        """Points of the paths inside the panels that have these style properties, in the order drawn."""
        found = []
        for path in self.root.iter(f"{SVG}path"):
            has = dict(part.split(": ") for part in path.get("style", "").split("; ") if part)
            if path.get("clip-path") and all(has.get(k.replace("_", "-")) == v for k, v in style.items()):
                found.append(points(path))
        return found

    def marks(self, color):
        """Places of the markers of a color."""
        uses = self.root.iter(f"{SVG}use")
        return [(float(u.get("x")), -float(u.get("y"))) for u in uses if f": {color}" in u.get("style", "")]


def points(path):
    numbers = [float(word) for word in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", path.get("d"))]
    return [(x, -y) for x, y in zip(numbers[::2], numbers[1::2], strict=True)]


def heights(shape):
    return max(y for _, y in shape) - min(y for _, y in shape)


def widths(shape):
    return max(x for x, _ in shape) - min(x for x, _ in shape)


def test_a_line_runs_through_its_points():
    chart = Drawing(lines([Line("a", [0, 1, 3], [1.0, 2.0, 5.0], 0)], name="n", **LABELS, y_from_zero=True))
    ((first, second, third),) = chart.paths(stroke=COLORS[0])
    assert (third[0] - first[0]) / (second[0] - first[0]) == pytest.approx(3, abs=1e-3)
    unit = second[1] - first[1]
    assert unit > 0
    assert third[1] - second[1] == pytest.approx(3 * unit, rel=1e-4)
    assert min(y for _, y in chart.frames[0]) == pytest.approx(first[1] - unit, abs=1e-3)  # the axis starts at 0
    assert {"step", "nats"} <= set(chart.texts)


def test_nan_breaks_a_line_and_one_point_is_a_dot():
    chart = Drawing(
        lines([Line("a", [0, 1, 2, 3, 4], [1, 1, math.nan, 1, 1], 0), Line("b", [2], [1], 1)], name="n", **LABELS)
    )
    assert [len(p) for p in chart.paths(stroke=COLORS[0])] == [4]
    assert chart.root.find(f".//{SVG}path[@clip-path]") is not None
    broken = next(p for p in chart.root.iter(f"{SVG}path") if COLORS[0] in p.get("style", "") and p.get("clip-path"))
    assert broken.get("d").count("M") == 2
    assert len(chart.marks(COLORS[1])) == 2  # in the panel and in the legend
    assert chart.marks(COLORS[0]) == []


def test_the_legend_names_a_label_once_and_one_label_needs_none():
    two_seeds = [Line("a", [0, 1], [0, y], 0, is_thin=True) for y in (1, 2)]
    chart = Drawing(lines([*two_seeds, Line("b", [0, 1], [0, 3], 12)], name="n", **LABELS))
    assert (chart.texts.count("a"), chart.texts.count("b")) == (1, 1)
    assert len(chart.paths(stroke=COLORS[0], stroke_width="0.9")) == 2
    styles = [
        p.get("style") for p in chart.root.iter(f"{SVG}path") if p.get("clip-path") and COLORS[0] in p.get("style")
    ]
    assert [("stroke-dasharray" in style) for style in styles] == [
        False,
        False,
        True,
    ]  # style 12: the first color, dashed
    assert "a" not in Drawing(lines(two_seeds, name="n", **LABELS)).texts


def test_panels_have_titles_and_scales_of_their_own():
    groups = {f"d{i}": [Line("a", [0, 1], [0, 10.0**i], 0)] for i in range(4)}
    chart = Drawing(panels(groups, name="n", **LABELS))
    assert len(chart.frames) == 4
    first, *_, last = (chart.places[f"d{i}"] for i in range(4))
    assert last[1] < first[1]  # three in a row, the fourth below
    assert last[0] == pytest.approx(first[0], abs=0.01)
    curves = chart.paths(stroke=COLORS[0])
    assert heights(curves[0]) == pytest.approx(heights(curves[3]), rel=0.05)
    assert chart.texts.count("step") == 3  # below the lowest panel of every column


def test_scatter_leaves_out_what_is_not_finite_and_draws_the_diagonal():
    chart = Drawing(scatters({"t": ([1.0, math.nan, 2.0, 4.0], [1.0, 1.0, math.inf, 4.0])}, name="s", **LABELS))
    (low, high) = chart.marks(COLORS[0])
    assert high > low
    ((start, end),) = chart.paths(stroke="currentColor", stroke_width="0.8", fill="none", stroke_linecap="square")[-1:]
    slope = (end[1] - start[1]) / (end[0] - start[0])
    assert slope == pytest.approx((high[1] - low[1]) / (high[0] - low[0]), rel=1e-3)  # y = x passes both points
    assert start[1] + slope * (low[0] - start[0]) == pytest.approx(low[1], abs=0.05)
    flat = Drawing(scatters({"t": ([1.0, 2.0], [-1.0, 1.0])}, name="s", **LABELS, line="zero"))
    ((left, right),) = flat.paths(stroke="currentColor", stroke_width="0.8", fill="none", stroke_linecap="square")[-1:]
    below, above = flat.marks(COLORS[0])
    assert left[1] == right[1] == pytest.approx((below[1] + above[1]) / 2, abs=1e-3)


def test_stacked_bands_fill_the_panel_and_the_legend_has_their_order():
    curves = [Line("low", [0, 1], [0.25, 0.5], 0), Line("high", [0, 1], [0.75, 0.5], 1)]
    chart = Drawing(stacked(curves, name="s", **LABELS))
    top = max(y for _, y in chart.frames[0])
    bottom = min(y for _, y in chart.frames[0])
    low, high = (chart.paths(fill=color)[0] for color in COLORS[:2])
    assert min(y for _, y in low) == pytest.approx(bottom, abs=0.01)
    assert max(y for _, y in low) == pytest.approx((bottom + top) / 2, abs=0.01)
    assert max(y for _, y in high) == pytest.approx(top, abs=0.01)
    assert chart.places["high"][1] > chart.places["low"][1]
    assert Drawing(stacked([], name="s", **LABELS)).frames


def test_a_band_has_no_width_before_its_curve_begins_and_after_it_ends():
    curves = [Line("stays", [0, 1, 2, 3], [0.5, 0.5, 0.5, 0.5], 0), Line("left", [0, 1], [0.5, 0.5], 1)]
    chart = Drawing(stacked([*curves, Line("came", [2, 3], [0.5, 0.5], 2)], name="s", **LABELS))
    low, high = (f(x for x, _ in chart.frames[0]) for f in (min, max))
    left, came = (chart.paths(fill=color)[0] for color in COLORS[1:3])
    ends = lambda band: (min(x for x, _ in band), max(x for x, _ in band))
    assert ends(left) == ends(came) == pytest.approx((low, high), abs=0.01)
    width = lambda band, x: heights([(a, b) for a, b in band if abs(a - x) < 0.01])
    assert width(left, high) == width(came, low) == pytest.approx(0, abs=0.01)
    assert width(left, low) == width(came, high) == pytest.approx(heights(chart.frames[0]) / 2, rel=1e-3)


def test_charts_that_are_compared_have_one_scale():
    top = {"y_top": 4.0, "y_from_zero": True}
    small, large = (Drawing(lines([Line("a", [0, 1], [0, y], 0)], name="n", **LABELS, **top)) for y in (1.0, 2.0))
    assert heights(large.paths(stroke=COLORS[0])[0]) == pytest.approx(
        2 * heights(small.paths(stroke=COLORS[0])[0]), rel=1e-3
    )
    tall = [Drawing(bars(["g"], {"u": [y]}, name="b", y_label="y", y_top=4.0)) for y in (1.0, 2.0)]
    assert heights(tall[1].paths(fill=COLORS[0])[0]) == pytest.approx(
        2 * heights(tall[0].paths(fill=COLORS[0])[0]), rel=1e-3
    )


def test_bars_are_as_high_as_their_values_and_a_cap_lies_over_its_group():
    caps = {"h": 2.5, "g": math.inf, "unknown": 1.0}
    chart = Drawing(bars(["g", "h"], {"u": [1.0, 2.0], "v": [3.0, 0.5]}, name="b", y_label="y", caps=caps))
    u, v = (chart.paths(fill=color) for color in COLORS[:2])
    unit = heights(u[0])
    assert [heights(bar) / unit for bar in (*u, *v)] == pytest.approx([1, 2, 3, 0.5], rel=1e-4)
    assert max(x for x, _ in u[0]) < min(x for x, _ in v[0]) < min(x for x, _ in u[1])
    (cap,) = chart.paths(stroke="currentColor", stroke_width="1.6")
    assert cap[0][1] - min(y for _, y in u[0]) == pytest.approx(2.5 * unit, rel=1e-4)
    assert cap[0][0] < min(x for x, _ in u[1])
    assert cap[1][0] > max(x for x, _ in v[1])
    assert chart.texts.count("limit") == 1
    assert chart.places["g"][0] == pytest.approx((min(x for x, _ in u[0]) + max(x for x, _ in v[0])) / 2, abs=0.1)


def test_dots_stand_in_rows_from_the_top_with_interval_and_strokes():
    group = [Dot("a", -1.0, -3.0, 1.0, (-2.0, 0.0), 0), Dot("b", 2.0, 2.0, 2.0, (2.0,), 1)]
    chart = Drawing(dots({"only": group}, name="d", x_label="difference"))
    assert "only" not in chart.texts  # one panel needs no title
    a, b = chart.marks(COLORS[0])[-1], chart.marks(COLORS[1])[-1]
    unit = (b[0] - a[0]) / 3
    assert a[1] > b[1]
    (interval,) = chart.paths(stroke=COLORS[0])
    assert [x for x, _ in interval] == pytest.approx([a[0] - 2 * unit, a[0] + 2 * unit], abs=0.01)
    assert [x for x, _ in chart.marks(COLORS[0])[:2]] == pytest.approx([a[0] - unit, a[0] + unit], abs=0.01)
    zero = chart.paths(stroke="currentColor", stroke_width="0.8", stroke_linecap="square")[-1]
    assert zero[0][0] == zero[1][0] == pytest.approx(a[0] + unit, abs=0.01)
    assert chart.places["a"][1] > chart.places["b"][1]
    several = Drawing(dots({"p": group, "q": group}, name="d", x_label="difference"))
    assert {"p", "q"} <= set(several.texts)
    assert several.texts.count("a") == 1  # rows are named in the first column


def test_heat_maps_are_orange_above_zero_and_purple_below_by_their_own_scales():
    matrices = [
        Matrix("first", [[4.0, -4.0], [0.0, math.nan]], [0.1, math.nan]),
        Matrix("second", [[0.01, 0.0], [0.0, 0.0]], [0.0, -7.0]),
    ]
    chart = Drawing(heat_maps(matrices, ["web", "code"], name="m", x_label="x", y_label="y", beside_label="realized"))
    assert len(chart.frames) == 4
    orange, purple = chart.paths(fill="#7f3b08"), chart.paths(fill="#2d004b")
    assert (len(orange), len(purple)) == (3, 2)  # 4.0, 0.1 and 0.01; −4.0 and −7.0: each the largest of its scale
    assert max(x for x, _ in orange[0]) <= min(x for x, _ in purple[0]) + 0.01  # the first row from left to right
    assert max(y for _, y in orange[0]) == pytest.approx(max(y for _, y in chart.frames[0]), abs=0.01)  # on top
    assert chart.texts.count("web") == 3  # along both axes of the first, along x of the second
    assert {"first", "second", "realized"} <= set(chart.texts)


def test_heat_over_steps_reaches_half_way_to_the_neighbors():
    values = [[0.0, 0.5, 0.0], [0.5, math.nan, 0.5]]
    chart = Drawing(heat_over_steps(["r", "s"], [0, 10, 40], values, name="h", value_label="v", most=0.5))
    dark, bright = chart.paths(fill="#440154"), chart.paths(fill="#fde725")
    cells = [dark[0], bright[0], dark[1]]
    assert [widths(cell) / widths(dark[0]) for cell in cells] == pytest.approx([1, 4, 3], rel=1e-3)  # 5, 20, 15 steps
    assert min(y for _, y in dark[0]) >= max(y for _, y in bright[1]) - 0.01  # r above s
    assert {"r", "s", "v", "step"} <= set(chart.texts)
    assert Drawing(heat_over_steps(["r"], [7], [[1.0]], name="h", value_label="v")).frames


HOSTILE = ("<script>alert(1)</script>", 'id="x" href="#y"', "url(#z) & more", "#010203", "$x^2$", "]]>")


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text_whatever_they_hold(name):
    curves = [Line(name, [0, 1], [0, 1], 0), Line("b", [0, 1], [1, 0], 1)]
    for svg in (
        lines(curves, name="n", x_label="x", y_label="y"),
        panels({name: curves, "q": curves}, name="n", x_label="x", y_label="y"),
        bars([name, "b"], {"u": [1.0, 2.0]}, name="n", y_label="y"),
        dots({"p": [Dot(name, 0.0, 0.0, 0.0, (), 0)]}, name="n", x_label="x"),
        heat_over_steps([name], [0, 1], [[0.0, 1.0]], name="n", value_label="v"),
    ):
        assert name in Drawing(svg).texts
        assert "<script" not in svg


def test_ids_carry_the_name_of_the_chart_and_ink_follows_the_page():
    svg = lines([Line("a", [0, 1], [0, 1], 0), Line("b", [0, 1], [0, 2], 1)], name="loss", **LABELS)
    chart = Drawing(svg)
    ids = [element.get("id") for element in chart.root.iter() if element.get("id")]
    assert ids
    assert all(name.startswith("loss-") for name in ids)
    references = set(re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', svg))
    assert {a or b for a, b in references} <= set(ids)
    assert chart.root.find(f"{SVG}title").text == "loss"
    assert not re.search("#010203|#040506|<image|<metadata", svg)
    assert "stroke: currentColor; stroke-opacity: 0.18" in svg  # the grid
