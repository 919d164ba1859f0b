import json
import threading

import numpy as np
import pytest

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.data.mixture.stream import MixtureStream

KEYS = ("tokens", "targets", "domain", "weights_version")


def token_sources(rows=(7, 20, 3), seq_len=4):
    """Every row of every source is unlike all others, so that a batch tells what was drawn."""
    sources, start = {}, 0
    for j, count in enumerate(rows):
        tokens = np.arange(start, start + count * seq_len).reshape(count, seq_len).astype(np.int32)
        sources[f"s{j}"] = tokens
        start += count * seq_len
    return sources


def make(sources=None, **options):
    defaults = {"batch_size": 6, "seq_len": 4, "seed": 1, "block": 3}
    return MixtureStream(sources or token_sources(), **{**defaults, **options})


def take(stream, count):
    return [next(stream) for _ in range(count)]


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        for key in KEYS:
            np.testing.assert_array_equal(x[key], y[key])


def reweigh(stream, number):
    """Some weights for the block after batch `number`."""
    if number % 4 == 1:
        rng = np.random.default_rng(number)
        stream.set_weights(np.where(rng.random(3) < 0.3, 0, rng.random(3)) + np.eye(3)[number % 3])


def run(stream, first, last):
    batches = []
    for number in range(first, last):
        batches.append(next(stream))
        reweigh(stream, number)
    return batches


def test_every_epoch_has_every_row_once():
    rows = (7, 20, 3)
    with make(weights=[1, 1, 1]) as stream:
        batches = take(stream, 40)
    drawn = [[] for _ in rows]
    for batch in batches:
        for domain, tokens in zip(batch["domain"], batch["tokens"], strict=True):
            drawn[domain].append(int(tokens[0]))
    for j, (count, source) in enumerate(zip(rows, token_sources(rows).values(), strict=True)):
        firsts = sorted(source[:, 0].tolist())
        times = [drawn[j].count(first) for first in firsts]
        assert sum(times) == len(drawn[j]) > 0
        assert max(times) - min(times) <= (len(drawn[j]) % count > 0)


def test_targets_follow_tokens():
    with make() as stream:
        batch = next(stream)
    assert batch["tokens"].dtype == batch["targets"].dtype == batch["domain"].dtype == np.int32
    has_target = batch["targets"] >= 0
    np.testing.assert_array_equal(batch["targets"][has_target], batch["tokens"][has_target] + 1)


@pytest.mark.parametrize("position", range(14))
def test_resume_at_every_position(position):
    with make() as stream:
        run(stream, 0, position)
        state = json.loads(json.dumps(stream.get_state()))
        expected = run(stream, position, 20)
        realized = stream.realized()
    with make() as stream:
        stream.set_state(state)
        assert stream.get_state() == state
        assert_same(run(stream, position, 20), expected)
        assert stream.realized() == realized


@pytest.mark.parametrize("prefetch", [0, 1, 8])
def test_prefetch_changes_nothing(prefetch):
    with make() as stream, make(prefetch=prefetch) as other:
        assert_same(run(stream, 0, 20), run(other, 0, 20))


@pytest.mark.parametrize("count", [2, 3, 6])
def test_processes_together_read_what_one_reads(count):
    with make() as stream:
        whole = run(stream, 0, 12)
    parts = []
    for index in range(count):
        with make(shard=(index, count)) as stream:
            parts.append(run(stream, 0, 12))
    joined = [{k: np.concatenate([p[i][k] for p in parts]) for k in KEYS} for i in range(12)]
    assert_same(joined, whole)


def test_a_run_begun_by_two_processes_goes_on_in_one():
    with make() as stream:
        whole = run(stream, 0, 12)
    with make(shard=(1, 2)) as stream:
        run(stream, 0, 7)
        state = stream.get_state()
    with make() as stream:
        stream.set_state(state)
        assert_same(run(stream, 7, 12), whole[7:])


def test_weights_take_effect_at_the_next_block_whenever_they_are_set():
    for moment in range(1, 4):  # after batch 1, 2 or 3 of a block of 3
        with make(weights=[1, 0, 0]) as stream:
            batches = take(stream, moment)
            assert stream.set_weights({"s0": 0, "s1": 0, "s2": 1}) == 1
            batches += take(stream, 6 - moment)
        assert [set(b["domain"].tolist()) for b in batches] == [{0}] * 3 + [{2}] * 3
        assert [set(b["weights_version"].tolist()) for b in batches] == [{0}] * 3 + [{1}] * 3


