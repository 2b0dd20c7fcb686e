"""The page in a real browser: Chromium, driven by Playwright. Skipped where either is missing.

TAGDEX_CHROMIUM names the browser where it is not found by its usual names; with TAGDEX_REQUIRE_BROWSER=1 a missing
one is a failure.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
pytest.importorskip("httpx", reason="httpx is not installed")

from fakes import DemoAnalyser, as_text_model, build_index, entries
from payloads import PAYLOADS
from serving import READER, WRITER, demo_service, documents, listening

from indexer.api import add_documents
from indexer.records import Document
from indexer.store import IndexWriter
from search.server.service import Service
from search.server.settings import Limits, Settings

LONG = os.environ.get("TAGDEX_LONG_TESTS") == "1"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    reason = ""
    found = os.environ.get("TAGDEX_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        reason = "the package playwright is not installed"
    if not found:
        reason = "there is no Chromium here (on Debian: apt install chromium)"
    if reason:
        if os.environ.get("TAGDEX_REQUIRE_BROWSER") == "1":
            pytest.fail(f"TAGDEX_REQUIRE_BROWSER=1, but {reason}")
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with listening(demo_service(tmp_path_factory.mktemp("page"))) as url:
        yield url


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    page = context.new_page()
    page.set_default_timeout(20_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console", lambda message: wrong.append(message.text) if "Content Security Policy" in message.text else None
    )
    page.on("request", lambda request: wrong.append(request.url) if "127.0.0.1" not in request.url else None)
    yield page
    context.close()
    assert wrong == []


@contextmanager
def listening_to(index: Path, docs: list[Document], *names: str) -> Iterator[str]:
    """The address of a service over these documents, under each of the names."""
    analyser = DemoAnalyser()
    build_index(index, docs, analyser)
    with listening(Service(dict.fromkeys(names or ("some",), index), model=as_text_model(analyser))) as url:
        yield url


def chips(page: Any) -> list[str]:
    return [text.removesuffix(" ×") for text in page.locator("#chips button").all_inner_texts()]


def hits(page: Any, count: int) -> None:
    """Wait for so many hits."""
    from playwright.sync_api import expect

    expect(page.locator(".hit")).to_have_count(count, timeout=20_000)


def ids(page: Any) -> list[str]:
    found: list[str] = page.locator(".hit .id").all_inner_texts()
    return found


def test_results_come_as_one_types(page: Any, address: str) -> None:
    page.goto(address)
    page.wait_for_selector(".empty")
    assert "5 documents can be searched" in page.inner_text(".empty")
    page.locator("#query").press_sequentially("the ball is lost again")
    page.wait_for_selector(".hit >> nth=4")
    assert ids(page)[0] == "ball"
    hit = page.locator(".hit", has_text="electric boat")
    assert hit.locator("mark").inner_text() == "VarbergLOC"
    assert "author" in hit.inner_text()
    assert "sport" in page.locator(".hit").first.inner_text()
    assert page.inner_text("#status") == "5 results, best first"
    assert page.url == f"{address}/?q=the+ball+is+lost+again"


def test_filters_stand_in_the_address_and_the_back_button_takes_them_away(page: Any, address: str) -> None:
    page.goto(f"{address}/?q=boat")
    page.click("#facets button:has-text('2023')")
    page.wait_for_selector("#chips button")
    hits(page, 2)
    assert chips(page) == ["year: 2023"]
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    page.click("#facets button:has-text('Nordal')")
    hits(page, 1)
    assert chips(page) == ["year: 2023", "ORG: Nordal"]
    linked = page.url
    page.go_back()
    hits(page, 2)
    page.click("#chips button")
    hits(page, 5)
    page.goto(linked)
    page.wait_for_selector(".hit")
    assert (chips(page), ids(page), page.input_value("#query")) == (["year: 2023", "ORG: Nordal"], ["atom"], "boat")


def test_more_like_this_and_by_words(page: Any, address: str) -> None:
    page.goto(f"{address}/?q=boat&mode=keyword")
    page.wait_for_selector(".hit")
    assert ids(page) == ["boat"]
    page.click("text=More like this")
    page.wait_for_selector(".hit >> nth=3")
    assert "boat" not in ids(page)
    assert chips(page) == ["more like boat"]


def test_more_and_less_like_several(page: Any, address: str) -> None:
    page.goto(f"{address}/?q=boat")
    hits(page, 5)
    page.click("button[aria-label='Less like ball']")
    hits(page, 4)  # an example is no hit
    assert chips(page) == ["more like “boat”", "less like ball"]
    assert page.input_value("#query") == ""
    page.click("button[aria-label='More like atom']")
    hits(page, 3)
    assert chips(page) == ["more like “boat”", "less like ball", "more like atom"]
    linked = page.url
    assert linked == f"{address}/?like=atom&unlike=ball&like-text=boat"
    page.goto(f"{linked}&q=words")  # by hand
    hits(page, 3)
    assert page.input_value("#query") == ""
    with page.expect_request("**/v1/similar") as asked:
        page.goto(linked)
    hits(page, 3)
    sent = asked.value.post_data_json
    assert [sent[name] for name in ("ids", "texts", "not_ids", "not_texts")] == [["atom"], ["boat"], ["ball"], []]
    page.click("#look summary")
    page.fill("#text", "the ball is lost again " * 50)
    page.click("#unlike-text")
    page.wait_for_selector("#chips button >> nth=3")
    assert chips(page)[-1].startswith("less like “the ball is lost again the ball")
    assert page.url == linked  # it is too long for an address: the tab's history keeps it
    page.reload()
    page.wait_for_selector("#chips button >> nth=3")
    hits(page, 3)
    page.go_back()
    page.wait_for_selector("#chips button >> nth=3", state="detached")
    page.click("#chips button:has-text('atom')")
    hits(page, 4)
    page.click("#chips button:has-text('boat')")  # what is not wanted says nothing alone
    page.wait_for_selector(".empty")
    assert chips(page) == []
    page.click("#look summary")
    page.fill("#text", "a ball")
    page.click("#unlike-text")
    assert "Search for something first" in page.evaluate("document.querySelector('#text').validationMessage")


def test_facets_that_are_asked_for(page: Any, tmp_path: Path) -> None:
    days = ["2024-01-31T10:00Z", "2024-01-02", "2024-02-29", "2023-12-24", None]
    docs = [
        Document(
            str(number),
            f"a boat crosses {'Varberg' if number else 'again'}",
            {
                "price": 10 * number + 0.5,
                "number": list(range(10)),
                "at:day": day,
                **({"year": 2020 + number} if number < 2 else {"year": "2021-05"}),
            },
        )
        for number, day in enumerate(days)
    ]
    analyser = DemoAnalyser()
    index = build_index(tmp_path / "boats", docs, analyser)
    with listening(Service({"boats": index}, model=as_text_model(analyser))) as url:
        page.goto(f"{url}/?q=boat")
        hits(page, 5)
        offered = page.locator("#countable option").evaluate_all("all => all.map((one) => one.value)")
        assert offered[:3] == ["label", "entity", "entity:PER"]
        assert {"`at:day`", "`at:day`:month", "price", "price:histogram", "year:year", "year:histogram"} <= set(offered)
        page.fill("#facet", "prize")
        page.press("#facet", "Enter")
        page.wait_for_function("() => document.querySelector('#facet').validationMessage.includes('unknown facet')")
        for name, heading in (
            ("price:histogram:20", "price, in ranges"),
            ("`at:day`:month", "at:day, by month"),
            ("year:year", "year, by year"),
            ("entity", "Entities"),
        ):
            page.fill("#facet", name)
            page.press("#facet", "Enter")
            page.wait_for_selector(f"#facets h2:has-text('{heading}')")

        def chosen(heading: str) -> dict[str, int]:
            section = page.locator("#facets section", has=page.locator(f"h2:has-text('{heading}')"))
            values = section.locator("li button")
            return {
                one.locator("span").first.inner_text(): int(one.locator(".count").inner_text()) for one in values.all()
            }

        assert chosen("price, in ranges") == {"0 to 20": 2, "20 to 40": 2, "40 to 60": 1}
        assert chosen("at:day, by month") == {"2023-12": 1, "2024-01": 2, "2024-02": 1}
        assert chosen("year, by year") == {"2020": 1, "2021": 4}
        for text, count, chip in (
            ("0 to 20", 2, "price: 0 to 20"),
            ("2024-01", 2, "at:day: 2024-01"),
            ("2021", 4, "year: 2021"),
        ):
            page.click(f"#facets button:has(span:text-is('{text}'))")
            hits(page, count)
            assert chips(page) == [chip]
            page.click("#chips button")
            hits(page, 5)
        assert page.locator("#facets .nothing").all_inner_texts() == ["2 more values"]
        page.check("#significant")
        page.wait_for_selector("#facets section:has-text('Entities') .nothing:text-is('No value stands out')")
        page.click("[aria-label='Stop counting by entity']")
        page.wait_for_selector("#facets h2:has-text('Entities')", state="detached")
        page.goto(f"{url}/?q=boat&facet=nope")
        page.click("button:has-text('Stop counting by nope')")
        hits(page, 5)


def test_a_pasted_text_is_tagged(page: Any, address: str) -> None:
    page.goto(address)
    page.click("#look summary")
    page.fill("#text", "😀 Anna sings a song")
    page.click("#tag button")
    page.wait_for_selector("#tagged mark")
    assert page.inner_text("#tagged mark") == "AnnaPER"
    assert "music" in page.inner_text("#tagged")


def test_states_of_nothing_and_of_errors(page: Any, address: str) -> None:
    page.goto(f"{address}/?q=zzz&mode=keyword")
    page.wait_for_selector(".empty")
    assert page.inner_text("#status") == "No document fits."
    page.goto(f"{address}/?q=x&filter=%7B%22label%22%3A%22nope%22%7D")
    page.wait_for_selector(".error")
    assert "The filter cannot be used" in page.inner_text("[role=alert]")
    page.click("#chips button")
    page.wait_for_selector(".hit")
    assert page.locator(".error").count() == 0
    page.route("**/v1/search", lambda route: route.abort())
    page.fill("#query", "another")
    page.wait_for_selector(".error")
    assert "cannot be reached" in page.inner_text("[role=alert]")
    page.unroute("**/v1/search")
    page.click("button:has-text('Try again')")
    page.wait_for_selector(".hit")


def test_the_keyboard_suffices(page: Any, address: str) -> None:
    page.goto(address)
    page.wait_for_selector(".empty")
    page.keyboard.press("/")
    page.keyboard.type("boat")
    page.keyboard.press("Enter")
    page.wait_for_selector(".hit")
    seen: set[str] = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("(document.activeElement.id || document.activeElement.textContent).slice(0, 40)"))
    assert {"mode", "More like this"} <= seen
    assert page.evaluate(
        "[...document.querySelectorAll('input, select, textarea')].every((one) => one.labels.length === 1)"
    )


@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 1100), ("light", 360)])
def test_contrast_and_width(browser: Any, address: str, scheme: str, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(f"{address}/?q=Nordal+Anna+Varberg")
    page.wait_for_selector(".hit")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ratios = page.evaluate(CONTRAST)
    assert ratios
    assert min(ratios) >= 4.5, ratios
    context.close()


CONTRAST = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => {
      const c = part / 255;
      return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const back = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (!colour.startsWith("rgba(0, 0, 0, 0")) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  return [...document.querySelectorAll("mark, .score, .label, .id, .facts dt, .facts dd, #status, button, .count, input")].map((node) => {
    const pseudo = node.placeholder ? "::placeholder" : null;
    const [a, b] = [light(getComputedStyle(node, pseudo).color), light(back(node))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  });
}"""  # noqa: E501


