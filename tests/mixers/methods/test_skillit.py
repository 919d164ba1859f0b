"""Skill-It against the released rule in float64, the public graphs, and the orientation of its graph."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from driving import KEY, PRECISIONS, drive, evaluations, softmax
from tolerance import WEIGHTS

from jaxmix.core.errors import ConfigError
from jaxmix.mixers.methods.skillit import skill_graph, skillit

M = 4
GRAPH = [[1.0, 0.5, 0.0, 0.2], [0.0, 0.9, 0.1, 0.0], [0.3, 0.0, 0.8, 0.6], [0.0, 0.4, 0.0, 0.7]]
PRIOR = np.array([0.4, 0.3, 0.2, 0.1])
PUBLIC_TWO = [[0.758, 0.522], [0.668, 0.719]]
PUBLIC_THREE = [[0.758, 0.428, 0.522], [0.423, 0.642, 0.480], [0.671, 0.499, 0.721]]


def oracle(
    losses,
    graph,
    prior,
    *,
    step_size=0.2,
    window=3,
    reduce="sum",
    relative=False,
    schedule="constant",
    start="prior",
    anchored=False,
    orientation="source_to_target",
    per_update=2,
):
    """The released trainer's rule with lists of losses; weights after every evaluation, the first row before any."""
    m, graph = len(prior), np.array(graph)
    graph = graph if orientation == "source_to_target" else graph.T
    anchor = np.array(prior) if anchored else np.ones(m)
    p = np.array(prior, float)
    if start == "graph":
        p = anchor * np.exp(step_size * graph @ np.ones(m))
        p /= p.sum()
    measured = [[] for _ in range(m)]
    history = [p]
    for count, row in enumerate(losses, start=1):
        for j in range(m):
            if np.isfinite(row[j]):
                measured[j].append(row[j])
        if count % per_update == 0:
            summed = np.zeros(m)
            for j, seen in enumerate(measured):
                if seen:
                    last = seen[-window:]
                    summed[j] = sum(last) if reduce == "sum" else np.mean(last)
                    summed[j] /= seen[0] if relative else 1.0
            eta = step_size
            if schedule == "loss_ratio":
                eta /= sum(seen[-1] for seen in measured if seen) / sum(seen[0] for seen in measured if seen)
            p = anchor * np.exp(eta * graph @ summed)
            p = p / p.sum()
        history.append(p)
    return np.array(history)


@pytest.mark.parametrize(("is_double", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"reduce": "mean", "step_size": 0.5},
        {"relative": True, "window": 5},
        {"schedule": "loss_ratio", "window": 1},
        {"start": "graph", "orientation": "lmo"},
        {"anchored": True, "start": "graph"},
        {"anchored": True, "relative": True, "schedule": "loss_ratio", "reduce": "mean", "step_size": 1.0},
    ],
)
@pytest.mark.parametrize("per_update", [1, 3])
def test_equals_the_released_rule(is_double, tolerance, settings, per_update):
    losses = evaluations(9, 31, M, missing=0.1)
    mixer = skillit(GRAPH, evaluate_every=10, update_every=10 * per_update, **settings)
    records = [{"validation_loss": row} for row in losses]
    weights, _, state = drive(mixer, M, records, prior=PRIOR, is_double=is_double)
    expected = oracle(losses, GRAPH, PRIOR, per_update=per_update, **settings)
    np.testing.assert_allclose(weights, expected[1:], rtol=0, atol=tolerance)
    np.testing.assert_allclose(mixer.final(state), expected[1:].mean(axis=0), rtol=0, atol=tolerance)
    np.testing.assert_allclose(mixer.weights(mixer.init(KEY, M, jnp.asarray(PRIOR))), expected[0], atol=1e-6)


def test_summing_triples_the_step_while_the_window_fills():
    mixer = skillit(0.0, step_size=0.1, evaluate_every=1, update_every=1)
    weights, _, _ = drive(mixer, 2, [{"validation_loss": [3.0, 2.0]}] * 5)
    odds = np.log(weights[:, 0] / weights[:, 1])
    np.testing.assert_allclose(odds, [0.1, 0.2, 0.3, 0.3, 0.3], atol=1e-6)


@pytest.mark.parametrize("graph", [PUBLIC_TWO, PUBLIC_THREE])
def test_first_weights_of_the_public_graphs(graph):
    mixer = skillit(graph, start="graph")
    expected = softmax(0.2 * np.array(graph).sum(axis=1))
    np.testing.assert_allclose(mixer.weights(mixer.init(KEY, len(graph))), expected, rtol=0, atol=WEIGHTS)


