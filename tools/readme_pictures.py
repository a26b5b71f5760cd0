"""Draw the pictures of the README and of results/README.md: python -m tools.readme_pictures

contact_sheet.png is test images with their predictions; explained.png and filters.png are made by explain.py.
"""

import argparse
import collections
import json
import tempfile
from pathlib import Path

from classifier.base import console
from classifier.base.console import DONE, PROJECT, say
from tools.scripts import run_script

ROWS, COLUMNS = 3, 6
EXPLAINED = "testing_data/cats/cat_005.jpg"
MARKS = {"correct": ("✓", "#1a7f37"), "incorrect": ("✗", "#c4161c"), "unknown": ("?", "#5a5a5a")}  # mark, colour


def main(argv=None):
    """Predict the images in testing_data and draw some of them, explain one; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Draw results/contact_sheet.png, test images with their predictions, and for one of them explained.png, "
        "a heat map over it, and filters.png, what convolutions make of it."
    )
    parser.add_argument("--model", type=Path, metavar="RUN_FOLDER", help="default: the newest finished run")
    arguments = parser.parse_args(argv)
    model_flags = ["--model", arguments.model] if arguments.model else []
    results = PROJECT / "results"
    draw(predict(PROJECT / "testing_data", model_flags), results / "contact_sheet.png")
    run_script("explain.py", PROJECT / EXPLAINED, "--output", results / "explained.png", *model_flags)
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder, "filters.png")
        run_script("explain.py", PROJECT / EXPLAINED, "--filters", "--output", drawn, *model_flags)
        write_palette(drawn, results / "filters.png", 128)
    say(f"written to {results}: contact_sheet.png, explained.png, filters.png")
    return DONE


def write_palette(drawn, path, num_colours=256):
    """Write a PNG file with a palette: it takes a fraction of the bytes."""
    from PIL import Image  # comes with matplotlib

    Image.open(drawn).convert("RGB").quantize(num_colours).save(path, optimize=True)


def predict(folder, model_flags):
    """The output of predict.py for the images in a folder, as {verdict: [dictionaries]}. Raises UserError if it fails."""
    by_verdict = collections.defaultdict(list)
    for prediction in json.loads(run_script("predict.py", folder, "--format", "json", *model_flags)):
        label, predicted = Path(prediction["path"]).parent.name, prediction["class"]
        known = predicted in prediction["probabilities"]
        by_verdict["unknown" if not known else "correct" if predicted == label else "incorrect"].append(prediction)
    return by_verdict


def choose(by_verdict, count):
    """(verdict, prediction) of the first incorrect and the first unknown one, and of correct ones spread over the folder."""
    chosen = [(verdict, each) for verdict in ("incorrect", "unknown") for each in by_verdict[verdict][:1]]
    correct = by_verdict["correct"]
    places = min(count - len(chosen), len(correct))
    chosen += [("correct", correct[i * len(correct) // places]) for i in range(places)]
    return sorted(chosen, key=lambda item: item[1]["path"])


def draw(by_verdict, path):
    """Draw some of the images, each above its predicted class and confidence, and how many there are of each verdict."""
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    figure = Figure(figsize=(9, 5.6), layout="constrained")
    grid = figure.subplots(ROWS, COLUMNS)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (verdict, prediction) in zip(grid.flat, choose(by_verdict, grid.size), strict=False):  # there may be fewer
        mark, colour = MARKS[verdict]
        name = "unknown" if verdict == "unknown" else f"{prediction['class']} {prediction['probability']:.1%}"
        axes.imshow(imread(prediction["path"]))
        axes.set_anchor("S")
        axes.text(
            0.5,
            -0.04,
            f"{mark} {name}",
            color=colour,
            transform=axes.transAxes,
            ha="center",
            va="top",
            weight="normal" if verdict == "correct" else "bold",
        )
    counts = ", ".join(f"{len(by_verdict[verdict])} {verdict} {mark}" for verdict, (mark, _) in MARKS.items())
    figure.suptitle(f"All {sum(map(len, by_verdict.values()))} test images: {counts}", fontsize=11)
    figure.savefig(path, dpi=100)
    write_palette(path, path)


if __name__ == "__main__":
    console.run(main)
