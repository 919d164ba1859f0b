"""Tokenizers of the published shapes: what stands in a text never becomes a control token, and losses are counted."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.data import SourceSpec, byte_tokenizer, load_tokenizer, open_prepared, prepare_corpus
from jaxmix.data.prepared.store import read_index
from jaxmix.data.tokenizers import _byte_letters

TEXTS = ["The first document.", "Ein zweites, mit Umlauten: äöü.", "三つ目。", "last"]
END = 0xFF


def byte_level(special):
    """As GPT-2's, Llama 3's and Qwen's: BPE on bytes, control tokens added."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS * 5, trainer)
    return made


def byte_fallback():
    """As Llama 2's: BPE with the 256 bytes as a last resort, <s> in front by the post-processor."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "\u2581",
        *"abcdefghijklmnopqrstuvwxyz0123456789<>/",
    ]
    model = models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    made = Tokenizer(model)
    made.normalizer = normalizers.Replace(" ", "\u2581")
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens(["<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def word_piece():
    """As BERT's: words in pieces, lower case, [UNK]."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "price", "9", "##0", "1", "[", "]", "sep", "the"]
    made = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


def unigram():
    """As T5's: pieces with probabilities, </s>."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), *((c, -3.0) for c in "\u2581abcdeprics0123456789</>")]
    made = Tokenizer(models.Unigram(pieces, unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.add_special_tokens(["<pad>", "</s>"])
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return made


def tiktoken():
    """As Llama 3's and Qwen's: bytes, then many control tokens behind a gap in the ids, BOS by the post-processor."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in range(250))]
    made = byte_level(["<|first|>"])
    file = json.loads(made.to_str())
    one = file["added_tokens"][0]
    file["added_tokens"] = [{**one, "id": 1000 + 2 * i, "content": name} for i, name in enumerate(special)]
    file["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": special[0], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {special[0]: {"id": special[0], "ids": [1000], "tokens": [special[0]]}},
    }
    return Tokenizer.from_str(json.dumps(file))


def word_level(vocabulary, **settings):
    made = Tokenizer(models.WordLevel(vocabulary, **settings))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["</s>"])
    return made


def loaded(tmp_path, made, **settings):
    made.save(str(tmp_path / "tokenizer.json"))
    return load_tokenizer(str(tmp_path / "tokenizer.json"), **settings)