def test_rows_are_sources():
    """Domain 0 helps the worst domain, 2, and no other: it gains, and would lose if the graph were transposed."""
    graph = np.eye(3)
    graph[0, 2] = 0.9
    record = [{"validation_loss": [0.5, 1.0, 3.0]}]
    settings = {"step_size": 0.5, "evaluate_every": 1, "update_every": 1}
    (right,), _, _ = drive(skillit(graph.tolist(), **settings), 3, record)
    (wrong,), _, _ = drive(skillit(graph.T.tolist(), **settings), 3, record)
    assert (right[0], wrong[0]) == (pytest.approx(0.447, abs=6e-4), pytest.approx(0.150, abs=6e-4))
    (lmo,), _, _ = drive(skillit(graph.T.tolist(), orientation="lmo", **settings), 3, record)
    np.testing.assert_array_equal(lmo, right)


def test_one_number_stands_for_all_edges():
    full = np.full((M, M), 0.5)
    np.fill_diagonal(full, 1.0)
    records = [{"validation_loss": row} for row in evaluations(10, 4, M)]
    np.testing.assert_array_equal(drive(skillit(0.5), M, records)[0], drive(skillit(full.tolist()), M, records)[0])


@pytest.mark.parametrize("graph", [[[0.0] * 3] * 3, [[0.7] * 3] * 3])
def test_an_empty_and_a_complete_graph_say_nothing(graph):
    weights, _, _ = drive(skillit(graph), 3, [{"validation_loss": [1.0, 2.0, 3.0]}] * 2)
    np.testing.assert_allclose(weights[-1], 1 / 3, atol=1e-6)


def test_moves_only_when_an_update_is_due_and_something_was_measured():
    mixer = skillit(0.5)
    assert mixer.cadence[:2] == (250, 250)
    nothing, something = {"validation_loss": [np.nan] * 2}, {"validation_loss": [1.0, 2.0]}
    weights, infos, _ = drive(mixer, 2, [nothing, nothing, something, something], prior=[0.3, 0.7])
    np.testing.assert_allclose(weights[:3], [[0.3, 0.7]] * 3, rtol=1e-6)
    np.testing.assert_allclose(weights[3], softmax([0.2 * (2 + 0.5 * 4), 0.2 * (4 + 0.5 * 2)]), atol=1e-6)
    np.testing.assert_allclose([info.extra["step_size"] for info in infos], 0.2, rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_graph_from_one_domain_runs(seed):
    rng = np.random.default_rng(seed)
    start, end = rng.uniform(1, 4, M).astype(np.float32), rng.uniform(0.2, 5, (M, M)).astype(np.float32)
    expected = np.zeros((M, M))
    for source in range(M):
        for target in range(M):
            expected[source, target] = max((float(start[target]) - float(end[source, target])) / start[target], 0)
    graph = jax.jit(skill_graph)(jnp.asarray(start), jnp.asarray(end))
    np.testing.assert_allclose(graph, expected, atol=1e-6)
    assert (expected == 0).any()
    skillit(graph.tolist()).init(KEY, M)


def test_a_loss_of_zero_has_nothing_to_gain():
    graph = skill_graph(jnp.asarray([0.0, 2.0]), jnp.asarray([[0.0, 1.0], [1.0, 3.0]]))
    np.testing.assert_array_equal(graph, [[0.0, 0.5], [0.0, 0.0]])


@pytest.mark.parametrize(
    ("graph", "arguments", "message"),
    [
        ([[1.0, 0.5]], {}, r"m rows of m numbers \(skillit\(graph\)\)"),
        ([[1.0, 0.5], [1.0]], {}, "m rows of m numbers"),
        ([], {}, "m rows of m numbers"),
        ([[1.0, -0.5], [0.0, 1.0]], {}, r"finite and ≥ 0, got -0\.5"),
        (float("nan"), {}, "finite and ≥ 0, got nan"),
        (0.5, {"update_every": 300}, r"multiple of evaluate_every, got 300 and 250 \(skillit\(update_every\)\)"),
        (0.5, {"window": 0}, r"skillit\(window\)"),
        (0.5, {"step_size": -1.0}, r"skillit\(step_size\)"),
        (0.5, {"reduce": "avg"}, r"unknown reduce 'avg'"),
        (0.5, {"schedule": "los_ratio"}, "'loss_ratio'"),
        (0.5, {"start": "ones"}, r"skillit\(start\)"),
        (0.5, {"orientation": "lom"}, "'lmo'"),
    ],
)
def test_errors(graph, arguments, message):
    with pytest.raises(ConfigError, match=message):
        skillit(graph, **arguments)


@pytest.mark.parametrize("start", ["prior", "graph"])
def test_the_graph_must_fit_the_domains(start):
    with pytest.raises(ConfigError, match=r"2 rows and columns for 3 domains \(skillit\(graph\)\)"):
        skillit(PUBLIC_TWO, start=start).init(KEY, 3)
