"""Where published figures are: the records, and the pages that show them."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs" / "results" / "bench"
PAGES = (ROOT / "README.md", ROOT / "docs" / "bench-results.md")
ALL_FIGURES = "tables.md"  # beside the records
