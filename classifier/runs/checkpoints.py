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
from classifier.runs.folder import METADATA, checkpoints_in, selected_digest


class Saver:
    """Saves checkpoints of a training into its run folder, and restores the newest sound one.

    `name` is that of the folder. `tracked` are the parts to restore, by name; of these, `network` has the weights that
    predict.
    """

    def __init__(self, run, name, **tracked):
        self._all = tf.train.Checkpoint(**tracked)
        self._weights = tf.train.Checkpoint(network=tracked["network"])
        self._newest = run / "checkpoints" / name
        self._selected = run / "checkpoints" / "selected"

    def save(self, number):
        """Save everything as the newest checkpoint, `number`; the one before it stays. Raises UserError if it fails."""
        _write(self._all, self._newest, number, keep=2)

    def save_selected(self, number):
        """Save the weights as the selected checkpoint, of epoch `number`."""
        _write(self._weights, self._selected, number, keep=1)

    def restore(self):
        """Restore the newest sound checkpoint; False if there is none yet."""
        prefixes = checkpoints_in(self._newest)
        return bool(prefixes) and bool(_restore_first_sound(self._all, prefixes))


def _write(checkpoint, folder, number, keep):
    """Write folder/ckpt-<number> and then delete all but the newest `keep`.

    TensorFlow's CheckpointManager does this, too, but with a state file: damaged, that is one more way to lose a run.
    Of several workers, only the chief writes.
    """
    if not is_chief():
        return
    try:
        make_folder(folder)
        for leftover in folder.glob("partial-*"):  # of a process that was killed
            remove(leftover)
        with replacing(folder / f"ckpt-{number}") as partial:  # the index comes last: without it none counts
            checkpoint.write(str(partial))
        for old in checkpoints_in(folder)[keep:]:
            for path in folder.glob(f"{old.name}.*"):
                path.unlink()
    except (tf.errors.OpError, OSError) as error:
        reason = describe(error) if isinstance(error, OSError) else error.message.split("\n")[0]
        raise UserError(f"cannot save a checkpoint in {folder} (the last good one is kept): {reason}") from None


def _restore_first_sound(checkpoint, prefixes):
    """Restore the first of `prefixes` that is sound and fits; reports the others. Returns it.

    A checkpoint is a TensorFlow tensor bundle: reading it checks every tensor's checksum and never runs code.
    """
    for prefix in prefixes:
        try:
            with _without_wildcards(prefix) as path:
                _restore(checkpoint, str(path))
            return prefix
        except (tf.errors.OpError, OSError, IndexError, ValueError, AssertionError) as error:
            problem = "does not fit the network" if isinstance(error, ValueError | AssertionError) else "is damaged"
            say(f"warning: checkpoint {prefix} {problem}")
    raise UserError(f"no sound checkpoint among {', '.join(map(str, prefixes))}", NO_DATA)


@contextlib.contextmanager
def _without_wildcards(prefix):
    """Yield a path of the same checkpoint without any of [ ] * ? and backslashes: TensorFlow would take it for a pattern."""
    if not re.search(r"[][*?\\]", str(prefix)):
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
    if claimed > 1.1 * bytes_of(prefix):  # or reading it could fill the memory, with what a few bytes claim
        raise OSError("it claims more than it has")
    try:
        checkpoint.read(prefix).expect_partial().assert_existing_objects_matched()
    except (ValueError, AssertionError):
        parts = {name: part for name, part in vars(checkpoint).items() if not name.startswith("_")}
        if "network" not in parts or parts["network"].name != "cnn":
            raise
        _restore_older_cnn(prefix, **parts)


def _restore_older_cnn(prefix, network, trained=None, **others):
    """Restore a cnn in which bias and ReLU still came after pooling: its layers have other numbers, in the same order.

    The weights of `trained` are restored with the optimizer, which has them in the same order, too.
    """
    reader = tf.train.load_checkpoint(prefix)
    found = [re.match(r"network/_operations/(\d+)/(_kernel|bias)/", key) for key in reader.get_variable_to_shape_map()]
    found = sorted(filter(None, found), key=lambda match: (int(match[1]), match[2]))
    if found or not others:  # else the optimizer has them: there is no averaging
        network.set_weights([reader.get_tensor(match.string) for match in found])
    if others:
        tf.train.Checkpoint(**others).read(prefix).expect_partial().assert_existing_objects_matched()


