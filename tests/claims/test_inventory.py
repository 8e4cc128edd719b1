"""The inventory of the papers: complete, true to the claims and files that it names, and shown whole on its page."""

import inspect
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import registry
from harness.claims.inventory import (
    FAITHFUL,
    NOT_DONE,
    NOT_POSSIBLE,
    ON_A_STAND_IN,
    PAPERS_FOLDER,
    PARTIAL,
    STATE_MEANINGS,
    InventoryEntry,
    PaperInventory,
    read_inventories,
)
from harness.claims.judge import DOES_NOT_HOLD, HOLDS, JudgedClaim
from harness.claims.page import judged_shipped_claims, papers_html
from harness.claims.reproduce import shipped_claims
from harness.claims.schema import CLAIMS_FOLDER
from harness.errors import UserError

# Read off the papers by hand: the sections with a method, an experiment or a proof, and everything that has a number.
# The text of `rfm` at hand is a summary without figures, tables and theorems.
SECTIONS = {
    "dpo_generalisation": "2 3.1 3.2 4.1 4.2 4.3 5 6",
    "few_shot": "2.1 2.2 3.1 3.2 4.1 4.2 4.3.1 4.3.2",
    "icra": "2.1 2.2 2.3 2.4 3 3.1 3.2 4 5.1 5.2",
    "pref": "1 3 4 4.1 4.2 5 5.1 5.2 5.3 5.4 5.5 5.6",
    "rfm": "3 4 4.1 4.2 5 5.1 5.1.2 5.2",
}
APPENDICES = {
    "dpo_generalisation": "A B C D",
    "few_shot": "A B C C.1 C.2 C.2.1 C.2.2 C.3.1 C.3.2 D.1 D.2",
    "icra": "A B C D E",
    "pref": "A B.1 B.1.1 B.1.2 B.2 C D E",
    "rfm": "",
}
NUMBERED = {
    "dpo_generalisation": {
        "figure": "1a 1b 2a 2b 3a 3b 4a 4b 5a 5b",
        "theorem": "4.1 4.2 A.1 A.2",
        "lemma": "A.1 A.2",
        "definition": "3.1",
    },
    "few_shot": {
        "figure": "1a 1b 2a 2b 3 4 5 6a 6b 7 8a 8b",
        "algorithm": "1",
        "definition": "4.2",
        "example": "4.1 4.3",
    },
    "icra": {"figure": "1", "table": "1 2", "theorem": "1 2 3", "corollary": "1", "lemma": "1"},
    "pref": {
        "figure": "1 2 3A 3B 3C 4 5 6 7 8 9 10 11",
        "table": "1 2 3",
        "algorithm": "1 2",
        "lemma": "4.1 4.2 4.3",
    },
    "rfm": {},
}
INVENTORIES = read_inventories()
CLAIMS = {claim.id: claim for _, claims in shipped_claims().values() for claim in claims}
ENTRIES = [(paper, entry) for paper, inventory in INVENTORIES.items() for entry in inventory.entries]


def places(paper):
    """Return every place that the paper's entries name, without equations: `section 4.2`, `figure 2a`."""
    found = [re.sub(r" \(.*?\)", "", entry.where).split(", ") for entry in INVENTORIES[paper].entries]
    return [place for several in found for place in several]


@pytest.mark.parametrize("paper", SECTIONS)
def test_nothing_of_a_paper_is_missing_and_nothing_is_invented(paper):
    kinds = {"section": SECTIONS[paper], "appendix": APPENDICES[paper], **NUMBERED[paper]}
    wanted = {f"{kind} {number}" for kind, numbers in kinds.items() for number in numbers.split()}
    assert set(places(paper)) == wanted


def test_every_paper_with_claims_has_an_inventory_and_every_claim_is_in_it():
    papers = {paper for paper, _ in shipped_claims().values()}
    assert INVENTORIES.keys() == papers == SECTIONS.keys() == NUMBERED.keys() == APPENDICES.keys()
    for paper, claims in shipped_claims().values():
        held = {name for entry in INVENTORIES[paper].entries for name in entry.claims}
        assert {claim.id for claim in claims} <= held


def test_an_inventory_is_no_suite():
    assert PAPERS_FOLDER.parent == CLAIMS_FOLDER and not set(PAPERS_FOLDER.glob("*.toml")) & set(shipped_claims())


@pytest.mark.parametrize(("paper", "entry"), ENTRIES, ids=[f"{paper}-{entry.where}" for paper, entry in ENTRIES])
def test_a_state_agrees_with_what_the_claims_say_of_themselves(paper, entry):
    """A claim on a stand-in makes nothing faithful, and a claim that cannot be tested shows nothing to be possible."""
    claims = [CLAIMS[name] for name in entry.claims]
    if entry.state == FAITHFUL:
        assert not any(claim.stand_in or claim.cannot for claim in claims)
    if entry.state == ON_A_STAND_IN and claims:
        assert any(claim.stand_in for claim in claims)
    if entry.state in (NOT_DONE, NOT_POSSIBLE):
        assert all(claim.cannot for claim in claims)
    if entry.state == PARTIAL and claims and entry.kind in ("figure", "table", "experiment"):
        assert any(not claim.stand_in and not claim.cannot for claim in claims)
    assert not entry.why.endswith(".") and "`" not in entry.what + entry.why


ENTRY = """
title = "Somebody 2026"
[[entries]]
what = "A method"
where = "section 1"
kind = "method"
state = "partial"
why = "smaller"
claims = ["N1"]
code = ["harness/methods/np_btl.py"]
"""


