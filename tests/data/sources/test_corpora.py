import hashlib
import math
import unicodedata

import pyarrow.parquet as pq
import pytest

from jaxmix.data import bundled_corpus
from jaxmix.data.sources.corpora import natural_shares

ALLOWED = {"public domain", "PDDL-1.0", "PSF-2.0", "PostgreSQL", "MIT", "WordNet-3.0"}
CORPUS = bundled_corpus()


def test_at_least_eight_domains_in_six_megabytes():
    assert len(CORPUS) >= 8
    folder = next(iter(CORPUS.values())).path.parent
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 6_000_000
    assert {path.stem for path in folder.glob("*.parquet")} == set(CORPUS)


def test_sizes_differ_twentyfold():
    sizes = [domain.num_bytes for domain in CORPUS.values()]
    assert 15 <= max(sizes) / min(sizes) <= 25
    assert math.isclose(sum(natural_shares().values()), 1)


@pytest.mark.parametrize("name", sorted(CORPUS))
def test_text_is_what_provenance_says(name):
    domain = CORPUS[name]
    assert domain.license in ALLOWED
    assert domain.title
    assert domain.role
    assert hashlib.sha256(domain.path.read_bytes()).hexdigest() == domain.sha256
    texts = pq.read_table(domain.path)["text"].to_pylist()
    assert len(texts) == len(set(texts)) == domain.documents >= 20
    assert sum(len(text.encode()) for text in texts) == domain.num_bytes
    for text in texts:
        assert "\0" not in text
        assert unicodedata.is_normalized("NFC", text)
        assert 200 <= len(text) <= 16_000


def test_mail_has_no_addresses():
    texts = pq.read_table(CORPUS["mail"].path)["text"].to_pylist()
    assert any("<address>" in text for text in texts)
    assert not any("@localhost" in text or "@yahoo.com" in text for text in texts)


def test_an_easy_a_noisy_and_an_overlapping_domain_are_named():
    roles = " ".join(domain.role for domain in CORPUS.values())
    for word in ("easy", "noisy", "overlaps"):
        assert word in roles
