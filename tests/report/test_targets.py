"""What a search found, as text and as a page."""

import subprocess
import sys

from made import Page

from efface.report.targets import as_page, as_text, search_results

RECORD = {
    "method": "AGE", "model": "moji", "created": "2026-01-01T00:00:00+00:00",
    "notes": {
        "found": {
            "tiger": {"of": 4, "steps": [0, 3, 6, 7], "shares": {"lion": [0.25, 0.2, 0.7, 0.8], "a < b": [0.25, 0.5, 0.1, 0.05]}},
            "car": {"of": 1, "steps": [0, 3, 6, 7], "shares": {"boat": [1.0, 1.0, 1.0, 1.0]}},
        }
    },
}  # fmt: skip


def test_lines_name_the_foremost_word_at_some_moments() -> None:
    first, second = as_text(RECORD, moments=3).splitlines()
    assert first == "tiger, of 4 words: step 0 lion 25 %; step 6 lion 70 %; step 7 lion 80 %"
    assert second.startswith("car, of 1 words: step 0 boat 100 %")
    assert "step 3 a < b 50 %" in as_text(RECORD, moments=9)


def test_the_page_draws_every_share() -> None:
    text = as_page(RECORD)
    page = Page(text)
    assert page.text.count("chosen, %") == 2
    assert "a &lt; b: 0 25" in text
    figures = text.split("<svg")[1:]
    assert len(figures) == 2
    lion = "M50.0 200.0L170.0 212.0L290.0 92.0L330.0 68.0"  # 50 + 280 step/7, 260 - 240 share
    assert f'd="{lion}"' in figures[0]
    assert "step" in figures[1]


def test_an_edit_that_did_not_search_says_nothing() -> None:
    assert search_results({"method": "ESD"}) == {}
    assert as_text({"method": "ESD", "notes": {}}) == ""


def test_it_needs_neither_torch_nor_numpy() -> None:
    code = "import sys, efface.report.targets; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "efface.report.targets" in loaded
    assert not {"torch", "numpy"} & set(loaded)
