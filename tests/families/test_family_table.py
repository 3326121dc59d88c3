"""The table of families in docs/models.md is what the tests of this folder showed."""

import os

import family_table
import pytest
from family_table import read_stored, table, this_run, versions, with_table
from tiny_models import BUILDERS

WRITE = os.environ.get("FAMILY_TABLE") == "write"


@pytest.mark.last
def test_the_stored_results_are_what_this_run_showed(request):
    try:
        results = request.config.stash[family_table.WITNESS].results()
    except LookupError as error:
        pytest.skip(str(error))
    if WRITE:
        family_table.write(this_run(), results)
    assert read_stored()[this_run()] == results, "run `make family-table`"


@pytest.mark.last
def test_the_page_has_the_table_of_the_stored_results():
    page = family_table.PAGE.read_text()
    assert with_table(page, table(read_stored())) == page, "run `make family-table`"


@pytest.mark.skipif(WRITE, reason="one version after the other is being written")
def test_the_stored_results_are_those_of_the_pinned_versions():
    stored = read_stored()
    assert set(stored) == versions() and len(stored) == 3, "run `make family-table`"
    assert set(family_table.NAMES) == set(BUILDERS) == {family for results in stored.values() for family in results}