def bytes_of(prefix):
    """How many bytes a checkpoint's files have. A training may replace it meanwhile."""
    files = Path(prefix).parent.glob(f"{Path(prefix).name}.*")
    return sum(path.stat().st_size for path in files if path.exists())


def load_selected(run, network, recorded=None):
    """Load the selected weights of a run, or its newest where those cannot be read, which is said.

    Raises UserError with exit code 3 for a folder that has no sound checkpoint, or one whose selected weights are not those
    of the selected_digest() that the metadata `recorded`, if it did.
    """
    folders = [run / "checkpoints" / name for name in ("selected", "fine_tuning", "head", "training")]
    prefixes = [prefix for folder in folders for prefix in checkpoints_in(folder)]
    if not prefixes:
        raise UserError(f"{run} has no checkpoint yet", NO_DATA)
    used = _restore_first_sound(tf.train.Checkpoint(network=network), prefixes)
    if used.parent.name != "selected":
        say(f"no sound checkpoint of the selected weights: using {used} instead")
    elif recorded and recorded != selected_digest(run):
        problem = f"{used} and {run / METADATA} are not of the same training"
        raise UserError(f"{problem}: restore them, or use another run", NO_DATA)


def save_ood(run, ood, number):
    """Save the OutOfDistributionScore that belongs to the selected weights, of epoch `number`."""
    _write(tf.train.Checkpoint(ood=ood), run / "checkpoints" / "ood", number, keep=1)


def _refuse_too_small(run, metadata):
    """Raise UserError if no checkpoint can have the network's weights: building what the metadata asks for takes memory."""
    prefixes = [prefix for folder in (run / "checkpoints").glob("*") for prefix in checkpoints_in(folder)]
    least = len(metadata["classes"])  # float32 numbers: a bias for each class
    if metadata["network"] == "cnn":
        least += 64 * (metadata["image_size"] // 8) ** 2 * 128  # of fc1, on the maps of conv3
    if prefixes and max(map(bytes_of, prefixes)) < 4 * least:
        raise UserError(f"no sound checkpoint in {run}: none is large enough for what {METADATA} says", NO_DATA)


def load_trained_network(run, metadata):
    """Rebuild the network of a run as it was trained, see create_network(); raises what load_selected() does."""
    size, num_classes = metadata["image_size"], len(metadata["classes"])
    _refuse_too_small(run, metadata)
    network = create_network(metadata["network"], size, num_classes, feature_scales=metadata["feature_scales"])
    load_selected(run, network, metadata.get("selected_digest") if metadata["finished"] else None)
    return network


def load_network(run, metadata, with_ood=False):
    """Rebuild the network of a run with its selected weights; raises what load_selected() does.

    (n, image_size, image_size, 3) uint8 RGB → (n, classes) logits, already divided by the temperature. With `with_ood`,
    where the run has OOD scores, → (logits, (n,) OOD scores).
    """
    size, num_classes = metadata["image_size"], len(metadata["classes"])
    network = load_trained_network(run, metadata)
    images = keras.Input((size, size, 3), dtype="uint8", name="images")
    kind = metadata.get("ood", {}).get("features", "last")
    features, logits = with_features(network, kind)(images, training=False)
    outputs = logits / metadata.get("temperature", 1.0)
    if with_ood and "ood" in metadata:
        ood = OutOfDistributionScore(num_classes, name="ood")
        both = (outputs, ood(features))
        try:
            _restore_first_sound(tf.train.Checkpoint(ood=ood), checkpoints_in(run / "checkpoints" / "ood"))
            outputs = both
        except UserError as error:
            say(f"warning: no image will be unknown: {error}")
    return keras.Model(images, outputs, name=network.name)
