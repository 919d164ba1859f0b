"""Charts as SVG text that goes straight into a page: no files, no scripts, ink that follows the page's color."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxmix.report.html import Html

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

_INK, _GRID = "#010203", "#040506"
"""Stand-ins, replaced by the page's text color: matplotlib cannot write `currentColor` itself."""

COLORS = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377",
    "#ee8866", "#44aa99", "#999933", "#882255", "#77aadd", "#bbbbbb",
)  # fmt: skip
"""Paul Tol's bright and muted schemes: told apart by color-blind readers, on white and on dark."""

_DASHES = ("-", "--", ":", "-.")

_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxmix",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}


class Line(NamedTuple):
    """One curve.

    Attributes:
        label: in the legend; curves of equal label share one entry.
        x, y: points; nan breaks the line.
        style: index of color; curves of one group share it.
        is_thin: drawn thinner, for single seeds.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: int
    is_thin: bool = False


def lines(
    curves: Sequence[Line],
    *,
    name: str,
    x_label: str = "step",
    y_label: str,
    y_from_zero: bool = False,
    y_top: float | None = None,
) -> Html:
    """Curves with a legend beside them; `y_top` gives charts that are compared one scale."""
    with _figure(8.0, 3.4) as figure:
        axes = figure.subplots()
        _draw(axes, curves)
        _label(axes, x_label, y_label)
        if y_from_zero:
            axes.set_ylim(bottom=0, top=y_top)
        _legend(figure, axes)
        return _svg(figure, name)


def panels(
    groups: Mapping[str, Sequence[Line]], *, name: str, x_label: str = "step", y_label: str, columns: int = 3
) -> Html:
    """One small panel per group, each with its own vertical scale, one legend for all."""
    with _panels(list(groups), columns, margin=0.4, height=1.9, share_x=True) as (figure, grid):
        for axes, curves in zip(grid, groups.values(), strict=True):
            _draw(axes, curves)
        for axes in grid[-columns:]:
            axes.set_xlabel(x_label, fontsize=8)
            axes.tick_params(labelbottom=True)
        figure.supylabel(y_label, fontsize=9)
        _legend(figure, grid[0], below=True)
        return _svg(figure, name)


def scatters(
    groups: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    name: str,
    x_label: str,
    y_label: str,
    line: str | None = "identity",
    columns: int = 4,
    share_x: bool = False,
) -> Html:
    """One small panel of points per group, and a line that the points are held against.

    Args:
        groups: title → x and y; points that are not finite are left out.
        line: "identity" (y = x), "zero" (y = 0), or None.
        share_x: give all panels one scale of x.
    """
    with _panels(list(groups), columns, margin=0.5, height=1.9, share_x=share_x) as (figure, grid):
        for axes, (x, y) in zip(grid, groups.values(), strict=True):
            kept = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
            xs, ys = [a for a, _ in kept], [b for _, b in kept]
            axes.plot(xs, ys, "o", color=COLORS[0], markersize=2.5, alpha=0.7, markeredgewidth=0)
            if line == "zero":
                axes.axhline(0.0, color=_INK, linewidth=0.8)
            elif line and kept:
                axes.axline((min(xs), min(xs)), slope=1.0, color=_INK, linewidth=0.8)
            axes.locator_params(nbins=4)
            axes.tick_params(labelbottom=True)
        figure.supxlabel(x_label, fontsize=9)
        figure.supylabel(y_label, fontsize=9)
        return _svg(figure, name)


def stacked(curves: Sequence[Line], *, name: str, x_label: str = "step", y_label: str) -> Html:
    """Shares that add up to 1, one band per curve; it has no width before a curve begins and after it ends."""
    import numpy as np

    with _figure(8.0, 3.0) as figure:
        axes = figure.subplots()
        curves = [curve for curve in curves if curve.x]
        if curves:
            x = sorted(set().union(*(curve.x for curve in curves)))
            axes.stackplot(
                x,
                [np.interp(x, c.x, c.y, left=0.0, right=0.0) for c in curves],
                labels=[c.label for c in curves],
                colors=[_color(c.style) for c in curves],
                linewidth=0,
            )
        axes.set_ylim(0, 1)
        axes.margins(x=0)
        _label(axes, x_label, y_label)
        _legend(figure, axes, reverse=True)
        return _svg(figure, name)


def bars(
    groups: Sequence[str],
    values: Mapping[str, Sequence[float]],
    *,
    name: str,
    y_label: str,
    caps: Mapping[str, float] | None = None,
    y_top: float | None = None,
) -> Html:
    """Bars side by side: one cluster per group, one bar per series.

    Args:
        groups: names along the axis.
        values: series name → one value per group.
        caps: group → a limit, drawn as a line over the cluster.
        y_top: end of the scale, for charts that are compared.
    """
    limits = {i: cap for i, g in enumerate(groups) if math.isfinite(cap := (caps or {}).get(g, math.inf))}
    with _figure(8.0, 3.2) as figure:
        axes = figure.subplots()
        width = 0.8 / max(len(values), 1)
        for index, (label, heights) in enumerate(values.items()):
            middles = [g - 0.4 + width * (index + 0.5) for g in range(len(groups))]
            axes.bar(middles, list(heights), width * 0.92, label=label, color=_color(index))
        for index, cap in limits.items():
            legend = "limit" if index == min(limits) else None
            axes.plot([index - 0.45, index + 0.45], [cap, cap], color=_INK, linewidth=1.6, label=legend)
        axes.set_xticks(range(len(groups)), list(groups), rotation=20 if len(groups) > 5 else 0, ha="center")
        axes.set_ylim(top=y_top)
        _label(axes, "", y_label)
        axes.grid(axis="x", visible=False)
        _legend(figure, axes)
        return _svg(figure, name)


class Dot(NamedTuple):
    """A mean with its interval, in one row of a dot plot.

    Attributes:
        label: of the row.
        mean: where the dot is.
        low, high: ends of the interval; equal to the mean where there is none.
        points: the single values, drawn as small strokes.
        style: index of color.
    """

    label: str
    mean: float
    low: float
    high: float
    points: Sequence[float]
    style: int


def dots(groups: Mapping[str, Sequence[Dot]], *, name: str, x_label: str, columns: int = 3) -> Html:
    """One small panel per group, all with one scale: a row per dot, its interval as a line, zero marked.

    The first dot is on top.
    """
    titles = list(groups) if len(groups) > 1 else [""] * len(groups)
    deepest = max((len(g) for g in groups.values()), default=1)
    with _panels(titles, columns, margin=0.6, height=0.7 + 0.24 * deepest, share_x=True) as (figure, grid):
        for index, (axes, group) in enumerate(zip(grid, groups.values(), strict=True)):
            for y, dot in enumerate(group):
                color = _color(dot.style)
                axes.plot(list(dot.points), [y] * len(dot.points), "|", color=color, markersize=7, alpha=0.6)
                axes.plot([dot.low, dot.high], [y, y], "-", color=color, linewidth=1.6)
                axes.plot([dot.mean], [y], "o", color=color, markersize=5)
            axes.axvline(0.0, color=_INK, linewidth=0.8)
            axes.set_yticks(range(len(group)), [d.label if index % columns == 0 else "" for d in group])
            axes.set_ylim(len(group) - 0.5, -0.5)
            axes.locator_params(axis="x", nbins=4)
            axes.tick_params(labelbottom=True)
        figure.supxlabel(x_label, fontsize=9)
        return _svg(figure, name)


class Matrix(NamedTuple):
    """A matrix to be drawn as a heat map, with one more column beside it that has its own scale.

    Attributes:
        title: above the matrix.
        values: one row per entry of the rows' names; nan stays empty.
        beside: one value per row, nan stays empty.
    """

    title: str
    values: Sequence[Sequence[float]]
    beside: Sequence[float]


def heat_maps(
    matrices: Sequence[Matrix], names: Sequence[str], *, name: str, x_label: str, y_label: str, beside_label: str
) -> Html:
    """Heat maps in a row, orange above 0 and purple below, each scaled by its own largest entry."""
    size, width = len(names), 8.0 if len(matrices) > 1 else 5.0
    middles = [i + 0.5 for i in range(size)]
    with _figure(width, 1.3 + 0.8 * (width / max(len(matrices), 1) - 0.8)) as figure:
        ratios = [max(size, 2), 1.0] * len(matrices)
        grid = figure.subplots(1, len(ratios), squeeze=False, gridspec_kw={"width_ratios": ratios})[0]
        for index, (title, values, beside_values) in enumerate(matrices):
            matrix, beside = grid[2 * index], grid[2 * index + 1]
            for axes, table in ((matrix, values), (beside, [[value] for value in beside_values])):
                largest = max((abs(v) for row in table for v in row if math.isfinite(v)), default=0.0) or 1.0
                _mesh(axes, table, cmap="PuOr_r", vmin=-largest, vmax=largest)
                for spine in axes.spines.values():
                    spine.set_visible(False)
            matrix.set_title(title, fontsize=8)
            matrix.set_xticks(middles, list(names), rotation=90, fontsize=7)
            matrix.set_yticks(middles, list(names) if index == 0 else [""] * size, fontsize=7)
            matrix.set_ylabel(y_label if index == 0 else "", fontsize=8)
            beside.set_xticks([0.5], [beside_label], rotation=90, fontsize=7)
            beside.set_yticks([])
        figure.supxlabel(x_label, fontsize=8)
        return _svg(figure, name)


def heat_over_steps(
    rows: Sequence[str],
    steps: Sequence[float],
    values: Sequence[Sequence[float]],
    *,
    name: str,
    value_label: str,
    most: float = 1.0,
) -> Html:
    """One row per name, one column per step, dark for 0 and bright for `most`, with a bar that shows the scale.

    Args:
        rows: names, the first on top.
        steps: places of the columns, ascending; a column reaches half-way to its neighbors.
        values: one sequence per row; nan stays empty.
        most: end of the scale.
    """
    between = [(a + b) / 2 for a, b in itertools.pairwise(steps)]
    edges = [steps[0], *between, steps[-1]] if between else [steps[0] - 0.5, steps[0] + 0.5]
    with _figure(8.0, 0.9 + 0.17 * len(rows)) as figure:
        axes = figure.subplots()
        mesh = _mesh(axes, values, x_edges=edges, cmap="viridis", vmin=0.0, vmax=most)
        axes.set_yticks([i + 0.5 for i in range(len(rows))], list(rows), fontsize=7)
        axes.set_xlabel("step")
        axes.tick_params(labelsize=7)
        bar: Any = figure.colorbar(mesh, ax=axes, pad=0.01, aspect=30)
        bar.set_label(value_label, fontsize=8)
        bar.ax.tick_params(labelsize=7)
        bar.solids.set_rasterized(False)
        for spine in (*axes.spines.values(), bar.outline):
            spine.set_visible(False)
        return _svg(figure, name)


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    """A matplotlib figure made without pyplot, so that no global state or display is touched."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS):
        yield Figure(figsize=(width, height))