def test_the_best_sentence_is_shown_where_it_is_asked_for(page: Any, tmp_path: Path) -> None:
    text = "Halden runs out of steel. 😀 Boats: the boat crosses to Varberg. Ever sings."
    analyser = DemoAnalyser(passage_words=20)
    index = build_index(tmp_path / "index", [Document("news", text), *documents()], analyser)
    with listening(Service({"news": index}, model=as_text_model(analyser))) as url:
        page.goto(f"{url}/?q=the+boat+crosses")
        hits(page, 6)
        assert page.locator(".best").count() == 0
        page.click("#options summary")
        page.check("#best")
        page.wait_for_selector(".best")
        assert page.url == f"{url}/?q=the+boat+crosses&best="
        hit = page.locator(".hit", has_text="😀")
        assert hit.locator(".best").inner_text() == "😀 BoatsPER: the boat crosses to VarbergLOC."
        assert hit.locator(".text").inner_text() == (
            "HaldenPER runs out of steel. 😀 BoatsPER: the boat crosses to VarbergLOC. EverPER sings."
        )
        page.go_back()
        page.wait_for_selector(".best", state="detached")
        assert not page.is_checked("#best")


def test_what_names_in_the_query_do(page: Any, address: str) -> None:
    page.goto(f"{address}/?q=what+Nordal+makes")
    hits(page, 5)
    page.click("#options summary")
    page.select_option("#names", "filter")
    hits(page, 1)
    assert ids(page) == ["atom"]
    assert page.inner_text("#about") == (
        "Names in the query: Nordal (ORG, 1 document). Only these were searched: 1 document."
    )
    page.select_option("#names", "boost")
    hits(page, 5)
    assert ids(page)[0] == "atom"
    assert "These were raised: 1 document." in page.inner_text("#about")
    page.fill("#query", "what Zorn makes")
    page.wait_for_selector("#about:has-text('No document has any')")
    page.fill("#query", "what is made")
    page.wait_for_selector("#about:has-text('No name was found')")
    page.go_back()
    page.wait_for_selector("#about:has-text('These were raised')")  # the last that was chosen before one typed


