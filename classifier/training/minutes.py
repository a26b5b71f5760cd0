"""--minutes: how many epochs fit into a time, by the speed of a few steps on this machine."""

import itertools
import statistics
import time
from collections.abc import Callable

from classifier.cluster.workers import of_chief
from classifier.networks.by_name import enough_memory
from classifier.runs.folder import Run
from classifier.runs.settings import AUTO, Settings
from classifier.training.batches import size_in_epoch
from classifier.training.phases import Phase, choose_fine_tuning, fine_tuning_phase, first_phase
from classifier.training.state import TrainingState


def choose_epochs(run: Run, sets, make_train_step: Callable, end: float) -> None:
    """Decide how many epochs fit into the time until `end`, of time.monotonic(), and record them.

    From then on, a resumed training does as many, whatever its speed. `make_train_step`: see train.py.
    """
    started, settings = time.monotonic(), run.record.settings
    phase = first_phase(settings)
    if phase.is_head:  # it takes seconds: the time is for fine-tuning, even if it was not asked for
        settings = settings if settings.fine_tune not in (None, AUTO) else choose_fine_tuning(settings, len(sets.train))
        phase = fine_tuning_phase(settings, 0)
    with enough_memory():
        state = TrainingState(run, phase, sets)
        paces = measure_speed(state, make_train_step(state))
    setting_up = 2 * (time.monotonic() - started)  # once more for the training, and about as long for the end
    seconds = 0.9 * (end - time.monotonic() - setting_up)
    fitting = of_chief(lambda: settings_that_fit(settings, phase, sets, *paces, seconds))
    run.update(settings=run.record.settings.replace(**fitting))


def measure_speed(state: TrainingState, train_step: Callable, steps: int = 8) -> tuple[float, float]:
    """Seconds for a training image, and for a validation image, from a few steps after a first one."""
    times = []
    batches = itertools.chain.from_iterable(state.batches_from(0) for _ in itertools.count())
    for images, labels in itertools.islice(batches, 1 + steps):
        started = time.monotonic()
        train_step(images, labels)
        trained = time.monotonic()
        state.predict(images)
        times.append((trained - started, time.monotonic() - trained))
    trained, predicted = (statistics.median(column) for column in zip(*times[1:], strict=True))
    return trained / state.batch_size, predicted / state.batch_size


def settings_that_fit(settings: Settings, phase: Phase, sets, train_pace: float, valid_pace: float, seconds: float) -> dict:
    """The changes of the settings with which a training ends within these seconds; paces are seconds for an image."""
    num_train, num_valid = len(sets.train), len(sets.valid)
    epoch = num_train * train_pace + num_valid * valid_pace
    if not phase.unfrozen:
        sizes = [size_in_epoch(settings, number) for number in range(settings.epochs)]  # the first ones were measured
        growth = sum(size**2 for size in sizes) / len(sizes) / sizes[0] ** 2
        return {"epochs": int(min(max(seconds / (epoch * growth), 1), settings.epochs))}
    epochs = (seconds - (num_train + num_valid) * valid_pace) // epoch  # each image goes through the frozen network first
    if epochs < 1:
        return {"fine_tune": None}
    return {"fine_tune": phase.unfrozen, "fine_tune_epochs": int(min(epochs, phase.last)), "fine_tune_lr": phase.lr}