def stored(tmp_path, tokenizer, *texts):
    """The records of a prepared folder, and its troubles: kind → count."""
    summary = prepare_corpus({"a": SourceSpec("a", documents=texts)}, tmp_path / "out", tokenizer=tokenizer)
    sources = [open_prepared(tmp_path / "out", split)["a"] for split in ("train", "validation")]
    records = [record for source in sources for record in source.read(range(len(source)))]
    return records, {kind: entry["count"] for kind, entry in summary.troubles().get("a", {}).items()}


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (lambda: byte_level(["<|endoftext|>"]), "The word <|endoftext|> parts texts"),
        (lambda: byte_level(["<|begin_of_text|>", "<|end_of_text|>"]), "<|begin_of_text|>a<|end_of_text|>"),
        (byte_fallback, "price <s>10</s> 9"),
        (word_piece, "the price [SEP] 90"),
        (unigram, "price </s> 90"),
    ],
)
def test_a_control_token_in_a_text_is_text(tmp_path, made, text):
    tokenizer = loaded(tmp_path, made())
    (record,), _ = stored(tmp_path, tokenizer, text)
    assert np.flatnonzero(record == tokenizer.end_of_document).tolist() == [len(record) - 1]
    plain = tokenizer.decode(record[:-1])
    if made not in (word_piece, unigram):  # those two have no token for every character
        assert plain == text
    if made is byte_fallback:
        assert 1 not in record  # <s> neither from the text nor in front of it


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "keeps_all"),
    [
        (lambda: byte_level(["<|endoftext|>"]), True),
        (byte_fallback, True),
        (tiktoken, True),
        (word_piece, False),
        (unigram, False),
    ],
    ids=["GPT-2", "Llama 2", "Llama 3", "BERT", "T5"],
)
def test_a_published_shape_stores_texts_as_they_are_or_counts_the_loss(tmp_path, make, keeps_all):
    """300 texts with the names of control tokens in them: one end, at the end, no control token, nothing in front."""
    rng, made = np.random.default_rng(0), make()
    tokenizer = loaded(tmp_path, made)
    vocabulary = made.get_vocab(with_added_tokens=True)
    assert tokenizer.vocab_size == max(vocabulary.values()) + 1
    special = {token.content: number for number, token in made.get_added_tokens_decoder().items()}
    words = [
        *special,
        "price",
        "9",
        "the",
        " ",
        "\n",
        "\u00e4",
        "\u4e09",
        "\U0001f600",
        "A",
        "<0x41>",
        "\u2581",
        "</",
        "|>",
    ]
    if make is byte_fallback:
        words.remove("\u2581")  # a space to sentencepiece
    texts = ["".join(rng.choice(words, int(rng.integers(1, 20)))) for _ in range(300)]
    texts = list(dict.fromkeys(text for text in texts if text.strip()))
    records, troubles = stored(tmp_path, tokenizer, *texts)
    control, unknown = set(special.values()), vocabulary.get("[UNK]", vocabulary.get("<unk>"))
    for record in records:
        assert np.flatnonzero(record == tokenizer.end_of_document).tolist() == [len(record) - 1]
        assert not (control - {unknown}) & set(record[:-1].tolist())
    if keeps_all:
        assert sorted(map(tokenizer.decode, records)) == sorted(texts)
        assert troubles == {}
    else:
        assert troubles["unknown tokens"] == sum(int((record == unknown).sum()) for record in records) > 0
        assert len(records) == len(texts) - troubles.get("documents that the tokenizer leaves nothing of", 0)


def test_a_control_token_that_the_model_itself_makes_is_taken_out_and_counted(tmp_path):
    (record,), troubles = stored(tmp_path, loaded(tmp_path, unigram()), "a<pad>b")
    assert record.tolist() == [3, 4, 5, 1]
    assert troubles["documents with control tokens in their text, which were taken out"] == 1


def test_a_vocabulary_with_gaps(tmp_path):
    made = word_level({"a": 0, "b": 1, "<unk>": 2, "c": 70_000}, unk_token="<unk>")
    tokenizer = loaded(tmp_path, made)
    assert tokenizer.vocab_size == 70_001
    (record,), troubles = stored(tmp_path, tokenizer, "a b c c c x")
    assert record.tolist() == [0, 1, 70_000, 70_000, 70_000, 2, tokenizer.end_of_document]
    assert record.dtype == np.uint32
    assert troubles == {"unknown tokens": 1}


def test_an_id_beyond_the_vocabulary_is_refused(tmp_path):
    class Wrong:
        vocab_size, end_of_document, fingerprint = 10, 9, "wrong"

        def encode_batch(self, texts):
            return [np.array([3, 12], np.int32) for _ in texts]

        def decode(self, tokens):
            return ""

    with pytest.raises(RunError, match="gave the id 12, its vocabulary has 10"):
        stored(tmp_path, Wrong(), "text")