def test_why_a_hit_is_there(page: Any, address: str) -> None:
    page.goto(
        f"{address}/?q=Nordal+counts&mode=hybrid&filter=%7B%22path%22%3A%22year%22%2C%22op%22%3A%22exists%22%7D&why="
    )
    hits(page, 5)
    assert page.is_checked("#why")
    assert "5 documents of 5 may be found." in page.inner_text("#about")
    assert "It took" in page.inner_text("#about")
    first = page.locator(".hit").first
    first.locator("summary").click()
    names = first.locator(".why dt").all_inner_texts()
    assert names == [
        "score",
        "likeness of meaning (cosine)",
        "of which layer -1",
        "of which layer -3",
        "words (BM25)",
        "share of meaning",
        "share of words",
        "filters that hold",
    ]
    values = first.locator(".why dd").all_inner_texts()
    assert values[-1] == "exists year"
    assert float(values[0]) == float(first.locator(".score").first.inner_text().removeprefix("score "))
    assert abs(float(values[2]) + float(values[3]) - float(values[1])) < 0.0021
    page.uncheck("#why")
    page.wait_for_selector(".why", state="detached")


def test_a_filter_in_words_becomes_a_chip_or_is_explained(page: Any, address: str) -> None:
    page.goto(f"{address}/?q=boat")
    hits(page, 5)
    page.fill("#where", "year >= 2021 and not entity LOC:varberg or")
    page.press("#where", "Enter")
    page.wait_for_function("() => document.querySelector('#where').validationMessage.includes('⟨here⟩')")
    assert chips(page) == []
    page.fill("#where", "year >= 2021 and not entity LOC:varberg")
    page.press("#where", "Enter")
    hits(page, 2)
    assert chips(page) == ["year >= 2021 and not entity LOC:varberg"]
    assert page.input_value("#where") == ""
    page.click("#facets button:has-text('Nordal')")
    hits(page, 1)
    assert ids(page) == ["atom"]
    page.click("#chips button >> nth=0")
    hits(page, 1)
    assert chips(page) == ["ORG: Nordal"]


