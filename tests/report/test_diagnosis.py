import math

import numpy as np
import pytest

from jaxmix.report.diagnosis import interaction_snapshots, is_near_one_hot, lag_sentence, warnings
from jaxmix.report.run_folder import load_run

NAMES = ("a", "b", "c")


def ended(folder, write_run, add_records, *weights):
    """A run whose logged weights end with the given ones, two of them in its last tenth where there are two."""
    write_run(folder, dict.fromkeys(NAMES, 1.0), moving=True)
    last = load_run(folder).train[-1]
    steps = [100] if len(weights) == 1 else [95, 100]
    for step, row in zip(steps, weights, strict=True):
        add_records(folder, {**last, "step": step, **{f"mix/weight/{n}": w for n, w in zip(NAMES, row, strict=True)}})
    return load_run(folder)


@pytest.mark.parametrize(
    ("weights", "is_warned"),
    [
        ((0.96, 0.02, 0.02), True),
        ((0.90, 0.05, 0.05), True),  # exp(H) = 1.48
        ((0.89, 0.055, 0.055), False),  # exp(H) = 1.53
        ((0.5, 0.5, 0.0), False),
        ((1.0, 0.0, 0.0), True),
    ],
)
def test_near_one_hot(tmp_path, write_run, add_records, weights, is_warned):
    run = ended(tmp_path / "run", write_run, add_records, weights)
    assert is_near_one_hot(run) is is_warned
    assert len(warnings(run)) == is_warned


def test_probes_that_take_turns_are_no_collapse(tmp_path, write_run, add_records):
    assert not is_near_one_hot(ended(tmp_path / "run", write_run, add_records, (0.98, 0.01, 0.01), (0.01, 0.98, 0.01)))


def test_one_domain_and_written_weights_are_no_collapse(tmp_path, write_run):
    assert not is_near_one_hot(load_run(write_run(tmp_path / "one", {"a": 1.0})))
    assert not is_near_one_hot(constant(tmp_path / "written", write_run, prior={"a": 1.0, "b": 0.0}))


def constant(folder, write_run, *, prior):
    """A run whose logged weights are one-hot all along."""
    write_run(folder, {"a": 1.0, "b": 1.0}, extra={"prior": prior})
    text = (folder / "metrics.jsonl").read_text()
    for name, weight in (("a", 1.0), ("b", 0.0)):
        text = text.replace(f'"mix/weight/{name}": 0.5', f'"mix/weight/{name}": {weight}')
    (folder / "metrics.jsonl").write_text(text)
    return load_run(folder)


def test_fixed_weights_near_one_hot_are_said_to_be_set(tmp_path, write_run, add_records):
    for name, needs in (("static", []), ("odm", ["loss_sum"])):
        about = {"prior": {"a": 0.98, "b": 0.02}, "mixer": {"name": name, "needs": needs}}
        folder = write_run(tmp_path / name, {"a": 1.0, "b": 1.0}, extra=about)
        weights = {"mix/weight/a": 0.98, "mix/weight/b": 0.02}
        add_records(folder, *({**record, **weights} for record in load_run(folder).train))
        (sentence,) = warnings(load_run(folder))
        assert "near one-hot. Over the last tenth of the run a had 98.0 % of the weight" in sentence
        assert ("The configuration sets these weights." in sentence) == (name == "static")
        assert ("Known remedies" in sentence) == (name == "odm")


def test_a_mixture_of_what_was_left_is_said_to_be_that(tmp_path, write_run, add_records):
    folder = write_run(tmp_path / "run", {"a": 1.0, "b": 1.0})
    weights = {"mix/weight/a": 1.0, "mix/weight/b": 0.0}
    add_records(folder, {"kind": "used_up", "step": 10, "used_up/b": 1.0})
    add_records(folder, *({**record, **weights} for record in load_run(folder).train))
    (sentence,) = warnings(load_run(folder))
    assert sentence.endswith("equal domains. b ran out.")


def test_a_collapse_before_the_first_record_is_one(tmp_path, write_run):
    assert is_near_one_hot(constant(tmp_path / "run", write_run, prior={"a": 0.5, "b": 0.5}))


