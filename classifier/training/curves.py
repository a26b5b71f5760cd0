"""Watching a training: the first batch and the curves as images in the run folder, and what TensorBoard shows."""

import os
import time
from pathlib import Path

import cv2
import keras
import tensorflow as tf

from classifier.base.console import describe, say
from classifier.base.figures import draw_curves, draw_sheet, save_png
from classifier.base.files import replacing
from classifier.cluster.workers import is_chief
from classifier.runs.folder import Run
from classifier.training.batches import train_batches
from classifier.training.state import TrainingState

FIRST_BATCH, CURVES, TENSORBOARD = "first_batch.png", "curves.png", "tensorboard"
MOST_IMAGES = 32  # of the first batch
SHARE = 0.005  # of the time trained since the last drawing that the next one may take
EXPECTED_SECONDS = 0.2  # for the first drawing of curves


class Watcher:
    """Draws what a training does, into its run folder, and writes it for TensorBoard if the settings say so.

    None of it can stop the training: a warning says what cannot be written. Of several workers, only the chief writes.
    """

    def __init__(self, run: Run, sets):
        self._run, self._settings, self._sets = run.path, run.record.settings, sets
        self._drawn, self._cost = time.monotonic(), EXPECTED_SECONDS
        self._board, self._warned = None, False

    def begin_phase(self, state: TrainingState) -> None:
        """Draw the first batch of a phase that has not begun yet; begin to write for TensorBoard."""
        if state.epoch == state.phase.first and not int(state.step):
            self._try(FIRST_BATCH, lambda: self._draw(FIRST_BATCH, draw_sheet(*self._first_batch(state))))
        if self._settings.tensorboard and self._board is None:
            self._try(TENSORBOARD, lambda: self._begin_board(state))

    def after_epoch(self, state: TrainingState) -> None:
        """Write the epoch for TensorBoard, and draw the curves if that takes little of the time since the last ones."""
        if self._board:
            self._try(TENSORBOARD, lambda: self._board.add(state.history.rows[-1]))
        if self._cost < SHARE * (time.monotonic() - self._drawn):
            self.draw_curves(state)

    def draw_curves(self, state: TrainingState) -> None:
        """Draw the curves of all epochs so far."""
        if not state.history.rows:
            return
        started = time.monotonic()
        phases = {"head": 0, "fine-tuning": state.phase.first} if state.phase.unfrozen else None
        selected = state.history.selected()["epoch"]
        self._try(CURVES, lambda: self._draw(CURVES, draw_curves(state.history.rows, selected, phases)))
        self._drawn = time.monotonic()
        self._cost = self._drawn - started

    def _first_batch(self, state):
        """(images, captions): as the phase sees them; a head sees features of images as they are."""
        augmented = not state.phase.is_head
        batches = train_batches(self._sets.train, self._settings, state.epoch, state.batch_size, augmented)
        images, labels = next(batches)
        return images[:MOST_IMAGES], [self._sets.classes[label] for label in labels[:MOST_IMAGES]]

    def _begin_board(self, state):
        self._board = Board(self._run / TENSORBOARD)
        if self._board.is_new:
            self._board.begin(state.whole, self._run / FIRST_BATCH, state.history.rows)

    def _draw(self, name, figure):
        with replacing(self._run / name) as partial:
            save_png(figure, partial)

    def _try(self, name, write):
        """Write something; warn once if that fails, whatever the reason: the training goes on."""
        if not is_chief():
            return
        try:
            write()
        except Exception as error:
            if not self._warned:
                say(f"warning: cannot write {self._run / name}: {describe(error) if isinstance(error, OSError) else error}")
            self._warned = True


class Board:
    """Event files for TensorBoard in a folder: `training` and `validation`, so that one chart shows both."""

    def __init__(self, folder):
        self.is_new = not folder.exists()
        self._writers = {
            side: tf.summary.create_file_writer(os.fspath(folder / side)) for side in ("training", "validation")
        }

    def begin(self, network: keras.Model, first_batch: Path, rows: list[dict]) -> None:
        """Write the graph of a network, an image file if it is there, and the rows of the history so far."""
        images = tf.TensorSpec((None, *network.input_shape[1:]), tf.uint8)
        graph = tf.function(lambda images: network(images, training=False)).get_concrete_function(images).graph
        with self._writers["training"].as_default(step=0):
            tf.summary.graph(graph)
            sheet = cv2.imread(str(first_batch), cv2.IMREAD_COLOR_RGB)
            if sheet is not None:
                tf.summary.image("first_batch", sheet[None])
        for row in rows:
            self.add(row)

    def add(self, row: dict) -> None:
        """Write a row of the history."""
        figures = {
            "training": {name: row[name] for name in ("loss", "accuracy", "learning_rate")},
            "validation": {name: row[f"val_{name}"] for name in ("loss", "accuracy")},
        }
        for side, writer in self._writers.items():
            with writer.as_default(step=row["epoch"]):
                for name, figure in figures[side].items():
                    if figure is not None:
                        tf.summary.scalar(name, figure)
            writer.flush()