def test_weights_set_before_the_first_batch_draw_it():
    with make(weights=[1, 0, 0]) as stream:
        stream.set_weights([0, 1, 0])
        state = stream.get_state()
        assert set(next(stream)["domain"].tolist()) == {1}
    with make() as stream:
        stream.set_state(state)
        assert set(next(stream)["domain"].tolist()) == {1}


def test_equal_weights_keep_the_version_and_the_last_call_counts():
    with make(weights=[1, 1, 1]) as stream:
        next(stream)
        assert stream.set_weights([2, 2, 2]) == 0
        assert stream.set_weights([1, 2, 3]) == 1
        assert stream.set_weights([3, 2, 1]) == 2
        batches = take(stream, 3)
        assert batches[-1]["weights_version"].tolist() == [2] * 6


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, -0.2, 1], "'s1' has -0.2"),
        ([1, float("nan"), 1], "finite"),
        ([0, 0, 0], "all mixture weights are 0"),
        ([1, 1], "3 sources"),
        ({"s0": 1, "s1": 1, "s9": 1}, "s9"),
        ({"s0": 1, "s1": 1}, "no weight for source 's2'"),
    ],
)
def test_wrong_weights_are_refused_and_nothing_changes(weights, message):
    with make() as stream, make() as other:
        with pytest.raises(ConfigError, match=message):
            stream.set_weights(weights)
        assert_same(take(stream, 3), take(other, 3))
    with pytest.raises(ConfigError, match=message):
        make(weights=weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "token"}, "tokens"),
        ({"batch_size": 0}, "batch_size"),
        ({"block": 0}, "block"),
        ({"shard": (2, 2)}, "shard"),
        ({"shard": (0, 4)}, "multiple of 4"),
        ({"on_exhaust": "halt"}, "halt"),
        ({"on_exhaust": {"s7": "stop"}}, "s7"),
        ({"max_epochs": 0.0}, "max_epochs"),
        ({"prefetch": -1}, "prefetch"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_stop_ends_before_the_first_batch_it_cannot_fill():
    with make(weights=[1, 0, 0], on_exhaust="stop") as stream:
        assert len(list(stream)) == 1  # seven rows: one whole batch of six
        assert stream.realized()["s0"]["rows"] == 6
        with pytest.raises(StopIteration, match=r"source 's0' is used up after 7 rows \(1 epochs\), on_exhaust: stop"):
            next(stream)
        assert stream.used_up() == ()  # it did not drop out, it ended the stream


def test_sources_that_dropped_out_are_named():
    options = {"weights": [1, 1, 0], "on_exhaust": "drop", "max_epochs": {"s0": 1, "s1": 0.01}}
    with make(**options) as stream:
        assert stream.used_up() == ("s1",)  # less than one row
        next(stream)
        assert stream.used_up() == ("s1",)
        with pytest.raises(StopIteration, match="every source is used up"):
            take(stream, 9)
    with make(weights=[1, 1, 0], max_epochs={"s0": 1}, batch_size=7) as stream:
        assert [(next(stream), stream.used_up())[1] for _ in range(3)] == [(), ("s0",), ("s0",)]


def test_error_names_the_source():
    with make(on_exhaust={"s2": "error"}) as stream, pytest.raises(RunError, match="'s2' is used up after 3 rows"):
        take(stream, 10)


def test_drop_hands_the_share_to_the_others_and_ends_when_none_is_left():
    with make(on_exhaust="drop") as stream:
        batches = list(stream)
    assert len(batches) == 5  # 30 rows in all
    domains = np.concatenate([b["domain"] for b in batches])
    assert np.bincount(domains).tolist() == [7, 20, 3]
    assert len({tuple(row) for b in batches for row in b["tokens"].tolist()}) == 30


def test_max_epochs_bound_each_source():
    with make(max_epochs={"s0": 2, "s2": 1.5}) as stream:
        take(stream, 20)
        drawn = stream.realized()
    assert drawn["s0"]["rows"] == 14
    assert drawn["s2"]["rows"] == 4  # ⌊1.5 · 3⌋
    assert drawn["s1"]["rows"] == 120 - 18
    assert drawn["s1"]["epochs"] == pytest.approx(102 / 20)


@pytest.mark.parametrize("position", range(6))
def test_resume_while_sources_drop_out(position):
    with make(on_exhaust="drop") as stream:
        expected = list(stream)
    with make(on_exhaust="drop") as stream:
        take(stream, min(position, 5))
        state = stream.get_state()
    with make(on_exhaust="drop") as stream:
        stream.set_state(state)
        assert_same(list(stream), expected[position:])


def test_realized_counts_tokens_with_a_target():
    with make(weights=[3, 2, 1]) as stream:
        batches = take(stream, 7)
        drawn = stream.realized()
    for j, name in enumerate(stream.names):
        mine = [(b["domain"] == j) for b in batches]
        assert drawn[name]["rows"] == sum(m.sum() for m in mine)
        expected = sum((b["targets"][m] >= 0).sum() for b, m in zip(batches, mine, strict=True))
        assert drawn[name]["tokens"] == expected
        assert drawn[name]["asked_rows"] == pytest.approx(42 * [3, 2, 1][j] / 6)
        assert abs(drawn[name]["rows"] - drawn[name]["asked_rows"]) < 1
    assert sum(d["share"] for d in drawn.values()) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["stay", "change", "one_hot", "one_in_a_million"])
