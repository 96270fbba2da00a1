import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wmtp.data.documents import BadLines, Document, Segment, TokenDocument
from wmtp.data.encoding import (
    EncodedDocument,
    encode_and_pack,
    encode_documents,
    pack_documents,
)
from wmtp.data.tokenizer import TextTokenizer


def encode(tokenizer: TextTokenizer, document: Document | TokenDocument) -> EncodedDocument:
    (encoded,) = encode_documents(tokenizer, [document], BadLines())
    return encoded


def test_document_is_beginning_text_end(tokenizer: TextTokenizer) -> None:
    encoded = encode(tokenizer, Document("f", (Segment("add fox"),)))
    assert encoded.ids.tolist() == [0, *tokenizer.encode("add fox"), 0]
    assert encoded.wanted.all()
    assert encoded.weights is None


def test_prompt_is_not_wanted_and_is_tokenized_by_itself(tokenizer: TextTokenizer) -> None:
    prompt, code = tokenizer.encode("def ad"), tokenizer.encode("d(a")
    encoded = encode(tokenizer, Document("f", (Segment("def ad", wanted=False), Segment("d(a"))))
    assert encoded.ids.tolist() == [0, *prompt, *code, 0]
    expected = [True, *[False] * len(prompt), *[True] * len(code), True]
    assert encoded.wanted.tolist() == expected


def test_span_weighs_the_tokens_that_end_in_it(tokenizer: TextTokenizer) -> None:
    text = "the quick brown fox"
    ids, ends = tokenizer.encode_with_ends(text)
    document = Document("f", (Segment(text),), weight=1.0, spans=((4, 9, 3.0), (16, 19, 0.5)))
    encoded = encode(tokenizer, document)
    assert encoded.ids.tolist() == [0, *ids.tolist(), 0]
    assert encoded.weights is not None
    expected = [3.0 if 4 < e <= 9 else 0.5 if e > 16 else 1.0 for e in ends.tolist()]
    assert encoded.weights.tolist() == [1.0, *expected, 1.0]
    quick = tokenizer.encode(" quick")  # one token, with the space that the span leaves out
    assert len(quick) == 1
    assert encoded.weights[1 + ids.tolist().index(quick[0])] == 3.0


def test_spans_run_over_prompt_and_completion(tokenizer: TextTokenizer) -> None:
    segments = (Segment("ab", wanted=False), Segment("cd"))
    encoded = encode(tokenizer, Document("f", segments, weight=1.0, spans=((1, 3, 2.0),)))
    assert encoded.weights is not None
    assert [tokenizer.token_text(i) for i in encoded.ids[1:-1].tolist()] == ["a", "b", "c", "d"]
    assert encoded.weights.tolist() == [1, 1, 2, 2, 1, 1]


def test_weights_do_not_change_the_tokens(tokenizer: TextTokenizer) -> None:
    text = "the quick brown fox"
    plain = encode(tokenizer, Document("f", (Segment(text),)))
    weighted = encode(tokenizer, Document("f", (Segment(text),), 1.0, ((2, 7, 0.0),)))
    np.testing.assert_array_equal(plain.ids, weighted.ids)


def test_weight_of_a_document_is_that_of_all_its_tokens(tokenizer: TextTokenizer) -> None:
    encoded = encode(tokenizer, Document("f", (Segment("fox"),), weight=0.25))
    assert encoded.weights is not None
    assert set(encoded.weights.tolist()) == {0.25}


def test_token_document_gets_ends_where_it_has_none(tokenizer: TextTokenizer) -> None:
    weighted = encode(tokenizer, TokenDocument("f", (7, 8), (2.0, 3.0)))
    assert weighted.ids.tolist() == [0, 7, 8, 0]
    assert weighted.weights is not None
    assert weighted.weights.tolist() == [1, 2, 3, 1]
    assert encode(tokenizer, TokenDocument("f", (0, 7, 0))).ids.tolist() == [0, 7, 0]


def test_token_outside_the_vocabulary_is_a_bad_line(tokenizer: TextTokenizer) -> None:
    bad = BadLines()
    documents = [TokenDocument("f:1", (10**30,)), TokenDocument("f:2", (-1,))]
    assert encode_documents(tokenizer, documents, bad) == []
    assert bad.per_reason() == {"token outside the vocabulary": 2}


WORDS = st.text("ab 한국어\n", min_size=1, max_size=12)
TEXT_DOCUMENTS = st.builds(
    Document,
    st.just("f"),
    st.lists(st.builds(Segment, WORDS, st.booleans()), min_size=1, max_size=3).map(tuple),
    weight=st.none() | st.floats(0, 2, width=16),
    spans=st.just(()),
    reward=st.none() | st.floats(-1, 1),
    group=st.none() | st.just("g"),
)
# one of these, and none of the batch goes the short way
OTHER_DOCUMENTS = st.builds(
    TokenDocument, st.just("t"), st.tuples(st.integers(0, 400)), st.none(), st.none()
)


@given(st.lists(TEXT_DOCUMENTS, max_size=6), st.lists(OTHER_DOCUMENTS, max_size=1), st.booleans())
def test_packed_at_once_equals_one_by_one(
    tokenizer: TextTokenizer,
    texts: list[Document],
    others: list[TokenDocument],
    begins: bool,
) -> None:
    tokenizer = with_beginning(tokenizer) if begins else tokenizer
    documents, bad, expected_bad = [*texts, *others], BadLines(), BadLines()
    packed = encode_and_pack(tokenizer, documents, bad)
    expected = pack_documents(encode_documents(tokenizer, documents, expected_bad))
    assert bad.lines == expected_bad.lines
    for name, value in vars(expected).items():
        found = getattr(packed, name)
        assert type(found) is type(value), name
        if isinstance(value, np.ndarray):
            assert found.dtype == value.dtype, name
            np.testing.assert_array_equal(found, value, name)
        else:
            assert found == value, name


def with_beginning(tokenizer: TextTokenizer) -> TextTokenizer:
    copy = pickle.loads(pickle.dumps(tokenizer))
    copy.bos_ids = (3, 4)
    return copy
