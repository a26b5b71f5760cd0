"""Checkpoints: weights and all else of a training, saved as files, and the newest sound ones restored."""

import contextlib
import math
import re
import tempfile
from pathlib import Path

import keras
import tensorflow as tf

from classifier.base.console import NO_DATA, UserError, describe, say
from classifier.base.files import make_folder, remove, replacing
from classifier.cluster.workers import is_chief
from classifier.networks.by_name import create_network, with_features
from classifier.networks.out_of_distribution import OutOfDistributionScore
from classifier.runs.folder import Run, checkpoints_in
from classifier.runs.record import RECORD


def save(checkpoint: tf.train.Checkpoint, folder: Path, number: int, keep: int = 1) -> None:
    """Write folder/ckpt-<number> and then delete all but the newest `keep`. Raises UserError if that fails.

    TensorFlow's CheckpointManager does this, too, but with a state file: damaged, that is one more way to lose a run.
    Of several workers, only the chief writes.
    """
    if not is_chief():
        return
    try:
        make_folder(folder)
        for leftover in folder.glob("partial-*"):  # of a process that was killed
            remove(leftover)
        with replacing(folder / f"ckpt-{number}") as partial, _for_tensorflow(partial) as path:
            checkpoint.write(str(path))  # its index gets its name last: without it none counts
        for old in checkpoints_in(folder)[keep:]:
            for path in folder.glob(f"{old.name}.*"):
                path.unlink()
    except (tf.errors.OpError, OSError) as error:
        # TensorFlow: {{function_node …}} name of a temporary file; No space left on device [Op:SaveV2]
        reason = (
            describe(error) if isinstance(error, OSError) else error.message.split("\n")[0].split("; ")[-1].split(" [Op:")[0]
        )
        raise UserError(f"cannot save a checkpoint in {folder} (earlier ones are kept): {reason}") from None


def restore_first_sound(checkpoint: tf.train.Checkpoint, prefixes: list[Path]) -> Path:
    """Restore the first of `prefixes` that is sound and fits; reports the others. Returns it.

    A checkpoint is a TensorFlow tensor bundle: reading it checks every tensor's checksum and never runs code. Raises
    UserError if none is sound.
    """
    for prefix in prefixes:
        try:
            with _for_tensorflow(prefix) as path:
                _restore(checkpoint, str(path))
            return prefix
        except (tf.errors.OpError, OSError, IndexError, ValueError, AssertionError) as error:
            problem = "does not fit the network" if isinstance(error, ValueError | AssertionError) else "is damaged"
            say(f"warning: checkpoint {prefix} {problem}")
    raise UserError(f"no sound checkpoint among {', '.join(map(str, prefixes))}", NO_DATA)


@contextlib.contextmanager
def _for_tensorflow(prefix):
    """Yield a path of the same checkpoint for TensorFlow: in UTF-8, and without [ ] * ? or backslashes of a pattern."""
    if not re.search(r"[][*?\\\ud800-\udfff]", str(prefix)):
        yield prefix
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, "checkpoints")
        link.symlink_to(prefix.parent.absolute())
        yield link / prefix.name


def _restore(checkpoint, prefix):
    """Restore one checkpoint; raises ValueError or AssertionError where it does not fit, OSError if it claims too much."""
    reader = tf.train.load_checkpoint(prefix)
    types = reader.get_variable_to_dtype_map()
    claimed = sum(math.prod(shape) * types[name].size for name, shape in reader.get_variable_to_shape_map().items())
    if claimed > 1.1 * _bytes_of(prefix):  # or reading it could fill the memory, with what a few bytes claim
        raise OSError("it claims more than it has")
    checkpoint.read(prefix).expect_partial().assert_existing_objects_matched()


def _bytes_of(prefix):
    """How many bytes a checkpoint's files have. A training may replace it meanwhile."""
    files = Path(prefix).parent.glob(f"{Path(prefix).name}.*")
    return sum(path.stat().st_size for path in files if path.exists())


def load_selected(run: Run, network: keras.Model) -> None:
    """Load the selected weights of a run, or its newest where those cannot be read, which is said.

    Raises UserError with exit code 3 if there is no sound checkpoint, or the selected weights are not the recorded ones.
    """
    prefixes = [prefix for name in ("selected", "fine_tuning", "head", "training") for prefix in run.checkpoints(name)]
    if not prefixes:
        raise UserError(f"{run.path} has no checkpoint yet", NO_DATA)
    used, recorded = restore_first_sound(tf.train.Checkpoint(network=network), prefixes), run.record.selected_digest
    if used.parent.name != "selected":
        say(f"no sound checkpoint of the selected weights: using {used} instead")
    elif recorded and recorded != run.selected_digest():
        problem = f"{used} and {run.path / RECORD} are not of the same training"
        raise UserError(f"{problem}: restore them, or use another run", NO_DATA)


def save_ood(run: Run, ood: OutOfDistributionScore, epoch: int) -> None:
    """Save the OOD score that belongs to the selected weights, of this epoch."""
    save(tf.train.Checkpoint(ood=ood), run.path / "checkpoints" / "ood", epoch)


def load_trained_network(run: Run) -> keras.Model:
    """Rebuild the network of a run as it was trained, see create_network(); raises what load_selected() does."""
    record = run.record
    least = len(record.classes)  # float32 numbers: a bias for each class
    if record.network == "cnn":
        least += 64 * (record.image_size // 8) ** 2 * 128  # of fc1, on the maps of conv3
    prefixes = [prefix for folder in (run.path / "checkpoints").glob("*") for prefix in checkpoints_in(folder)]
    if prefixes and max(map(_bytes_of, prefixes)) < 4 * least:  # building what the record asks for takes memory
        raise UserError(f"no sound checkpoint in {run.path}: none is large enough for what {RECORD} says", NO_DATA)
    network = create_network(record.network, record.image_size, len(record.classes))
    load_selected(run, network)
    return network


def load_network(run: Run, with_ood: bool = False) -> keras.Model:
    """Rebuild the network of a run with its selected weights; raises what load_selected() does.

    (n, image_size, image_size, 3) uint8 RGB → (n, classes) logits, already divided by the temperature. With `with_ood`,
    where the run has OOD scores, → (logits, (n,) OOD scores).
    """
    record, network = run.record, load_trained_network(run)
    images = keras.Input((record.image_size, record.image_size, 3), dtype="uint8", name="images")
    features, logits = with_features(network, record.ood.features if record.ood else "last")(images, training=False)
    outputs = logits / (record.temperature or 1.0)
    if with_ood and record.ood:
        ood = OutOfDistributionScore(len(record.classes), name="ood")
        both = (outputs, ood(features))
        try:
            restore_first_sound(tf.train.Checkpoint(ood=ood), run.checkpoints("ood"))
            outputs = both
        except UserError as error:
            say(f"warning: no image will be unknown: {error}")
    return keras.Model(images, outputs, name=network.name)