def test_no_source_is_ever_a_row_off_at_any_batch(kind):
    m = 12
    sources = {f"d{j}": np.full((5, 4), j, np.int32) for j in range(m)}
    rng = np.random.default_rng(3)
    weights = {
        "stay": lambda: [0.5, 0.3, 0.1, 0.05, 1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4, 1e-6, 0],
        "change": lambda: rng.dirichlet(np.ones(m)),
        "one_hot": lambda: np.eye(m)[rng.integers(m)],
        "one_in_a_million": lambda: 1e-6 + np.eye(m)[rng.integers(m)],
    }[kind]
    with make(sources, weights=weights(), batch_size=10) as stream:
        for number in range(150):
            next(stream)
            assert max(abs(d["rows"] - d["asked_rows"]) for d in stream.realized().values()) < 1
            if number % 2 == 0:
                stream.set_weights(weights())


def test_documents_are_shares_of_documents():
    sources = {"long": [np.zeros(40, np.int32)] * 10, "short": [np.ones(8, np.int32)] * 50}
    with MixtureStream(sources, batch_size=8, seq_len=8, seed=0, unit="documents") as stream:
        take(stream, 30)
        drawn = stream.realized()
    # Equal shares of documents: a long one is five rows, a short one is one.
    assert abs(drawn["long"]["rows"] - 200) <= 1
    assert abs(drawn["short"]["rows"] - 40) <= 1


def test_rows_are_whole_items():
    sources = {"a": [np.arange(1, n + 1) for n in (2, 4, 5)], "b": [np.arange(10, 13)]}
    with MixtureStream(sources, batch_size=4, seq_len=4, seed=0, unit="rows") as stream:
        batch = next(stream)
    for tokens, targets, domain in zip(batch["tokens"], batch["targets"], batch["domain"], strict=True):
        if domain == 1:
            assert tokens.tolist() == [10, 11, 12, 0]
            assert targets.tolist() == [11, 12, -1, -1]


def test_added_and_dropped_sources_lose_and_repeat_nothing():
    sources = token_sources((7, 20, 30))
    with make(sources) as stream:
        before = take(stream, 4)  # in the middle of a block
        state = stream.get_state()
    changed = {"s2": sources["s2"], "s0": sources["s0"], "new": 1000 + np.arange(20).reshape(5, 4)}
    with make(changed) as stream:
        with pytest.raises(ConfigError, match="Allow changed sources"):
            stream.set_state(state)
        stream.set_state(state, allow_changed_sources=True)
        after = take(stream, 4)
        realized = stream.realized()
        assert list(realized) == ["s2", "s0", "new", "s1"]  # what left stays in the totals
        assert sum(d["rows"] for d in realized.values()) == 8 * len(before[0]["domain"])
        assert sum(d["share"] for d in realized.values()) == pytest.approx(1.0)
        gone = stream.get_state()
    with make(sources) as stream:  # s1 goes on where it was
        stream.set_state(json.loads(json.dumps(gone)), allow_changed_sources=True)
        assert stream.realized()["s1"] == {**realized["s1"], "asked_rows": pytest.approx(realized["s1"]["asked_rows"])}
        assert list(stream.realized()) == ["s0", "s1", "s2", "new"]
    drawn = [int(row[0]) for b in before for row, d in zip(b["tokens"], b["domain"], strict=True) if d == 2]
    drawn += [int(row[0]) for b in after for row, d in zip(b["tokens"], b["domain"], strict=True) if d == 0]
    assert len(drawn) == 16
    assert len(set(drawn)) == 16  # within the first epoch of thirty rows
    assert any(d == 2 for b in after for d in b["domain"])


