"""The page of demo.py: photos in, predicted classes with bars and heat maps out.

What visitors send is decoded by classifier/data/images.py alone, as everywhere: of Gradio's components those are used that
pass on the path of an uploaded file as it is.
"""

import os
import time
from pathlib import Path
from typing import Any

import gradio
import gradio.processing_utils
import numpy as np
from starlette.middleware import Middleware

from classifier.base.console import PROJECT, command, readable
from classifier.base.figures import data_uri, jpeg_uri
from classifier.data.finding import walk_images
from classifier.data.labels import normal
from classifier.pages.demo_guard import Guard
from classifier.pages.explanations import Explainer
from classifier.pages.report import TEMPLATES, templates
from classifier.predicting.classifier import Answer, Classifier

MAX_FILES = 20  # at once
MAX_FILE_SIZE = "50mb"
DELETE_UPLOADS = (60, 300)  # every minute, those older than five minutes; all of them at the end
SIDE = 320  # pixels of the longer side of an image on the page
MOST_BARS = 5
EXAMPLES_PER_CLASS = 3
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "network"}
PRIVATE: dict[str, Any] = {"api_visibility": "private"}


class Demo:
    """A run, ready to answer the page and programs."""

    def __init__(self, run: Path, folder: str):
        """`run`: see Classifier; `folder` is where Gradio puts uploaded files. Raises UserError for a bad run."""
        self.classifier = Classifier(run)
        self.run = self.classifier.run
        # JSON cannot hold the bytes of a folder's name that are no UTF-8.
        self.classifier.classes = [os.fsencode(name).decode(errors="replace") for name in self.run.record.classes]
        self.explainer = Explainer(self.run)
        self.folder = Path(folder).resolve()
        self.examples = find_examples(self.classifier.classes)
        self.templates = templates()
        image = np.zeros((self.run.record.image_size,) * 2 + (3,), np.uint8)
        list(self.classifier.predict([image]))  # the first time takes longer than all others
        self.explainer.explain(image, 0)

    def predict(self, photos: str | list[str] | None) -> list[dict]:
        """The predictions for image files, in order, as `predict.py --format json` prints them: for each an object with
        `file`, its name, and `class`, `probability`, `probabilities` and `ood_score`, or `error`: why it cannot be used."""
        objects = [answer.as_object() for answer in self._answers(photos)]
        return [{"file": Path(one.pop("path")).name} | one for one in objects]  # Gradio's client takes a path for a file

    def show(self, photos: str | list[str] | None) -> tuple[str, None]:
        """The HTML of the answers to image files, and None, which empties the field that they came from."""
        return self._rendered(self._answers, photos), None

    def show_example(self, selected: gradio.SelectData) -> str:
        """The HTML of the answer to an example."""
        return self._rendered(self.classifier.predict, [self.examples[selected.index]])

    def _answers(self, photos):
        """Answers to uploaded files; to those that are too many, too. Raises gradio.Error for any other file."""
        paths = [photos] if isinstance(photos, str) else photos or []
        if not all(Path(path).resolve().is_relative_to(self.folder) for path in paths):
            refuse_path()
        too_many = [Answer(path, reason=f"one of too many: at most {MAX_FILES} at once") for path in paths[MAX_FILES:]]
        return [*self.classifier.predict(paths[:MAX_FILES]), *too_many]

    def _rendered(self, answers_to, paths):
        started = time.perf_counter()
        answers = list(answers_to(paths))
        predicted = time.perf_counter()
        cards = [self._card(answer) for answer in answers]
        times = [moment - started for moment in (predicted, time.perf_counter())]
        return self._html("answers", cards=cards, times=times)

    def _card(self, answer):
        """What the template shows of an Answer."""
        card = {"name": Path(answer.path).name, "answer": answer}
        if answer.reason:
            return card
        bars = list(answer.probabilities.items())
        class_index = self.classifier.classes.index(bars[0][0])
        photo, marked, words = self.explainer.explain_file(answer.path, SIDE, class_index)
        images = [(card["name"], jpeg_uri(photo, 85)), (readable(words), jpeg_uri(marked, 85))]
        return card | {"bars": bars[:MOST_BARS], "num_others": len(bars[MOST_BARS:]), "images": images}

    def run_line(self) -> str:
        """The HTML of the line about the run."""
        return self._html("run_line", run=self.run.path, record=self.run.record, classes=self.classifier.classes)

    def show_run(self) -> str:
        """The HTML of the second tab: the training curves and the report, if they are in the run folder."""
        files = [self.run.path / name for name in ("curves.png", "report.html")]
        curves, report = (file.read_bytes() if file.exists() else None for file in files)
        return self._html(
            "run",
            run=self.run.path,
            curves=curves and data_uri(curves, "image/png"),
            report=report and report.decode(errors="replace"),
            report_command=command("evaluate.py", "FOLDER", "--model", self.run.path, "--report", files[1]),
        )

    def _html(self, name, **values):
        return self.templates.get_template(f"demo_{name}.html").render(values)


