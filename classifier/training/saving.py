"""Saving a training: after every epoch, every few minutes, and when a signal asks it to stop."""

import contextlib
import sys
import time
from collections.abc import Iterator

import tensorflow as tf

from classifier.base.console import StopRequest, UserError, command, say, shell_path
from classifier.cluster import workers
from classifier.runs.checkpoints import save
from classifier.training.state import TrainingState

NOT_FINITE = "loss became infinite or NaN"


class Saver:
    """Saves a TrainingState into its run folder, and stops the training where a signal or the loss asks for it."""

    def __init__(self, state: TrainingState):
        self._state, self._run = state, state.run
        self._stop, self._last_save = StopRequest(), time.monotonic()
        self._folder = state.run.path / "checkpoints"

    def listening(self) -> contextlib.AbstractContextManager:
        """A context in which a signal to stop waits until save_if_due() or leave_if_asked()."""
        return self._stop.listening()

    def save(self) -> None:
        """Save a checkpoint as the newest; the one before it stays. Raises UserError if it fails or weights are NaN."""
        state, epoch = self._state, self._state.epoch
        if not state.is_finite():
            self.stop_not_finite(f"weights became infinite or NaN in epoch {epoch + (1 if int(state.step) else 0)}")
        number = epoch * (state.steps + 1) + int(state.step)
        save(state.checkpoint, self._folder / state.phase.name, number, keep=2)
        self._last_save = time.monotonic()

    def save_if_due(self) -> None:
        """Save every --save-minutes, and leave after saving if a signal came, to any of the workers."""
        signum = workers.any_of(self._stop.signum)  # once: another may come, which not all workers would know of
        if signum or time.monotonic() - self._last_save > 60 * self._state.settings.save_minutes:
            self.save()
        self._leave_after(signum)

    def leave_if_asked(self) -> None:
        """Leave if a signal came, to any of the workers; everything must be saved before."""
        self._leave_after(workers.any_of(self._stop.signum))

    def _leave_after(self, signum):
        if signum:
            state = self._state
            where = f"in epoch {state.epoch + 1}, after {int(state.step)} of {state.steps} steps"
            say(f"stopped {where if int(state.step) else f'after epoch {state.epoch}'}; to resume:")
            say(f"  {command('train.py', '--resume', self._run.path)}")
            sys.exit(128 + signum)

    def finish_epoch(self, row: dict) -> bool:
        """Save the history with this row, the weights if they are selected now, and a checkpoint; True if they are.

        In this order: a run that is killed in between does the epoch again, with the same result. Meanwhile the record
        says that the run is not finished, see find_run(), and knows no digests of history and selected weights.
        """
        state, history = self._state, self._state.history
        self._run.update(finished=False, temperature=None, ood=None, selected_digest=None, history_digest=None)
        history.append(workers.of_chief(lambda: row))
        selected = history.selected()
        is_selected = selected is history.rows[-1]
        if is_selected:
            save(state.weights_checkpoint, self._folder / "selected", row["epoch"])
        state.begin_epoch()
        self.save()
        self.record_epochs()
        return is_selected

    def record_epochs(self) -> None:
        """Record the epochs that are done: also what a process that was killed while it saved could not record."""
        history = self._state.history
        self._run.update(epochs=self._state.epoch, selected=history.selected(), history_digest=history.digest())

    @contextlib.contextmanager
    def finite(self) -> Iterator[None]:
        """A context for steps in which a loss that is not finite, see NOT_FINITE, ends the training, with advice."""
        try:
            yield
        except tf.errors.InvalidArgumentError as error:
            if NOT_FINITE not in error.message:
                raise
            state, number = self._state, int(self._state.step)
            paths = state.sets.train.paths_of_batch(number, state.batch_size, state.settings.seed, state.epoch)
            say(f"images of this step: {', '.join(map(str, paths))}")
            self.stop_not_finite(f"the {NOT_FINITE} in epoch {state.epoch + 1}, step {number + 1} of {state.steps}")

    def stop_not_finite(self, what: str) -> None:
        """Raise UserError: `what` is not finite, in words, and how to go on."""
        phase = self._state.phase
        newest = self._run.checkpoints(phase.name)
        again = f"--resume, from {shell_path(newest[0])}" if newest else "start a new training"
        raise UserError(f"{what}: {again}, with a lower {'--fine-tune-lr' if phase.unfrozen else '--lr'} than {phase.lr}")
