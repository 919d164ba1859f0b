import json

import numpy as np
import pytest

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.train.pairs.embedding_cache import cache_key, fingerprint, open_embeddings, write_embeddings

ROWS, WIDTH = 50, 6
RNG = np.random.default_rng(0)
IMAGE, TEXT = (RNG.standard_normal((ROWS, WIDTH)).astype(np.float32) for _ in range(2))
KEY = cache_key(model={"width": WIDTH}, params={"w": IMAGE}, preprocessing={"size": 20})


class Killed(Exception):
    pass


def embed(start, stop):
    return IMAGE[start:stop], TEXT[start:stop]


def write(folder, embed=embed, key=KEY, **options):
    return write_embeddings(
        folder, **{"num_rows": ROWS, "temperature": 10.0, "bias": -3.0, "block": 8, **options}, key=key, embed=embed
    )


def test_what_is_written_is_read(tmp_path):
    cache = write(tmp_path / "cache")
    rows = np.array([3, 49, 3])
    image, text = cache.read(rows)
    np.testing.assert_array_equal(image, IMAGE[rows])
    np.testing.assert_array_equal(text, TEXT[rows])
    assert (cache.temperature, cache.bias) == (10.0, -3.0)
    assert isinstance(cache.image, np.memmap)
    assert not cache.image.flags.writeable


def test_half_precision_loses_what_it_says(tmp_path):
    unit = IMAGE / np.linalg.norm(IMAGE, axis=1, keepdims=True)
    cache = write(tmp_path, embed=lambda start, stop: (unit[start:stop], TEXT[start:stop]), dtype="float16")
    assert cache.image.dtype == np.float16
    image, _ = cache.read(np.arange(ROWS))
    assert image.dtype == np.float32
    assert 0 < np.abs(image - unit).max() <= 2.5e-4


@pytest.mark.parametrize("died_after", [0, 1, 3])
def test_a_killed_writer_goes_on(tmp_path, died_after):
    asked = []

    def dying(start, stop):
        if len(asked) == died_after:
            raise Killed
        asked.append(start)
        return embed(start, stop)

    with pytest.raises(Killed):
        write(tmp_path / "cache", embed=dying)
    with pytest.raises(RunError, match="no embedding cache" if died_after == 0 else f"{8 * died_after} of 50 rows"):
        open_embeddings(tmp_path / "cache", key=KEY)

    died_after = -1
    cache = write(tmp_path / "cache", embed=dying)
    assert asked == list(range(0, ROWS, 8))  # nothing computed twice
    np.testing.assert_array_equal(cache.image, IMAGE)
    np.testing.assert_array_equal(cache.text, TEXT)


def test_a_whole_cache_is_not_computed_again(tmp_path):
    write(tmp_path)
    write(tmp_path, embed=lambda start, stop: pytest.fail("embedded again"))


@pytest.mark.parametrize("use", [open_embeddings, write])
def test_a_mismatch_names_what_differs(tmp_path, use):
    write(tmp_path)
    other = KEY | cache_key(preprocessing={"size": 24}, data="other")
    with pytest.raises(ConfigError, match="of another data and preprocessing"):
        use(tmp_path, key=other)


def test_a_partial_cache_of_something_else_is_not_continued(tmp_path):
    def dying(start, stop):
        if start:
            raise Killed
        return embed(start, stop)

    with pytest.raises(Killed):
        write(tmp_path, embed=dying)
    with pytest.raises(ConfigError, match="of another model"):
        write(tmp_path, key=KEY | cache_key(model={"width": 7}))


def test_damaged_files_are_named(tmp_path):
    write(tmp_path)
    path = tmp_path / "text.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(RunError, match=r"text\.npy of the embedding cache cannot be read"):
        open_embeddings(tmp_path, key=KEY)
    np.save(path, TEXT[:40])
    with pytest.raises(RunError, match=r"text\.npy holds float32\[40, 6\]"):
        open_embeddings(tmp_path, key=KEY)
    (tmp_path / "cache.json").write_text('{"format": 1, "key"')
    with pytest.raises(RunError, match="not JSON"):
        open_embeddings(tmp_path, key=KEY)


def test_a_newer_format_is_refused(tmp_path):
    write(tmp_path)
    index = json.loads((tmp_path / "cache.json").read_text())
    (tmp_path / "cache.json").write_text(json.dumps(index | {"format": 2}))
    with pytest.raises(RunError, match="has format 2"):
        open_embeddings(tmp_path, key=KEY)


def test_fingerprints_tell_contents_apart():
    same = {"a": np.arange(3), "b": [1, 2.0, None]}
    assert fingerprint(same) == fingerprint({"b": [1, 2.0, None], "a": np.arange(3)})
    others = [
        {"a": np.arange(3), "b": [1, 2.0, None, None]},
        {"a": np.arange(3).astype(np.int32), "b": [1, 2.0, None]},
        {"a": np.arange(3)[:, None], "b": [1, 2.0, None]},
        {"a": np.arange(3), "b": [1, 2, None]},
        {"a": np.arange(3), "b": ["1", 2.0, None]},
        {"a": [[0, 1, 2]], "b": [1, 2.0, None]},
    ]
    assert len({fingerprint(value) for value in [same, *others]}) == 7
    assert fingerprint(["ab", "c"]) != fingerprint(["a", "bc"])
    with pytest.raises(ConfigError, match="a function has no fingerprint"):
        cache_key(augment=lambda image: image)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_rows": 0}, ConfigError, "num_rows must be at least 1"),
        ({"dtype": "float8"}, ConfigError, "unknown dtype 'float8'"),
        ({"temperature": 0.0}, ConfigError, "temperature must be above 0"),
        ({"embed": lambda start, stop: (IMAGE, TEXT)}, RunError, "returned shapes"),
        ({"embed": lambda start, stop: (IMAGE[:8] * np.nan, TEXT[:8])}, RunError, "not finite"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        write(tmp_path / "cache", **options)
    assert not (tmp_path / "cache" / "cache.json").exists()
