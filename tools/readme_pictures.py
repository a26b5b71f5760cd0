"""Draw the contact sheet at the top of the README, test images with their predictions: python -m tools.readme_pictures"""

import argparse
import collections
import importlib.util
import json
from pathlib import Path

from classifier import console
from classifier.console import DONE, PROJECT, USAGE, UserError, say
from tools.scripts import run_script

ROWS, COLUMNS = 3, 6
MARKS = {"correct": ("✓", "#1a7f37"), "incorrect": ("✗", "#c4161c"), "unknown": ("?", "#5a5a5a")}  # mark, colour


def main(argv=None):
    """Predict the images in testing_data and draw some of them; returns the exit code."""
    parser = argparse.ArgumentParser(description="Draw results/contact_sheet.png: test images with their predictions.")
    parser.add_argument("--model", type=Path, metavar="RUN_FOLDER", help="default: the newest finished run")
    arguments = parser.parse_args(argv)
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("readme_pictures needs matplotlib: pip install -c requirements-optional.txt matplotlib", USAGE)
    path = PROJECT / "results" / "contact_sheet.png"
    draw(predict(PROJECT / "testing_data", arguments.model), path)
    say(f"written to {path}")
    return DONE


def predict(folder, model=None):
    """What predict.py says of each image in a folder, as {verdict: [dictionaries]}; raises UserError if it fails."""
    model_flags = ["--model", model] if model else []
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
    """Draw some of the images in rows, with the predicted class and its confidence under each, and how many there are."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image  # comes with matplotlib

    figure, grid = plt.subplots(ROWS, COLUMNS, figsize=(9, 5.6), layout="constrained", facecolor="white")
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (verdict, prediction) in zip(grid.flat, choose(by_verdict, grid.size), strict=False):  # there may be fewer
        mark, colour = MARKS[verdict]
        name = "unknown" if verdict == "unknown" else f"{prediction['class']} {prediction['probability']:.1%}"
        axes.imshow(plt.imread(prediction["path"]))
        axes.set_anchor("S")
        axes.text(0.5, -0.04, f"{mark} {name}", color=colour, transform=axes.transAxes, ha="center", va="top",
                  weight="normal" if verdict == "correct" else "bold")  # fmt: skip
    counts = ", ".join(f"{len(by_verdict[verdict])} {verdict} {mark}" for verdict, (mark, _) in MARKS.items())
    figure.suptitle(f"All {sum(map(len, by_verdict.values()))} test images: {counts}", fontsize=11)
    figure.savefig(path, dpi=100)
    with Image.open(path) as drawn:
        small = drawn.convert("RGB").quantize(256)  # a palette: a quarter of the bytes
    small.save(path, optimize=True)


if __name__ == "__main__":
    console.run(main)
