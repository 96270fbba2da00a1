import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.corpus.examples import PROSE
from wmtp.corpus.duplicates import Signatures, SignatureShape, comparable, sign
from wmtp.corpus.duplicates import signatures as module
from wmtp.corpus.duplicates.signatures import estimates, jaccard, shingles

SHAPE = SignatureShape()
TEXTS = ["가나다라마바사", "abc", "", "한국어 문장 하나와 숫자 2000000원"]
EXACT = [
    [16455060771376819858, 13217125125117903942],
    [481984899792396677, 8696274497037089104],
    [11072670137173121240, 6918025063187695999],
    [12052306455902666874, 17746092070976583727],
]
BANDS = [
    [10139026194048788330, 1217920480834706861, 6998578208989217123, 2732229347134149513],
    [6845646538757639793, 17639422642740557974, 13449222330540889352, 13667324917282166052],
    [2005241393382609738, 4628052498679291284, 16919982155171173155, 15883233586028700096],
]
SKETCH = [[86, 167, 62, 250], [23, 219, 175, 195], [204, 82, 183, 241], [20, 106, 244, 26]]


def test_signatures_on_disk_stay_what_they_are() -> None:
    """Whoever changes these values makes all signatures that lie on disk worthless."""
    signed = sign(TEXTS, SHAPE)
    assert signed.exact.tolist() == EXACT
    assert signed.bands[:3].tolist() == BANDS
    assert signed.sketch[:, :4].tolist() == SKETCH


def test_another_process_signs_alike(tmp_path: Path) -> None:
    sign(TEXTS, SHAPE).write(tmp_path)
    program = (
        "import sys\nfrom pathlib import Path\nfrom wmtp.corpus.duplicates import *\n"
        f"sign({TEXTS!r}, SignatureShape()).write(Path(sys.argv[1]))"
    )
    other = tmp_path / "other"
    other.mkdir()
    subprocess.run([sys.executable, "-c", program, str(other)], check=True)
    for name in ("exact.npy", "bands.npy", "sketch.npy"):
        assert (tmp_path / name).read_bytes() == (other / name).read_bytes()
    again = Signatures.open(other)
    assert len(again) == len(TEXTS)
    assert np.array_equal(again.bands, sign(TEXTS, SHAPE).bands)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=12), st.integers(1, 40))
def test_a_text_is_signed_alike_in_any_company(texts: list[str], chunk: int) -> None:
    alone = [sign([text], SHAPE) for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WINDOWS_AT_A_TIME", chunk)
        together = sign(texts, SHAPE)
    for i, one in enumerate(alone):
        assert np.array_equal(together.exact[i], one.exact[0])
        assert np.array_equal(together.bands[:, i], one.bands[:, 0])
        assert np.array_equal(together.sketch[i], one.sketch[0])


def test_bands_and_sketches_tell_of_similarity() -> None:
    """300 pairs of similarity 0 to 1: unbiased, and no band agrees more often than it should."""
    rng = np.random.default_rng(0)
    letters = np.array([chr(c) for c in range(0xAC00, 0xAC00 + 2000)])
    texts, true = [], []
    for i in range(300):
        one = rng.choice(letters, 400)
        other = np.concatenate([one[: (cut := int(400 * i / 300))], rng.choice(letters, 400 - cut)])
        texts += ["".join(one), "".join(other)]
        true.append(jaccard(*(shingles(text) for text in texts[-2:])))
    signed, first = sign(texts, SHAPE), np.arange(0, 600, 2)
    similarity = np.array(true)
    errors = estimates(signed.sketch, first, first + 1) - similarity
    deviation = np.sqrt(similarity * (1 - similarity) / SHAPE.permutations)
    assert abs(errors.mean()) < 4 * np.sqrt((deviation**2).mean() / 300)
    assert np.abs(errors / np.maximum(deviation, 0.01)).max() < 4.5
    agreeing = (signed.bands[:, first] == signed.bands[:, first + 1]).mean()
    assert agreeing == pytest.approx((similarity**SHAPE.rows).mean(), abs=0.015)


def test_seeds_and_shapes_make_other_signatures() -> None:
    """Negative control: the permutations matter."""
    plain, other = sign([PROSE], SHAPE), sign([PROSE], SignatureShape(seed=1))
    assert not (plain.bands == other.bands).any()
    assert np.array_equal(plain.exact, other.exact)
    with pytest.raises(ValueError, match="at least 1"):
        SignatureShape(rows=0)


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("Hello  세계\n", "hello 세계", True),
        ("가나다.", "가나다", False),
        ("2000000원", "200원", False),
    ],
)
def test_what_counts_as_equal(one: str, other: str, alike: bool) -> None:
    signed = sign([comparable(one), comparable(other)], SHAPE)
    assert np.array_equal(signed.exact[0], signed.exact[1]) == alike


def test_jaccard_by_hand() -> None:
    """가나다라마, 나다라마바 | 나다라마바, 다라마바사: one of three."""
    assert jaccard(shingles("가나다라마바"), shingles("나다라마바사")) == pytest.approx(1 / 3)
    assert shingles("가나") == {"가나"}