def test_any_filter_in_the_address_stands_on_its_chip(page: Any, address: str) -> None:
    filters: list[tuple[Any, str]] = [
        ({"path": "year", "op": "between", "low": 2020}, '{"path":"year","op":"between","low":2020}'),
        (
            {"path": "year", "op": "between", "low": None, "high": 2050},
            '{"path":"year","op":"between","low":null,"high":2050}',
        ),
        (
            {"path": "year", "op": "between", "low": "2020", "high": "2023"},
            '{"path":"year","op":"between","low":"2020","high":"2023"}',
        ),
        (
            {"or": [{"label": "sport"}, {"path": "year", "op": "=", "value": 2023}]},
            '{"or":[{"label":"sport"},{"path":"year","op":"=","value":2023}]}',
        ),
        ({"or": [None, 1]}, '{"or":[null,1]}'),
        ({"entity": None, "path": 5, "or": 7}, '{"entity":null,"path":5,"or":7}'),
        ({"path": "year", "op": "between", "low": 2020, "high": None}, "year: 2020 or more"),
        ({"path": "year", "op": "=", "value": {"toString": 1}}, '{"path":"year","op":"=","value":{"toString":1}}'),
        (
            {"entity": {"text": "Anna", "match": "exact", "type": {"toString": 1}}},
            '{"entity":{"text":"Anna","match":"exact","type":{"toString":1}}}',
        ),
    ]
    for filter, chip in filters:
        page.goto(f"{address}/?{urlencode({'q': 'boat', 'filter': json.dumps(filter)})}")
        page.wait_for_selector(".hit, .error, .empty")
        assert chips(page) == [chip]
        page.click("#chips button")
        hits(page, 5)


def test_more_hits_come_once_each_while_the_index_grows(page: Any, tmp_path: Path) -> None:
    analyser = DemoAnalyser()
    many = [Document(f"boat {number}", f"a boat number{number} crosses") for number in range(35)]
    index = build_index(tmp_path / "many", many, analyser)
    with listening(Service({"many": index}, model=as_text_model(analyser))) as url:
        page.goto(f"{url}/?q=boat+crosses")
        hits(page, 10)
        page.click("#more")
        hits(page, 20)
        page.route("**/v1/search", lambda route: route.abort())
        page.click("#more")
        page.wait_for_selector(".error:has-text('cannot be reached')")
        assert (page.locator(".hit").count(), page.inner_text("#status")) == (20, "20 results, best first")
        page.unroute("**/v1/search")
        with IndexWriter(index) as writer:
            new = [Document(f"new {number}", "boat crosses") for number in range(5)]
            writer.write(entries(new, analyser))
        page.click("#more")
        hits(page, 30)
        page.click("#more")
        hits(page, 35)
        assert page.locator("#more").is_hidden()
        assert sorted(ids(page)) == sorted(document.id for document in many)
        assert page.inner_text("#status") == "35 results, best first"
        assert page.url.endswith("&n=40")
        page.reload()
        hits(page, 40)
        assert set(ids(page)[:5]) == {document.id for document in new}