def read_one(tmp_path, text):
    (tmp_path / "few_shot.toml").write_text(text)
    return read_inventories(tmp_path)["few_shot"]


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ('"partial"', '"partail"', "there is no state 'partail'", "did you mean 'partial'"),
        ('"partial"', '"complete"', "there is no state 'complete'", "one of: faithful, partial"),
        ('"method"', '"metod"', "there is no kind 'metod'", "did you mean 'method'"),
        ('why = "smaller"\n', "", "the reason is missing", 'why = "'),
        ('"N1"', '"N99"', "few_shot has no claim N99", "N9"),
        ('"N1"', '"P1"', "few_shot has no claim P1", "N1"),
        ("np_btl.py", "np_btl_2.py", "there is no file harness/methods/np_btl_2.py", "from the project's root"),
        ('claims = ["N1"]\ncode = ["harness/methods/np_btl.py"]\n', "", "nothing holds it", 'claims = ["N1"]'),
        ('where = "section 1"\n', "", "where is missing", "harness/claims/inventory.py describes"),
        ("why =", "wy =", "unknown key 'wy'", "did you mean 'why'"),
    ],
)
def test_a_wrong_entry_is_refused_with_its_file_and_a_hint(tmp_path, old, new, message, hint):
    assert len(read_one(tmp_path, ENTRY).entries) == 1 and old in ENTRY
    with pytest.raises(UserError) as refused:
        read_one(tmp_path, ENTRY.replace(old, new, 1))
    assert message in refused.value.message and hint in refused.value.hint
    assert str(tmp_path / "few_shot.toml") in refused.value.message


def test_what_is_faithful_needs_no_reason_and_what_is_not_possible_needs_no_claim(tmp_path):
    faithful = ENTRY.replace('"partial"\nwhy = "smaller"', '"faithful"')
    assert read_one(tmp_path, faithful).entries[0].why == ""
    nothing = ENTRY.replace('"partial"', '"not possible here"')
    nothing = nothing.replace('claims = ["N1"]\ncode = ["harness/methods/np_btl.py"]\n', "")
    assert read_one(tmp_path, nothing).entries[0].claims == ()


def judged(name, suite, verdict=HOLDS):
    return JudgedClaim(CLAIMS[name], "few_shot", suite, verdict)


def test_the_page_shows_every_entry_and_links_claims_to_their_verdicts():
    found = {"N1": judged("N1", "few_shot_two_modes"), "N3": judged("N3", "few_shot_aspects", DOES_NOT_HOLD)}
    text = papers_html(INVENTORIES, found, "claims-quick.html")
    plain = text.replace("&#39;", "'").replace("<wbr>", "")
    for paper, entry in ENTRIES:
        assert f'<section id="{paper}">' in text
        for shown in (entry.what, entry.where, entry.why, *entry.code):
            assert shown in plain
    assert text.count("<tr><td>") == len(INVENTORIES) + len(ENTRIES)
    for inventory in INVENTORIES.values():
        for state in STATE_MEANINGS:
            n = sum(entry.state == state for entry in inventory.entries)
            assert not n or re.search(rf'<li>{n} <span class="badge \w+">. {state}</span></li>', text)
    assert re.search(r'<a href="claims-quick.html#few_shot_two_modes-N1">N1</a> <span class="badge holds', text)
    assert re.search(r'<a href="claims-quick.html#few_shot_aspects-N3">N3</a> <span class="badge not', text)
    assert 'N2 <span class="soft">not judged in this run</span>' in text
    named = sum(len(entry.claims) for _, entry in ENTRIES)
    assert text.count('class="claim"') == named
    assert set(re.findall(r'href="([^"#]*)', text)) == {"", "claims-quick.html"}  # nothing from elsewhere


def test_the_page_escapes_markup():
    bad = "<script>alert(1)</script>"
    entry = InventoryEntry(bad, bad, "method", PARTIAL, bad, ("N1",), ("harness/data.py",))
    text = papers_html({"x": PaperInventory(bad, (entry,), bad)}, {}, 'a"b.html')
    assert "<script" not in text and text.count("&lt;script&gt;") == 6
    assert 'a"b' not in text


def test_a_claim_of_ones_own_with_a_shipped_id_is_not_taken_for_it():
    own, shipped = judged("N1", "mine"), judged("N2", "few_shot_correlations")
    suites = [("mine", Path("mine.toml")), ("few_shot_correlations", CLAIMS_FOLDER / "few_shot_correlations.toml")]
    parts = [SimpleNamespace(suite=SimpleNamespace(name=name, file=str(file))) for name, file in suites]
    assert judged_shipped_claims([own, shipped, replace(shipped, suite="other")], parts) == {"N2": shipped}


FROM_PAPERS = [
    name for name in registry.list_names("method") if getattr(registry.load_class("method", name), "paper", "")
]


@pytest.mark.parametrize("name", FROM_PAPERS)
def test_a_method_of_a_paper_lists_its_departures(name):
    """As one paragraph of the class's own docstring, which `manyminds show` prints."""
    paragraphs = (inspect.getdoc(registry.load_class("method", name)) or "").split("\n\n")
    assert sum(paragraph.startswith("Departures: ") for paragraph in paragraphs) == 1
    assert not any("Departure" in paragraph and not paragraph.startswith("Departures: ") for paragraph in paragraphs)