def find_examples(classes: list[str]) -> list[str]:
    """Paths of a few images of each class in testing_data, if its class folders are the classes."""
    folders = {normal(path.name): path for path in (PROJECT / "testing_data").glob("*") if path.is_dir()}
    if folders.keys() != set(map(normal, classes)):
        return []
    of_classes = [
        sorted(folder / image for image in walk_images(folder)) for folder in map(folders.get, map(normal, classes))
    ]
    return [str(path) for paths in of_classes for path in paths[:EXAMPLES_PER_CLASS]]


def build_page(demo: Demo) -> gradio.Blocks:
    """The page of a Demo."""
    with gradio.Blocks(title="Image classifier", analytics_enabled=False, delete_cache=DELETE_UPLOADS) as page:
        gradio.HTML(demo.run_line(), elem_id="run-line")
        with gradio.Tab("Predict"):
            photos = gradio.File(label="Drop, paste or choose photos", file_count="multiple", elem_id="photos", height=160)
            with gradio.Accordion("Camera", open=False):
                camera = gradio.Image(sources="webcam", type="filepath", image_mode=None, show_label=False, height=SIDE)
            answers = gradio.HTML(elem_id="answers")
            if demo.examples:
                gallery = gradio.Gallery(
                    demo.examples, elem_id="examples", label="Examples", height="auto", allow_preview=False, buttons=[]
                )
                gallery.select(demo.show_example, None, answers, **PRIVATE, **ONE_AT_A_TIME)
        with gradio.Tab("Curves and report") as tab:
            tab.select(demo.show_run, None, gradio.HTML(elem_id="run"), **PRIVATE)
        photos.upload(demo.show, photos, [answers, photos], **PRIVATE, **ONE_AT_A_TIME)
        camera.input(demo.show, camera, [answers, camera], **PRIVATE, **ONE_AT_A_TIME)
        program, result = gradio.Button(visible=False), gradio.JSON(label="predictions", visible=False)
        program.click(demo.predict, photos, result, api_name="predict", **ONE_AT_A_TIME)
    return page.queue(max_size=50)


def launch(page: gradio.Blocks, host: str, port: int, folder: str, auth: tuple[str, str] | None) -> None:
    """Serve the page, in other threads, at this host and port; to anybody there if `auth`, (user, password), is not None."""
    gradio.processing_utils.async_ssrf_protected_download = gradio.processing_utils.save_url_to_cache = refuse_path
    hosts = None if auth else {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}
    page.launch(
        server_name=host,
        server_port=port,
        auth=auth,
        share=False,
        allowed_paths=[],
        max_file_size=MAX_FILE_SIZE,
        app_kwargs={"middleware": [Middleware(Guard, hosts=hosts, folder=folder)]},
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # no fonts from elsewhere
        css_paths=TEMPLATES / "demo.css",
        head_paths=TEMPLATES / "demo_paste.html",
        footer_links=["api"],
        quiet=True,
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        prevent_thread_lock=True,
    )


def refuse_path(*_, **__):
    """Instead of predicting another file of this machine, or downloading one."""
    raise gradio.Error("only uploaded files can be predicted", print_exception=False)