def test_more_hits_of_an_index_that_was_replaced(page: Any, tmp_path: Path) -> None:
    analyser = DemoAnalyser()
    many = [Document(f"boat {number}", f"a boat number{number} crosses") for number in range(35)]
    index = build_index(tmp_path / "many", many, analyser)
    with listening(Service({"many": index}, model=as_text_model(analyser))) as url:
        page.goto(f"{url}/?q=boat+crosses")
        hits(page, 10)
        page.click("#more")
        hits(page, 20)
        index.rename(tmp_path / "old")
        build_index(index, many[:25], analyser)
        page.click("#more")
        page.wait_for_selector(".error:has-text('cursor')")
        page.click("#more")
        hits(page, 25)
        assert page.locator(".error").count() == 0
        assert page.locator("#more").is_hidden()


def test_near_duplicates_variety_and_passages(page: Any, tmp_path: Path) -> None:
    analyser = DemoAnalyser()
    long = "Halden waits. " * 30 + "The boat crosses to Varberg now. " + "Anna sings. " * 30
    docs = [Document("long", long), Document("one", "the boat crosses"), Document("two", "the boat crosses")]
    index = build_index(tmp_path / "some", docs, analyser)
    with listening(Service({"some": index}, model=as_text_model(analyser))) as url:
        page.goto(f"{url}/?q=the+boat+crosses")
        hits(page, 3)
        page.click("#options summary")
        page.check("#distinct")
        hits(page, 2)
        assert page.locator(".hit").first.inner_text().count("+ 1 like it") == 1
        page.check("#passages")
        page.wait_for_selector(".passages")
        shown = page.locator(".hit", has_text="Varberg").locator(".passages > li")
        assert shown.count() == 3
        assert "boat crosses" in shown.first.inner_text()
        assert shown.first.locator(".around").count() == 2
        page.click("button:has-text('Whole text')")
        page.wait_for_selector(".passages", state="detached")
        whole = page.locator(".hit", has_text="Varberg").locator(".text").inner_text()
        assert (whole.count("waits."), whole.count("sings."), "boat crosses" in whole) == (30, 30, True)
        page.reload()
        page.wait_for_selector(".passages")
        page.check("#varied")
        page.wait_for_function("() => location.search.includes('varied')")
        hits(page, 2)
        assert page.locator("#rerank-choice").is_hidden()
        page.go_back()
        page.go_back()
        page.wait_for_selector(".passages", state="detached")
        assert page.is_checked("#distinct")


def test_texts_are_shown_and_never_run(page: Any, tmp_path: Path) -> None:
    """Each payload as text, id, metadata name and value, as a query, and as a text to look at."""
    hostile = [
        Document(f"{payload}{number}", f"boat {payload} Nordal", {payload: payload, "kind": payload})
        for number, payload in enumerate(PAYLOADS)
    ]
    analyser = DemoAnalyser()
    index = build_index(tmp_path / "<b>index", [*documents(), *hostile], analyser)
    with listening(Service({"<i>x</i>": index}, model=as_text_model(analyser))) as url:
        page.goto(f"{url}/?q=boat&n={len(hostile) + 5}")
        page.wait_for_selector(f".hit >> nth={len(hostile) + 4}")
        assert set(page.locator(".hit .id").all_text_contents()) == {doc.id for doc in (*documents(), *hostile)}
        values = page.locator(".hit .facts dd").all_text_contents()
        assert set(PAYLOADS) <= set(values)
        for payload in PAYLOADS if LONG else PAYLOADS[::5]:
            page.fill("#query", payload)
            page.press("#query", "Enter")
            page.wait_for_selector(".hit")
            typed = page.input_value("#query")  # in one line
            assert typed == payload.replace("\n", " ")
            assert page.title().split() == f"{typed} – Search".split()
        page.click("#look summary")
        for payload in PAYLOADS if LONG else PAYLOADS[::20]:
            page.fill("#text", f"{payload} Anna")
            page.click("#tag button")
            page.wait_for_selector("#tagged mark:has-text('Anna')")
        assert page.evaluate("window.ran") is None
        assert page.locator("main script, main img, main iframe, main svg, main object, main style").count() == 0