@contextmanager
def _panels(
    titles: Sequence[str], columns: int, *, margin: float, height: float, share_x: bool = False
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure with one panel per title, in rows of `columns`; places left over in the last row stay empty."""
    columns = min(columns, max(len(titles), 1))
    rows = max(math.ceil(len(titles) / columns), 1)
    with _figure(8.0, margin + rows * height) as figure:
        grid = list(figure.subplots(rows, columns, sharex=share_x, squeeze=False).ravel())
        for axes in grid[len(titles) :]:
            axes.set_visible(False)
        for axes, title in zip(grid, titles, strict=False):
            axes.set_title(title, fontsize=9 if columns < 4 else 8)
            axes.tick_params(labelsize=8)
        yield figure, grid[: len(titles)]


def _color(style: int) -> str:
    return COLORS[style % len(COLORS)]


def _mesh(
    axes: Axes, values: Sequence[Sequence[float]], *, x_edges: Sequence[float] | None = None, **colors: Any
) -> QuadMesh:
    """Cells as vector shapes (an image would be a bitmap), the first row on top."""
    import numpy as np

    table = np.ma.masked_invalid(np.asarray(values, float))
    x = np.arange(table.shape[1] + 1) if x_edges is None else np.asarray(x_edges)
    mesh = axes.pcolormesh(x, np.arange(table.shape[0] + 1), table, edgecolors="none", **colors)
    axes.set_ylim(table.shape[0], 0)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    return mesh


def _draw(axes: Axes, curves: Sequence[Line]) -> None:
    seen: set[str] = set()
    for curve in curves:
        axes.plot(
            list(curve.x),
            list(curve.y),
            _DASHES[(curve.style // len(COLORS)) % len(_DASHES)],
            color=_color(curve.style),
            linewidth=0.9 if curve.is_thin else 1.5,
            marker="o" if len(curve.x) == 1 else None,
            markersize=3,
            label=None if curve.label in seen else curve.label,
        )
        seen.add(curve.label)


def _label(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.tick_params(labelsize=8)


def _legend(figure: Figure, axes: Axes, *, below: bool = False, reverse: bool = False) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) < 2:
        return
    if reverse:  # the order of the bands, top to bottom
        handles, labels = handles[::-1], labels[::-1]
    if below:
        figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    else:
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)


def _svg(figure: Figure, name: str) -> Html:
    """The figure as an `<svg>` element: unique ids, page-colored ink, a title for screen readers."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", partial(_adapt_tag, name), text)
    text = re.sub(r'(<svg [^>]*?)width="[^"]*"', r'\1width="100%"', text, count=1)
    text = re.sub(r'(<svg [^>]*?)height="[^"]*"', r'\1role="img"', text, count=1)
    return Html(text.replace(">", f"><title>{escape(name)}</title>", 1))


def _adapt_tag(name: str, tag: re.Match[str]) -> str:
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", tag[0])
    return text.replace(f"stroke: {_GRID}", "stroke: currentColor; stroke-opacity: 0.18").replace(_INK, "currentColor")
