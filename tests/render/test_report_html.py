import io
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import pytest
from report_cases import NASTY, cases

from gptfast_cli.core.drafts.report import DraftReport
from gptfast_cli.render.report.html import write_html
from sample_report import sample_report

CASES = cases()
COMMAND = 'gptfast speculate -m "a <b> & c" --report out.html'
VOID = {"meta", "input"}


class Page(HTMLParser):
    """The document as a reader meets it; fails where an element is closed that is not the open one."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.spans: list[tuple[str, str]] = []
        self.feed(source)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and "head" not in self.open:
            self.texts.append(data)
            self.spans += [(self.open[-1], data)] * bool(data.strip())

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


def written(judged: DraftReport, command: str = COMMAND) -> str:
    stream = io.StringIO()
    write_html(judged, command, stream)
    return stream.getvalue()


@cache
def written_case(name: str) -> str:
    return written(CASES[name])


@cache
def page_of(name: str) -> Page:
    return Page(written_case(name))


def pictures(source: str) -> list[ET.Element]:
    return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL)]


@pytest.mark.parametrize("name", CASES)
def test_every_report_gives_a_whole_document(name: str) -> None:
    source = written_case(name)
    assert source.startswith("<!doctype html>\n<html")
    page = Page(source)
    counts = [sum(tag == each for tag, _ in page.tags) for each in ("html", "head", "body", "main", "h1")]
    assert counts == [1, 1, 1, 1, 1]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    source.encode("utf-8")


@pytest.mark.parametrize("name", CASES)
def test_every_picture_is_xml_and_says_what_it_shows(name: str) -> None:
    source = written_case(name)
    found = pictures(source)
    assert len(found) == source.count("<svg")
    for svg in found:
        assert svg.get("role") == "img" and svg.get("aria-label")
        assert svg[0].tag.endswith("title") and svg[0].text == svg.get("aria-label")


@pytest.mark.parametrize("name", CASES)
def test_no_number_is_broken_and_none_lies_outside_of_its_picture(name: str) -> None:
    source = written_case(name)
    assert not re.search(r"\b(nan|inf|None)\b", source)
    for svg in pictures(source):
        width, height = svg.get("width", ""), float(svg.get("height", ""))
        for mark in svg.iter():
            assert 0 <= float(mark.get("y", 0)) <= height
            if "%" not in mark.get("x", "") and width != "100%":
                assert 0 <= float(mark.get("x", 0)) <= float(width)
            elif "%" in mark.get("x", ""):
                assert 0 <= float(mark.get("x", "")[:-1]) <= 100


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_fetched_and_nothing_runs(name: str) -> None:
    source, page = written_case(name), page_of(name)
    assert not {"script", "link", "img", "iframe", "object", "image", "use"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not {"src", "href", "srcset", "xlink:href", "action"} & set(attributes), tag
        assert not any(key.startswith("on") for key in attributes)
    assert "url(" not in source and "@import" not in source
    assert set(re.findall(r"https?://[^\"' <]+", source)) <= {"http://www.w3.org/2000/svg"}


@pytest.mark.parametrize("name", CASES)
def test_heads_of_tables_name_a_row_or_a_column(name: str) -> None:
    page = page_of(name)
    assert all(attributes.get("scope") in {"row", "col"} for tag, attributes in page.tags if tag == "th")
    assert sum(tag == "table" for tag, _ in page.tags) == sum(tag == "caption" for tag, _ in page.tags)


@pytest.mark.parametrize("name", CASES)
def test_the_verdict_is_read_first(name: str) -> None:
    judged = CASES[name]
    page = page_of(name)
    if name != "nasty names":
        assert page.text.startswith(" ".join(judged.verdict.split()))
    names = [tag for tag, _ in page.tags]
    assert names[names.index("main") + 1 :][:2] == ["header", "h1"]


def test_words_of_strangers_are_shown_and_do_not_act() -> None:
    source = written(CASES["nasty names"], f"gptfast --draft {NASTY}")
    page = Page(source)
    seen = "</title><script>alert('&\"1\"')</script>\N{SYMBOL FOR ESCAPE}[31m?"
    assert source.count("<title>") == source.count("</title>")
    assert "<script" not in source and "\x1b" not in source
    assert page.text.startswith(f"use {seen}")
    assert f"gptfast --draft {seen}" in page.text
    assert page.text.count(seen) > 40


def test_what_a_number_needs_beside_it_is_there() -> None:
    judged = sample_report()
    text = Page(written(judged)).text
    about = judged.environment
    for part in (judged.target, about.commit, about.torch, about.python, about.cpu, about.dtype, COMMAND):
        assert part is not None and part in text
    assert "60 prompts" in text and "seed 0" in text and "61.2 GB/s" in text


def test_an_interrupted_run_says_so_and_another_does_not() -> None:
    assert "Interrupted:" not in written(sample_report())
    assert "Interrupted:" in written(replace(sample_report(), is_interrupted=True))


def test_what_agreement_was_measured_on_is_reported_with_each_draft() -> None:
    page = Page(written(CASES["every basis"]))
    for basis in ("on-policy", "proxy", "assumed"):
        classes = f"basis {basis}"
        assert sum(attributes.get("class") == classes for _, attributes in page.tags) >= 2
    assert "a proxy" in page.text and "agreement assumed, not measured" in page.text
    assert "assumed, not measured" not in Page(written(sample_report())).text.split("Glossary")[0]


def test_every_pick_has_its_row_and_none_is_said() -> None:
    text = Page(written(sample_report())).text
    for pick in sample_report().recommendations:
        assert pick.draft is not None and pick.speedup is not None
        assert f"{pick.speedup.value:.2f}× [{pick.speedup.low:.2f}, {pick.speedup.high:.2f}]" in text
    assert "The best recommendation, " in text
    assert "No draft was recommended" in Page(written(CASES["no gain"])).text
    n = len(sample_report().recommendations)
    assert Page(written(CASES["no gain"])).text.count("none: plain decoding is fastest") == n


def test_a_check_that_fails_is_said_with_its_numbers() -> None:
    text = Page(written(CASES["not exact"])).text
    assert all(part in text for part in ("39 of 40", "3.2e-07", "NO"))
    assert "NO" not in Page(written(sample_report())).text


def test_each_temperature_is_hidden_by_style_alone_and_only_on_a_screen() -> None:
    source = written(sample_report())
    style = re.findall(r"<style>(.*?)</style>", source, flags=re.DOTALL)[0]
    assert "@media screen{main:has(#t0:checked) .at:not(.t0),main:has(#t1:checked) .at:not(.t1){display:none}}" in style
    shown = [attributes["class"] or "" for _, attributes in Page(source).tags if "class" in attributes]
    assert any(each.startswith("at t0") for each in shown) and any(each.startswith("at t1") for each in shown)
    assert 'type="radio"' not in written(CASES["one of each"])


def test_the_sections_stand_in_the_order_of_the_questions() -> None:
    source = written(sample_report())
    anchors = re.findall(r'<section id="(\w+)"|<section [^>]*id="(\w+)"', source)
    assert ["".join(pair) for pair in anchors] == [
        "about", "picks", "drafts", "losses", "compared", "proofs", "slices", "costs", "plain", "certificates", "words",
    ]  # fmt: skip


def test_prompts_that_failed_are_counted_and_named_with_their_reasons() -> None:
    source = written_case("failed prompts")
    text = Page(source).text
    assert "Failed prompts Left out: 3 of 60 prompts." in text
    items = re.findall(
        r"<dt>.*?</dd>", source[source.index('id="failed"') : source.index('id="words"')], flags=re.DOTALL
    )
    assert [Page(item.replace("</dt>", ": </dt>")).text for item in items] == [
        "rows.jsonl:3, rows.jsonl:7: Token id 9999 has no embedding.",
        "rows.jsonl:5: The model's logits are NaN.",
    ]
    assert "Failed prompts" not in Page(written(sample_report())).text