def test_a_token_is_asked_for(page: Any, tmp_path: Path) -> None:
    with listening(demo_service(tmp_path, tokens=(f"read:{READER}",))) as url:
        page.goto(f"{url}/?q=boat")
        page.wait_for_selector("#token-dialog[open]")
        page.fill("#token", "a wrong one")
        page.keyboard.press("Enter")
        page.wait_for_selector("#token-dialog[open]")
        page.wait_for_selector("#token:focus")
        page.fill("#token", READER)
        page.keyboard.press("Enter")
        page.wait_for_selector(".hit")
        assert page.evaluate("localStorage.length") == 0


def test_a_token_that_is_wrong_can_be_given_anew(page: Any, tmp_path: Path) -> None:
    def give(token: str) -> None:
        page.wait_for_selector("#token-dialog[open]")
        page.fill("#token", token)
        page.press("#token", "Enter")

    with listening(demo_service(tmp_path, tokens=(f"read:{READER}", f"write:{WRITER}"))) as url:
        page.goto(f"{url}/?q=boat")
        page.wait_for_selector("#token-dialog[open]")
        assert page.locator("#token-refused").is_hidden()
        give("“a quoted one”")  # which no header can hold
        assert page.evaluate("document.querySelector('#token').matches(':invalid')")
        give("a-wrong-one")
        page.wait_for_selector("#token-refused")
        page.keyboard.press("Escape")
        page.wait_for_selector(".error:has-text('A token is needed')")
        page.click("button:has-text('Try again')")
        give(WRITER)
        page.wait_for_selector(".error:has-text('The token does not allow this')")
        page.click("button:has-text('Use another token')")
        give(f" {READER} ")
        hits(page, 5)


def test_a_token_is_asked_for_once(page: Any, tmp_path: Path) -> None:
    """Also where the refusal of one request comes when another has been given a token."""
    with listening(demo_service(tmp_path, tokens=(f"read:{READER}",))) as url:
        page.goto(f"{url}/docs")
        page.evaluate("sessionStorage.setItem('token', 'an-old-token-of-the-service')")
        page.route("**/v1/indexes", lambda route: route.fetch() and route.fulfill(json=described))
        described = {
            "indexes": [{"name": "demo", "model": "demo", "entity_types": None, "class_labels": None, "facets": []}],
            "limits": {"k": 1000},
            "reranker": False,
        }
        late: list[Any] = []
        page.route("**/v1/facets", lambda route: route.continue_() if late else late.append(route))
        page.goto(f"{url}/?like=boat")
        page.fill("#token", READER)
        page.press("#token", "Enter")
        page.wait_for_selector("#token-dialog", state="hidden")
        late[0].continue_()
        hits(page, 4)


def test_a_browser_that_stores_nothing_suffices(page: Any, tmp_path: Path) -> None:
    page.add_init_script("Object.defineProperty(window, 'sessionStorage', { get() { throw new Error('denied'); } })")
    with listening(demo_service(tmp_path, tokens=(f"read:{READER}",))) as url:
        page.goto(f"{url}/?q=boat")
        page.fill("#token", READER)
        page.press("#token", "Enter")
        hits(page, 5)
        page.click("#facets button:has-text('2019')")
        hits(page, 2)


def test_nothing_that_is_typed_is_lost(page: Any, address: str) -> None:
    held: list[Any] = []
    page.route("**/v1/indexes", lambda route: held.append(route))
    page.goto(address)
    page.locator("#query").press_sequentially("the ball")
    page.unroute("**/v1/indexes")
    for route in held:
        with suppress(Exception):  # which the page has given up
            route.continue_()
    hits(page, 5)
    assert (page.input_value("#query"), page.url) == ("the ball", f"{address}/?q=the+ball")
    page.locator("#query").press_sequentially(" is lost")
    page.click("#facets button:has-text('2019')")
    hits(page, 2)
    assert (page.input_value("#query"), chips(page)) == ("the ball is lost", ["year: 2019"])


def test_a_search_that_was_asked_for_stays_in_the_history(page: Any, address: str) -> None:
    page.goto(f"{address}/?q=boat")
    hits(page, 5)
    entries_before = page.evaluate("history.length")
    page.press("#query", "Enter")
    assert page.evaluate("history.length") == entries_before
    for typed in ("ball", "ball game"):
        page.fill("#query", typed)
        page.wait_for_url(f"{address}/?q={typed.replace(' ', '+')}")
    page.go_back()
    page.wait_for_url(f"{address}/?q=boat")
    assert page.input_value("#query") == "boat"


def test_a_long_query_stands_in_the_history(page: Any, address: str) -> None:
    page.goto(address)
    page.wait_for_selector(".empty")
    page.fill("#query", "the boat crosses " * 5_000)
    hits(page, 5)
    assert page.url == f"{address}/"
    page.reload()
    hits(page, 5)
    assert page.input_value("#query") == ("the boat crosses " * 5_000)