def test_a_run_without_records_has_nothing_to_say(tmp_path, write_run):
    folder = write_run(tmp_path / "run", {"a": 1.0, "b": 2.0})
    (folder / "metrics.jsonl").write_text("")
    run = load_run(folder)
    assert (warnings(run), lag_sentence(run), interaction_snapshots(run)) == ([], "", [])


def evaluation(step, losses, kind="eval"):
    return {"kind": kind, "step": step, **{f"{kind}/loss/{n}": x for n, x in zip(NAMES, losses, strict=True)}}


@pytest.fixture
def planted(tmp_path, write_run, add_records):
    """Losses that fall by exactly A p per logged interval of ten steps, with A logged at every step but one."""
    rng = np.random.default_rng(0)
    matrix, losses = rng.uniform(0.1, 1.0, (3, 3)), np.array([9.0, 8.0, 7.0])
    folder = write_run(tmp_path / "run", dict.fromkeys(NAMES, 1.0), moving=True)
    records = load_run(folder).train
    (folder / "metrics.jsonl").write_text("")
    add_records(folder, evaluation(0, losses))
    drops = []
    for record in records:
        weights = np.array([record[f"mix/weight/{n}"] for n in NAMES])
        drops.append(matrix @ weights)
        losses = losses - drops[-1]
        logged = {f"mix/interaction/{a}/{b}": matrix[i, j] for i, a in enumerate(NAMES) for j, b in enumerate(NAMES)}
        add_records(
            folder,
            {**record, **(logged if record["step"] != 30 else {})},
            {
                "kind": "eval",
                "step": record["step"],
                **{f"eval/loss/{n}": x for n, x in zip(NAMES, losses, strict=True)},
            },
        )
    return folder, matrix, drops


def test_estimates_stand_beside_what_came_about(planted):
    folder, matrix, drops = planted
    snapshots = interaction_snapshots(load_run(folder))
    assert [s.step for s in snapshots] == [10, 50, 70, 100]
    assert [(s.start, s.end) for s in snapshots] == [(0, 10), (40, 50), (60, 70), (90, 100)]
    for snapshot in snapshots:
        np.testing.assert_allclose(snapshot.matrix, matrix)
        np.testing.assert_allclose(snapshot.realized, drops[snapshot.step // 10 - 1])
        assert snapshot.correlation == pytest.approx(1.0)


def test_an_interval_reaches_back_to_where_there_was_an_evaluation(planted, add_records):
    folder, _, drops = planted
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines = [line for line in lines if '"kind": "train"' in line or '"step": 60,' in line]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    add_records(folder, evaluation(0, (9.0, 8.0, 7.0)))
    last = interaction_snapshots(load_run(folder))[-1]
    assert (last.start, last.end) == (0, 60)
    np.testing.assert_allclose(last.realized, np.sum(drops[:6], axis=0))


def test_the_mixers_own_evaluations_are_taken_where_there_are_some(planted, add_records):
    folder, _, _ = planted
    add_records(
        folder,
        *(
            {"kind": "control", "step": s, **{f"control/loss/{n}": 5.0 - s / 100 for n in NAMES}}
            for s in range(0, 101, 20)
        ),
    )
    last = interaction_snapshots(load_run(folder))[-1]
    assert (last.start, last.end) == (80, 100)
    assert last.realized == pytest.approx([0.2] * 3)
    assert last.correlation is None  # all fell alike


def test_domains_that_are_kept_out_stay_empty(planted):
    folder, _, drops = planted
    lines = []
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        for name in NAMES:
            for key in (f'"mix/interaction/b/{name}"', f'"mix/interaction/{name}/b"'):
                if key in line:
                    head, tail = line.split(key + ": ")
                    line = head + key + ": null" + tail[min(i for i, c in enumerate(tail) if c in ",}") :]
        lines.append(line)
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    last = interaction_snapshots(load_run(folder))[-1]
    assert math.isnan(last.matrix[1][0])
    assert math.isnan(last.matrix[0][1])
    assert last.realized == pytest.approx(list(drops[-1]))
    assert last.correlation is None  # b is drawn here and its effect unknown
