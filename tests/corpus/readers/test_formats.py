"""Every reader: samples in, exact documents out, from any record on."""

import os
from pathlib import Path

import pytest

from wmtp.corpus.document import BadRecord, Document
from wmtp.corpus.readers import files, json_array
from wmtp.corpus.readers.json_files import LAYOUTS, JsonFiles
from wmtp.corpus.readers.json_path import parse_path
from wmtp.corpus.readers.namuwiki import Namuwiki
from wmtp.corpus.readers.nikl import Nikl
from wmtp.corpus.readers.reader import Origin, Parsed, RawFile, RawRecord, Start
from wmtp.corpus.readers.reading import cut_records, read
from wmtp.corpus.readers.tables import Csv
from wmtp.corpus.readers.wikipedia import Wikipedia

from .samples import BUSAN, LAUGH, PAGES, SAMPLES, SEOUL, Sample, multistream, write

ORIGIN = Origin("source", "CC0-1.0")


def told(parsed: Parsed) -> str:
    return parsed.text if isinstance(parsed, Document) else parsed.reason


def read_all(path: Path, sample: Sample, start: int = 0) -> list[Parsed]:
    return list(read(sample.reader, path, sample.name, ORIGIN, start))


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_exact_documents_are_read(tmp_path: Path, sample: Sample) -> None:
    parsed = read_all(write(tmp_path, sample), sample)
    assert tuple(map(told, parsed)) == sample.given
    for one in parsed:
        assert one.place.file == sample.name
        if isinstance(one, Document):
            assert (one.source, one.license) == ("source", "CC0-1.0")
            assert one.id
            assert all(isinstance(value, str) for value in one.meta.values())


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_where_a_file_is_cut_into_chunks_makes_no_difference(
    tmp_path: Path, sample: Sample, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wmtp.corpus.readers import wikipedia

    for module in (files, json_array, wikipedia):
        monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
    assert tuple(map(told, read_all(write(tmp_path, sample), sample))) == sample.given


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_reading_may_begin_with_any_record(tmp_path: Path, sample: Sample) -> None:
    """From a number, and from every place that a record says it can be started with."""
    path = write(tmp_path, sample)
    whole = read_all(path, sample)
    for i, one in enumerate(whole):
        assert read_all(path, sample, one.place.record) == whole[i:]
    assert read_all(path, sample, whole[-1].place.record + 1) == []
    records = list(cut_records(sample.reader, RawFile(path), sample.name, Start()))
    for i, record in enumerate(records):
        if isinstance(record, RawRecord) and record.start is not None:
            assert record.start.record == record.number
            again = cut_records(sample.reader, RawFile(path), sample.name, record.start)
            assert list(again) == records[i:]


@pytest.mark.parametrize(
    ("name", "starts"),
    [("wikipedia", 3), ("wikipedia, one stream", 0), ("warc", 5), ("jsonl", 7), ("jsonl.gz", 0),
     ("nikl", 4), ("paragraphs", 2), ("csv", 0)],
)  # fmt: skip
def test_how_many_records_can_be_started_with(tmp_path: Path, name: str, starts: int) -> None:
    """Else the test above might try nothing."""
    path = write(tmp_path, SAMPLES[name])
    records = SAMPLES[name].reader.records(RawFile(path), Start())
    assert sum(isinstance(r, RawRecord) and r.start is not None for r in records) == starts


def test_a_multistream_dump_is_entered_at_its_streams(tmp_path: Path) -> None:
    """What lies before is not even decompressed: it may be damaged."""
    content = bytearray(multistream(PAGES, 1))
    path = tmp_path / "kowiki.xml.bz2"
    path.write_bytes(content)
    records = list(Wikipedia().records(RawFile(path), Start()))
    last = records[-1]
    assert isinstance(last, RawRecord)
    assert last.start is not None
    content[: last.start.offset] = b"BZh" + b"x" * (last.start.offset - 3)
    path.write_bytes(content)
    assert list(Wikipedia().records(RawFile(path), last.start)) == [last]


def test_facts_of_a_record_are_carried_along(tmp_path: Path) -> None:
    wiki, namu, nikl, warc = (
        next(one for one in read_all(write(tmp_path, SAMPLES[name]), SAMPLES[name])
             if isinstance(one, Document))
        for name in ("wikipedia", "namuwiki", "nikl", "warc")
    )  # fmt: skip
    assert (wiki.id, wiki.meta) == ("1", {"title": "서울"})
    assert (namu.id, namu.meta) == ("namu.json:0", {"title": "서울"})
    assert (nikl.id, nikl.meta) == ("X.1", {"title": "수도", "topic": "지리"})
    assert warc.id == "urn:uuid:2"
    assert warc.meta == {
        "url": "https://example.kr/2",
        "date": "2026-01-02T00:00:00Z",
        "title": "제목",
    }


def test_the_file_tells_how_far_it_was_read(tmp_path: Path) -> None:
    for sample in SAMPLES.values():
        path = write(tmp_path, sample)
        raw = RawFile(path)
        assert list(sample.reader.records(raw, Start()))
        assert raw.consumed == path.stat().st_size, sample.name


def test_a_page_without_navigation_and_with_it(tmp_path: Path) -> None:
    from wmtp.corpus.readers.common_crawl import Warc

    path = write(tmp_path, SAMPLES["warc"])
    whole = next(read(Warc(main_content=False), path, "a", ORIGIN))
    assert isinstance(whole, Document)
    assert "홈" in whole.text
    assert "var x" not in whole.text


def test_texts_are_none_of_another() -> None:
    assert len({SEOUL, BUSAN, LAUGH}) == 3


# real files ---------------------------------------------------------------------------------------

DATA = Path(os.environ.get("WMTP_DATA") or "/nonexistent") / "ko_raw"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="WMTP_DATA has no ko_raw")