def test_what_the_service_does_not_have_is_left_out(page: Any, tmp_path: Path) -> None:
    analyser = DemoAnalyser(heads=False)
    index = build_index(tmp_path / "raw", documents(), analyser)
    settings = Settings(limits=Limits(k=3))
    with listening(Service({"raw": index}, settings=settings, model=as_text_model(analyser))) as url:
        page.goto(f"{url}/?q=boat&index=other&names=filter&rerank=&n=500")
        hits(page, 3)
        page.click("#facets button:has-text('2019')")
        hits(page, 2)
        page.go_back()
        hits(page, 3)
        assert not page.is_visible("#more")


def test_an_index_without_a_model_is_searched_by_words(page: Any, tmp_path: Path) -> None:
    add_documents(tmp_path / "made", [Document("boat", "an electric boat", vector=np.ones(4, dtype=np.float32))])
    with listening(Service({"made": tmp_path / "made"})) as url:
        page.goto(f"{url}/?q=boat")
        hits(page, 1)
        assert page.input_value("#mode") == "keyword"


def test_several_indexes_and_the_back_button(page: Any, tmp_path: Path) -> None:
    with listening(demo_service(tmp_path, "one", "two")) as url:
        page.route("**/v1/indexes", lambda route: route.abort())
        page.goto(f"{url}/?q=boat")
        page.wait_for_selector(".error")
        page.unroute("**/v1/indexes")
        page.click("button:has-text('Try again')")
        hits(page, 5)
        assert page.input_value("#index") == "one"
        page.goto(f"{url}/?q=boat")
        page.select_option("#index", "two")
        page.wait_for_url("**/?q=boat&index=two")
        with page.expect_request("**/v1/search") as asked:
            page.go_back()
        assert asked.value.post_data_json["index"] == "one"
        hits(page, 5)
        assert (page.input_value("#index"), page.locator(".error").count()) == ("one", 0)


def test_numbers_are_exact(page: Any, tmp_path: Path) -> None:
    numbers = [2**53 + 1, 1234567890123456789, -(2**63)]
    docs = [Document(str(number), "a boat", {"number": number}) for number in numbers]
    analyser = DemoAnalyser()
    with listening(
        Service({"some": build_index(tmp_path / "i", docs, analyser)}, model=as_text_model(analyser))
    ) as url:
        for number in numbers:
            page.goto(f"{url}/?q=boat&facet=number")
            hits(page, 3)
            assert str(number) in page.locator(f".hit:has(.id:text-is('{number}')) dd").inner_text()
            page.click(f"#facets section >> nth=0 >> button:has-text('{number}')")
            hits(page, 1)
            page.reload()
            hits(page, 1)
            assert (ids(page), chips(page)) == ([str(number)], [f"number: {number}"])
            assert page.locator("#facets button[aria-pressed=true]").count() == 1


def test_the_keyboard_keeps_its_place(page: Any, address: str, tmp_path: Path) -> None:
    def focused() -> str:
        return str(page.evaluate("document.activeElement.id || document.activeElement.textContent"))

    page.goto(f"{address}/?q=boat&filter=%22year+%3E+2000%22&filter=%22year+%3E+2001%22")
    hits(page, 5)
    page.press("#chips button >> nth=0", "Enter")
    page.wait_for_url("**/?q=boat&filter=*2001%22")
    assert focused() == "year > 2001 ×"
    page.press("#chips button", "Enter")
    page.wait_for_url("**/?q=boat")
    assert focused() == "results"
    page.route("**/v1/search", lambda route: route.abort())
    page.press("#query", "Enter")
    page.press("button:has-text('Try again')", "Enter")
    page.unroute("**/v1/search")
    page.press("button:has-text('Try again')", "Enter")
    hits(page, 5)
    assert focused() == "results"
    with listening_to(tmp_path / "index", [Document("long", "a boat crosses " * 100)]) as url:
        for options in ("", "&passages="):
            page.goto(f"{url}/?q=boat{options}")
            page.press("button:has-text('Whole text')", "Enter")
            assert focused() == "a boat crosses " * 100


def test_the_skip_link_searches_nothing_anew(page: Any, address: str) -> None:
    page.goto(f"{address}/?q=boat")
    hits(page, 5)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.focus("#skip")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "results"
    page.focus("#query")
    page.evaluate("fetch('docs')")
    page.wait_for_function("() => performance.getEntriesByName(new URL('docs', location).href).length")
    assert (asked, page.url) == ([f"{address}/docs"], f"{address}/?q=boat")


