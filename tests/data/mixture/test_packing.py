import numpy as np
import pytest
from hypothesis import given, strategies as st

from jaxmix.core.errors import ConfigError
from jaxmix.data.mixture.packing import PackedRows, WholeRows
from jaxmix.data.mixture.permutation import EpochPermutation


class Reader:
    """A source that is read in batches and counts what it is asked for."""

    def __init__(self, documents):
        self.documents, self.requests = documents, []
        self.doc_lengths = np.asarray([len(d) for d in documents], np.int64)

    def __len__(self):
        return len(self.documents)

    def __getitem__(self, index):
        raise AssertionError("read() is there")

    def read(self, indices):
        self.requests.append(list(indices))
        return [self.documents[i] for i in indices]


def read(packed, rows, seq_len=4):
    """Into arrays full of something else, so that what is not written is seen."""
    tokens, targets = np.full((2, len(rows), seq_len), 99, np.int32)
    places = list(range(len(rows)))[::-1]
    packed.read_into(list(rows)[::-1], tokens, targets, places)
    return tokens, targets


def naive_row(documents, seq_len, row):
    flat = [int(t) for d in documents for t in d]
    tokens, targets = [], []
    for position in range(row * seq_len, (row + 1) * seq_len):
        is_inside = position < len(flat)
        tokens.append(flat[position] if is_inside else 0)
        targets.append(flat[position + 1] if position + 1 < len(flat) else -1)
    return tokens, targets


documents = st.lists(st.integers(0, 7), min_size=1, max_size=12).map(
    lambda lengths: [np.arange(n, dtype=np.int32) + 10 * i + 1 for i, n in enumerate(lengths)]
)


@given(documents, st.integers(1, 9), st.randoms())
def test_rows_agree_with_concatenation(docs, seq_len, random):
    total = sum(len(d) for d in docs)
    for source in (docs, Reader(docs), [{"tokens": d} for d in docs]):
        packed = PackedRows(source, seq_len)
        assert len(packed) == -(-total // seq_len)
        rows = list(range(len(packed))) * 2
        random.shuffle(rows)
        if not rows:
            continue
        tokens, targets = read(packed, rows, seq_len)
        counts = packed.count_targets(np.asarray(rows))
        for i, row in enumerate(rows):
            assert (tokens[i].tolist(), targets[i].tolist()) == naive_row(docs, seq_len, row)
            assert counts[i] == (targets[i] >= 0).sum()


def test_a_batch_is_one_request_of_each_document_once():
    source = Reader([np.arange(5), np.arange(3), np.arange(20), np.arange(4)])
    read(PackedRows(source, 4), [0, 1, 1, 7])
    assert source.requests == [[0, 1, 2, 3]]


def test_an_array_is_documents_of_equal_length():
    tokens, targets = read(PackedRows(np.arange(12, dtype=np.uint16).reshape(3, 4), 4), [2, 0])
    assert tokens.tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]
    assert targets.tolist() == [[9, 10, 11, -1], [1, 2, 3, 4]]


def test_whole_rows_are_padded_and_never_cut():
    rows = WholeRows([np.asarray([1, 2]), np.asarray([1, 2, 3, 4]), np.asarray([1, 2, 3, 4, 5])], 4)
    tokens, targets = read(rows, [0, 1, 2])
    assert tokens.tolist() == [[1, 2, 0, 0], [1, 2, 3, 4], [1, 2, 3, 4]]
    assert targets.tolist() == [[2, -1, -1, -1], [2, 3, 4, -1], [2, 3, 4, 5]]
    assert rows.count_targets(np.asarray([0, 1, 2])).tolist() == [1, 3, 4]
    tokens, targets = read(WholeRows(np.arange(15, dtype=np.uint8).reshape(3, 5), 4), [2, 0])
    assert tokens.tolist() == [[10, 11, 12, 13], [0, 1, 2, 3]]
    assert targets.tolist() == [[11, 12, 13, 14], [1, 2, 3, 4]]
    with pytest.raises(ConfigError, match="item 1 has 6 tokens"):
        WholeRows([np.arange(2), np.arange(6)], 4)


@pytest.mark.parametrize("item", [np.zeros(3), np.zeros((2, 2), int), b"text", "text"])
def test_what_is_not_tokens_is_named(item):
    with pytest.raises(ConfigError, match="1-D integer arrays"):
        PackedRows([item], 4)


def test_a_source_that_breaks_its_promise_is_named():
    source = Reader([np.arange(5), np.arange(3)])
    source.doc_lengths = np.asarray([5, 4])
    with pytest.raises(ConfigError, match="document 1 has 3 tokens, its source promised 4"):
        read(PackedRows(source, 4), [0, 1])


@pytest.mark.parametrize("rows", [1, 2, 7, 1000, 70_000])
def test_every_epoch_is_another_permutation(rows):
    permutation = EpochPermutation(rows, seed=3, name="a")
    first, second = permutation(np.arange(rows)), permutation(np.arange(rows, 2 * rows))
    assert np.array_equal(np.sort(first), np.arange(rows))
    assert np.array_equal(np.sort(second), np.arange(rows))
    if rows > 2:
        assert not np.array_equal(first, second)
        assert not np.array_equal(first, EpochPermutation(rows, seed=3, name="b")(np.arange(rows)))
        assert not np.array_equal(first, EpochPermutation(rows, seed=4, name="a")(np.arange(rows)))
        # random access: any place, any order, across the border of epochs
        places = np.asarray([rows, 0, rows - 1, 2 * rows - 1, 1])
        both = np.concatenate([first, second])
        assert np.array_equal(EpochPermutation(rows, seed=3, name="a")(places), both[places])


def test_permutations_are_the_same_in_every_version():
    # Written down when made: a resumed run on another NumPy must draw the same rows.
    assert EpochPermutation(8, seed=0, name="a")(np.arange(8)).tolist() == [6, 1, 5, 0, 4, 2, 7, 3]
    places = np.asarray([0, 1, 2, 10**6])
    assert EpochPermutation(10**6, seed=0, name="a")(places).tolist() == [86139, 936716, 809245, 888633]
