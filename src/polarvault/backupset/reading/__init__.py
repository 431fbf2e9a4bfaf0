"""Open, list and read the files of a backup so that nothing leads out of it: trees, tars, other tools' formats."""