def test_an_ordinary_word_that_ends_documents_is_taken_out_and_counted(tmp_path):
    made = Tokenizer(models.WordLevel({"a": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    (record,), troubles = stored(tmp_path, loaded(tmp_path, made), "a </s> a")
    assert record.tolist() == [0, 0, 1]
    assert troubles == {"documents with the end-of-document token in their text, which was taken out": 1}


def test_what_a_tokenizer_has_no_token_for_is_counted(tmp_path):
    made = Tokenizer(models.BPE({"a": 0, "b": 1, "</s>": 2}, []))
    tokenizer = loaded(tmp_path, made)
    records, troubles = stored(tmp_path, tokenizer, "line 0 hello", "abba cd")
    assert [r.tolist() for r in records] == [[0, 1, 1, 0, 2]]
    assert troubles == {
        "characters that the tokenizer has no token for": 12,
        "documents that the tokenizer leaves nothing of": 1,
    }
    with pytest.raises(RunError, match=r"source 'a' has no document: characters that .*: 4"):
        prepare_corpus({"a": SourceSpec("a", documents=["line"])}, tmp_path / "other", tokenizer=tokenizer)


def test_what_a_byte_alphabet_with_gaps_loses_is_counted(tmp_path):
    letters = {letter: number for number, letter in enumerate("abĠÃ")}  # Ġ: the space, Ã: the first byte of é
    made = Tokenizer(models.BPE({**letters, "</s>": 4}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    records, troubles = stored(tmp_path, loaded(tmp_path, made), "ab ac", "a é", "a b")
    assert sorted(map(len, records)) == [4, 4, 5]
    assert troubles == {"characters that the tokenizer has no token for": 2}
    assert set(_byte_letters().values()) == set(pre_tokenizers.ByteLevel.alphabet())


def test_a_byte_fallback_with_gaps_loses_what_is_counted(tmp_path):
    made = Tokenizer(models.BPE({"a": 0, "</s>": 1, "<0x62>": 2}, [], byte_fallback=True))
    (record,), troubles = stored(tmp_path, loaded(tmp_path, made), "abc")
    assert record.tolist() == [0, 2, 1]
    assert troubles == {"characters that the tokenizer has no token for": 1}


def test_the_byte_tokenizer_takes_no_end_of_document():
    with pytest.raises(ConfigError, match=r"`byte` has no token '</s>'.*data\.end_of_document"):
        load_tokenizer("byte", end_of_document="</s>")


def test_a_tokenizer_that_fails_is_named(tmp_path):
    with pytest.raises(RunError, match=r"cannot encode a text: WordLevel error.*with an unknown token"):
        stored(tmp_path, loaded(tmp_path, word_level({"a": 0})), "a b")


def test_the_end_of_a_document_can_be_named(tmp_path):
    made = byte_level(["<|stop|>"])
    with pytest.raises(ConfigError, match=r"none of the tokens.*Name the token in data\.end_of_document"):
        loaded(tmp_path, made)
    assert loaded(tmp_path, made, end_of_document="<|stop|>").end_of_document == 0


def test_a_tokenizer_file(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    trained.train_from_iterator(TEXTS * 5, trainer)
    trained.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert tokenizer.end_of_document == 0
    encoded = tokenizer.encode_batch(TEXTS)
    assert all(ids.dtype == np.int32 and ids.max() < tokenizer.vocab_size for ids in encoded)
    prepare_corpus({"a": SourceSpec(name="a", documents=TEXTS)}, tmp_path / "out", tokenizer=tokenizer)
    index = read_index(tmp_path / "out")
    assert index["settings"]["tokenizer"] == tokenizer.fingerprint
    assert index["domains"]["a"]["tokens"] == sum(len(ids) + 1 for ids in encoded)

    bare = Tokenizer(models.BPE())
    bare.save(str(tmp_path / "bare.json"))
    with pytest.raises(ConfigError, match="none of the tokens"):
        load_tokenizer(str(tmp_path / "bare.json"))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ConfigError, match="is not a tokenizer file"):
        load_tokenizer(str(tmp_path / "broken.json"))
    with pytest.raises(ConfigError, match="there is no tokenizer file"):
        load_tokenizer(str(tmp_path / "none.json"))


def test_bytes_are_tokens_and_back():
    tokenizer = byte_tokenizer()
    for text in [*TEXTS, ""]:
        (tokens,) = tokenizer.encode_batch([text])
        assert END not in tokens
        assert tokenizer.decode(tokens) == text
    assert load_tokenizer("byte").fingerprint == tokenizer.fingerprint