@needs_data
def test_real_wikitext_becomes_the_article() -> None:
    article, redirect, category = read(
        Wikipedia(), DATA / "kowiki_envelope_sample.xml", "kowiki.xml", ORIGIN
    )
    assert isinstance(article, Document)
    assert article.text.startswith(
        "조지 월턴 루카스 주니어(George Walton Lucas, Jr., 1944년 5월 14일 ~ )는 미국의 영화 제작자"
    )
    assert article.text.endswith("이런 관점에서 게임이 원작이기 때문이다.")
    assert "\n\n상세\n" in article.text
    for mark in ("[[", "{{", "'''", "<ref", "==", "분류:", "섬네일"):
        assert mark not in article.text
    assert (told(redirect), told(category)) == ("redirect", "other namespace")


@needs_data
def test_a_real_page_of_namuwiki() -> None:
    redirect, article = read(Namuwiki(), DATA / "namuwiki_sample.json", "namu.json", ORIGIN)
    assert told(redirect) == "redirect"
    assert isinstance(article, Document)
    assert article.meta["title"] == "!!아앗!!"
    assert (
        "세계수의 미궁 시리즈에 전통으로 등장하는 대사. 2편 제왕의 성배부터 등장했으며"
        in article.text
    )
    for mark in ("[[", "'''", "{{{", "~~"):
        assert mark not in article.text


@needs_data
def test_published_layouts_of_ai_hub_and_nikl() -> None:
    web = list(read(JsonFiles(parse_path(LAYOUTS["web_corpus"])),
                    DATA / "aihub_web_corpus_schema_sample.json", "web", ORIGIN))  # fmt: skip
    nikl = list(read(Nikl(), DATA / "nikl_newspaper_schema_sample.json", "nikl", ORIGIN))
    assert [one.text[:8] for one in web + nikl if isinstance(one, Document)] == [
        "지방공무원법 일", "국가공무원법 일", "교육공무원법 일",
        "지방공무원법 일", "국가공무원법 일",
    ]  # fmt: skip
    assert isinstance(nikl[0], Document)
    assert nikl[0].id == "NWRW0000000001.1"
    assert nikl[0].text.startswith(
        "지방공무원법 일부개정법률안\n(정의화의원 대표발의 )\n의 안\n번 호\n"
    )


@needs_data
def test_real_tables_and_arrays() -> None:
    chat = list(read(Csv("A"), DATA / "ChatbotData.csv", "chat", ORIGIN))
    assert (len(chat), told(chat[0])) == (11_823, "하루가 또 가네요.")
    reviews = list(read(JsonFiles(parse_path("[].review")), DATA / "nsmc_122095.json", "n", ORIGIN))
    assert (len(reviews), told(reviews[1])) == (100, "문과생이 봐도 좋더라.")
    klue = list(
        read(JsonFiles(parse_path("[].premise")), DATA / "klue-nli-v1.1_dev.json", "k", ORIGIN)
    )
    assert len(klue) == 3_000
    assert not any(isinstance(one, BadRecord) for one in chat + reviews + klue)
