"""Records into docs/results, their tables beside them and into the pages, and the plots that these show."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from experiments.bench import places
from experiments.bench.glance import write_glances
from experiments.bench.plots import PLOTS, plot
from experiments.bench.records import check_one_kind, copy_runs, replace_records
from experiments.bench.summary import summary
from experiments.bench.tables import all_tables, tables
from experiments.section import around_section, write_section
from prefillshare.bench.figures import Figures, Slo, read_runs
from prefillshare.bench.matrix import FULL, load_matrix
from prefillshare.bench.run import MATRIX

START = "<!-- table: python -m experiments.bench publish -->"
OWN_START = "<!-- table: python -m experiments.bench publish docs/results/{folder} -->"
_FILE = """# {folder}: all figures
`python -m experiments.bench publish docs/results/{folder}` writes them from the records in `runs/`.
[What they mean](../../bench.md#what-is-measured), [what follows from them](../../bench-results.md). A cell is one run,
or the median of several with the lowest and the highest.

{tables}
"""


def publish(results: Path, further: Sequence[Path] = ()) -> None:
    """
    Args:
        further: folders whose runs are added, in place of those of the same cell and repeat.

    Raises:
        UserError: there are no runs, no costs, or no place for the tables, or runs are of several kinds of machines.
            Nothing has changed then.
    """
    if further:
        check_one_kind([results, *further])
        with TemporaryDirectory() as scratch:
            gathered = Path(scratch) / results.name
            replace_records(results, gathered)
            for each in further:
                copy_runs(each, gathered)
            publish(gathered)
        return
    runs = read_runs(results, Slo())  # says what is missing before anything is removed
    readme, page = places.PAGES
    is_float32 = {each.facts["environment"]["dtype"] for each in runs} == {"float32"}
    is_full = load_matrix(results / MATRIX) == FULL and not is_float32
    folder = places.PUBLISHED if is_full else places.PUBLISHED.with_name(f"bench-{results.name.removeprefix('bench-')}")
    start = START if is_full else OWN_START.format(folder=folder.name)
    texts = {page: tables(runs)}
    if start in readme.read_text():
        texts[readme] = summary(runs)
    for each in texts:
        around_section(each, start)  # or it has no place for them
    replace_records(results, folder)
    written = "".join(each.read_text() for each in places.PAGES)
    for file, names in PLOTS.items():
        if f"results/{folder.name}/{file}" in written:  # no pictures that nobody sees
            plot(runs, folder / file, names)
    (folder / places.ALL_FIGURES).write_text(all_figures(folder.name, runs))
    for each, text in texts.items():
        write_section(each, start, text)
    write_glances()


def all_figures(folder: str, runs: Sequence[Figures]) -> str:
    """The file beside the records: more than a page has room for."""
    return _FILE.format(folder=folder, tables=all_tables(runs))