def test_a_source_with_other_rows_begins_again_where_that_is_allowed():
    sources = token_sources((7, 20, 30))
    with make(sources) as stream:
        before = take(stream, 4)
        state = json.loads(json.dumps(stream.get_state()))
    grown = {**sources, "s1": np.concatenate([sources["s1"], 1000 + np.arange(8).reshape(2, 4)])}
    with make(grown) as stream:
        with pytest.raises(ConfigError, match="'s1' had 20 rows in the saved state, and has 22 now"):
            stream.set_state(state, allow_changed_sources=True)
        assert not stream.set_state(state, allow_changed_rows=True)
        after = take(stream, 8)
        realized = stream.realized()
    drawn = lambda batches, source: [
        int(row[0]) for b in batches for row, d in zip(b["tokens"], b["domain"], strict=True) if d == source
    ]
    again = drawn(after, 1)
    assert set(again) & set(drawn(before, 1))
    assert len(set(again[:22])) == len(again[:22])  # a whole epoch of its own
    assert realized["s1"]["epochs"] == pytest.approx(len(again) / 22)
    others = drawn(before, 2) + drawn(after, 2)
    assert len(set(others[:30])) == len(others[:30])  # the others go on
    with make(sources) as stream:
        assert stream.set_state(state, allow_changed_rows=True)  # nothing has changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 2}, "seed"),
        ({"batch_size": 12}, "batch_size"),
        ({"seq_len": 2}, "seq_len"),
        ({"unit": "documents"}, "unit"),
    ],
)
def test_a_state_of_another_stream_is_refused(change, message):
    with make() as stream:
        next(stream)
        state = stream.get_state()
    with make(**change) as stream, pytest.raises(ConfigError, match=message):
        stream.set_state(state)


def test_a_source_that_changed_its_size_is_refused():
    with make() as stream:
        state = stream.get_state()
    with make(token_sources((8, 20, 3))) as stream, pytest.raises(ConfigError, match="'s0' had 7 rows"):
        stream.set_state(state)


def test_sources_of_grain_and_of_your_own():
    import grain

    class Mine:
        def __len__(self):
            return 5

        def __getitem__(self, index):
            return {"tokens": np.full(4, index, np.int64)}

    sources = {"grain": grain.MapDataset.range(5).map(lambda i: np.full(4, i, np.int32)), "mine": Mine()}
    with MixtureStream(sources, batch_size=4, seq_len=4, seed=0) as stream:
        batch = next(stream)
    assert (batch["tokens"] == batch["tokens"][:, :1]).all()


def test_an_empty_source_may_be_there_and_not_be_drawn():
    sources = {**token_sources((4, 4)), "empty": []}
    with make(sources) as stream:
        assert set(np.concatenate([b["domain"] for b in take(stream, 4)]).tolist()) == {0, 1}
    with pytest.raises(ConfigError, match="'empty' has weight"):
        make(sources, weights={"s0": 1, "s1": 1, "empty": 1})


def test_two_hundred_sources_have_one_small_pool():
    sources = {f"d{j}": np.full((4, 4), j, np.int32) for j in range(200)}
    before = threading.active_count()
    with MixtureStream(sources, batch_size=100, seq_len=4, seed=0, block=4, num_threads=3) as stream:
        batches = take(stream, 8)
        assert threading.active_count() - before <= 3
    assert threading.active_count() == before
    counts = np.bincount(np.concatenate([b["domain"] for b in batches]), minlength=200)
    assert (counts == 4).all()


def test_a_reader_that_fails_is_heard():
    class Broken:
        doc_lengths = np.full(50, 4)

        def __len__(self):
            return 50

        def __getitem__(self, index):
            raise OSError("disk on fire")

    with make({"a": Broken()}) as stream, pytest.raises(OSError, match="disk on fire"):
        next(stream)


def test_memory_stays_flat():
    import tracemalloc

    with make(token_sources((50, 500, 5)), batch_size=32, block=4) as stream:
        take(stream, 100)
        tracemalloc.start()
        take(stream, 50)
        first = tracemalloc.take_snapshot().statistics("filename")
        take(stream, 500)
        last = tracemalloc.take_snapshot().statistics("filename")
        tracemalloc.stop()
    grown = sum(s.size for s in last) - sum(s.size for s in first)
    assert grown < 200_000  # 16,000 rows of 4 tokens would be 500,000 bytes
