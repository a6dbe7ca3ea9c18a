"""The page of a comparison."""

from __future__ import annotations

from small_comparison import BOTH, comparison

from components.reports.comparison_figures import draw
from components.reports.comparison_report import write_comparison


def test_the_page_is_self_contained_tells_failures_and_escapes() -> None:
    page = write_comparison(BOTH, draw(BOTH), {"good-key": b"\x89PNG"})
    assert "The loss became &lt;NaN&gt;." in page and "<NaN>" not in page
    assert "90.0" in page and "88.0 – 92.0" in page and 'class="above"' in page and 'class="below"' in page
    assert page.count("data:image/png;base64,") == 3
    assert "The loss became" in write_comparison(comparison(BOTH.contenders[3]), {}, {})
    assert "http://" not in page and "https://" not in page
