"""Draw the pictures of the README and of docs/results: python -m experiments.pictures

contact_sheet.png shows test images with their predictions; explained.png a heat map over one of them, and filters.png what
convolutions make of it, both by explain.py.
"""

import collections
import json
import tempfile
from pathlib import Path

from classifier.base import console
from classifier.base.console import DONE, PROJECT, say
from experiments.scripts import RESULTS, Parser, run_script

ROWS, COLUMNS = 3, 6
EXPLAINED = PROJECT / "testing_data/cats/cat_005.jpg"
MARKS = {"correct": ("✓", "#1a7f37"), "incorrect": ("✗", "#c4161c"), "unknown": ("?", "#5a5a5a")}  # mark, colour


def main(argv: list[str] | None = None) -> int:
    """Predict the images in testing_data and draw some of them, explain one; returns the exit code."""
    parser = Parser(__doc__)
    parser.add_folder("--model", "runs", "a run folder, or a folder of them: the newest finished one")
    parser.add_folder("--output", RESULTS, "folder for the pictures")
    arguments = parser.parse_args(argv)
    draw(predict(PROJECT / "testing_data", arguments.model), arguments.output / "contact_sheet.png")
    explain = ("explain.py", EXPLAINED, "--model", arguments.model, "--output")
    run_script(*explain, arguments.output / "explained.png")
    with tempfile.TemporaryDirectory() as folder:
        run_script(*explain, Path(folder, "filters.png"), "--filters")
        write_palette(Path(folder, "filters.png"), arguments.output / "filters.png", 128)
    say(f"written to {arguments.output}: contact_sheet.png, explained.png, filters.png")
    return DONE


def write_palette(drawn: Path, path: Path, num_colours: int = 256) -> None:
    """Write a PNG file with a palette: it takes a fraction of the bytes."""
    from PIL import Image  # comes with matplotlib

    Image.open(drawn).convert("RGB").quantize(num_colours).save(path, optimize=True)


def predict(folder: Path, model: Path) -> dict[str, list[dict]]:
    """What predict.py says of the images in class folders, by verdict: see MARKS."""
    by_verdict = collections.defaultdict(list)
    for prediction in json.loads(run_script("predict.py", folder, "--format", "json", "--model", model)):
        label, predicted = Path(prediction["path"]).parent.name, prediction["class"]
        known = predicted in prediction["probabilities"]
        by_verdict["unknown" if not known else "correct" if predicted == label else "incorrect"].append(prediction)
    return by_verdict


def choose(by_verdict: dict[str, list[dict]], count: int) -> list[tuple[str, dict]]:
    """(verdict, prediction) of the first incorrect and the first unknown one, and of correct ones spread over the folder."""
    chosen = [(verdict, each) for verdict in ("incorrect", "unknown") for each in by_verdict[verdict][:1]]
    correct = by_verdict["correct"]
    places = min(count - len(chosen), len(correct))
    chosen += [("correct", correct[i * len(correct) // places]) for i in range(places)]
    return sorted(chosen, key=lambda item: item[1]["path"])


def draw(by_verdict: dict[str, list[dict]], path: Path) -> None:
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
        weight = "normal" if verdict == "correct" else "bold"
        style = {"color": colour, "weight": weight, "ha": "center", "va": "top", "transform": axes.transAxes}
        axes.text(0.5, -0.04, f"{mark} {name}", **style)
    counts = ", ".join(f"{len(by_verdict[verdict])} {verdict} {mark}" for verdict, (mark, _) in MARKS.items())
    figure.suptitle(f"All {sum(map(len, by_verdict.values()))} test images: {counts}", fontsize=11)
    figure.savefig(path, dpi=100)
    write_palette(path, path)


if __name__ == "__main__":
    console.run(main)
