"""score_table.py: a row for each training, which takes the place of the same training's earlier one."""

import csv
import json
from pathlib import Path

from conftest import error_of, run


def test_a_run_has_one_row_with_the_figures_of_evaluation(trained, images, scripts_in_this_process):
    arguments = ("quick", trained, "--test-dir", images, "--ood-dir", images, "--table", "tests.csv")
    for commit in ("1234567", "1234567", "89abcde"):
        run("tools.score_table", *arguments, "--commit", commit)
    with open("tests.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [(row["training"], row["seed"], row["commit"]) for row in rows]
    assert names == [("quick", "0", "1234567"), ("quick", "0", "89abcde")]
    scores = json.loads(run("evaluate", images, "--model", trained, "--format", "json").stdout)
    assert rows[0]["accuracy"] == f"{scores['accuracy']:.4f}"
    assert rows[0]["OOD AUROC"] == "0.5000"
    Path("tests.csv").write_text("something,else\n")
    assert "another table" in error_of(run("tools.score_table", *arguments, "--commit", "1234567", code=1))
    assert Path("tests.csv").read_text() == "something,else\n"