@pytest.mark.parametrize("status", [200, 502])
def test_an_answer_of_something_else_is_told(page: Any, address: str, status: int) -> None:
    page.goto(f"{address}/?q=boat")
    hits(page, 5)
    page.route("**/v1/*", lambda route: route.fulfill(status=status, body="<h1>Log in</h1>", content_type="text/html"))
    said = f"Something else answered in its place, with status {status}."
    page.fill("#where", "year > 2000")
    page.press("#where", "Enter")
    page.wait_for_function(f"() => document.querySelector('#where').validationMessage === '{said}'")
    page.press("#query", "Enter")
    page.wait_for_selector(f".error:has-text('The service gave no answer'):has-text('{said}')")


def test_the_text_that_was_pasted_last_is_shown(page: Any, address: str) -> None:
    page.goto(address)
    page.wait_for_selector(".empty")
    page.click("#look summary")
    held: list[Any] = []
    page.route("**/v1/tag", lambda route: route.continue_() if held else held.append(route))
    page.fill("#text", "Anna sings")
    page.click("#tag button")
    page.fill("#text", "Nordal counts")
    page.click("#tag button")
    page.wait_for_selector("#tagged mark:has-text('Nordal')")
    held[0].fulfill(json={"label": None, "entities": []})
    page.evaluate("new Promise((resolve) => setTimeout(resolve, 200))")
    assert page.inner_text("#tagged p >> nth=1") == "NordalORG counts"
    assert page.inner_text("#tagged p >> nth=0") == "1 entity; no class fits well enough"


@pytest.mark.parametrize("width", [1100, 360])
def test_long_words_stay_within_the_page(page: Any, tmp_path: Path, width: int) -> None:
    long = "w" * 400
    analyser = DemoAnalyser()
    index = build_index(
        tmp_path / "i", [Document(long, f"boat {long} A{long}", {long: long, "n": long * 50})], analyser
    )
    with listening(Service({long: index, "other": index}, model=as_text_model(analyser))) as url:
        page.set_viewport_size({"width": width, "height": 800})
        for query in ({"q": "boat", "filter": json.dumps(f"id {long}"), "why": ""}, {"q": "boat", "facet": long * 2}):
            page.goto(f"{url}/?{urlencode(query)}")
            page.wait_for_selector(".hit, .error")
            page.locator("#facets-box").evaluate("(box) => { box.open = true; }")
            assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_text_has_the_direction_of_its_script(page: Any, tmp_path: Path) -> None:
    docs = [Document("he", "שלום boat עולם", {"מה": "שלום"}), Document("en", "boat שלום")]
    with listening_to(tmp_path / "index", docs) as url:
        page.goto(f"{url}/?q=boat")
        hits(page, 2)
        direction = "(all) => all.map((one) => getComputedStyle(one).direction)"
        assert page.locator(".hit:has(.id:text-is('he'))").locator(".text, dd").evaluate_all(direction) == ["rtl"] * 2
        assert page.locator(".hit:has(.id:text-is('en')) .text").evaluate_all(direction) == ["ltr"]


def test_an_empty_index_and_one_document(page: Any, tmp_path: Path) -> None:
    analyser = DemoAnalyser()
    indexes = {
        "empty": build_index(tmp_path / "empty", [], analyser),
        "one": build_index(tmp_path / "one", documents()[:1], analyser),
    }
    with listening(Service(indexes, model=as_text_model(analyser))) as url:
        page.goto(url)
        page.wait_for_selector(".empty:has-text('The index is empty')")
        page.select_option("#index", "one")
        page.wait_for_selector(".empty:has-text('1 document can be searched.')")
        assert page.locator("#facets .count").first.get_attribute("aria-label") == "1 document"
        page.click("#facets button:has-text('2019')")
        page.wait_for_selector(".empty:has-text('1 document matches the filters.')")


def test_the_page_works_below_a_path(page: Any, address: str) -> None:
    """As behind a proxy that takes a prefix away."""
    page.route("**/some/where/**", lambda route: route.fulfill(response=route.fetch(url=without(route.request.url))))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))

    def without(url: str) -> str:
        return url.replace("/some/where/", "/", 1)

    page.goto(f"{address}/some/where/?q=boat")
    hits(page, 5)
    page.click("#facets button:has-text('2019')")
    hits(page, 2)
    page.click("footer a")
    page.wait_for_selector("article:has-text('SearchRequest')")
    page.click("text=Back to the search")
    page.wait_for_selector(".empty")
    assert all(url.startswith(f"{address}/some/where/") for url in asked)


def test_the_api_is_described(page: Any, address: str) -> None:
    page.goto(f"{address}/docs")
    page.wait_for_selector("article")
    text = page.inner_text("main")
    assert "POST /v1/search" in text
    assert "SearchRequest" in text
