"""Checkpoints: how the weights of a training are saved, and the newest sound ones restored."""

import re
import shutil

import keras
import tensorflow as tf

from console import NO_DATA, UserError, describe, put_in_place, say
from model import create_network, with_features
from novelty import Novelty
from runs import checkpoints_in


class Saver:
    """Saves checkpoints of a training into its run folder, and finds the newest sound one again.

    `name` is that of the folder. `tracked` are the parts of the training to resume, by name; of these, `network` is what
    the best one holds.
    """

    def __init__(self, run, name, **tracked):
        self._all = tf.train.Checkpoint(**tracked)
        self._weights = tf.train.Checkpoint(network=tracked["network"])
        self._newest = run / "checkpoints" / name
        self._best = run / "checkpoints" / "best"

    def save(self, number):
        """Save everything as the newest checkpoint, `number`; the one before it stays. Raises UserError if it can't."""
        _write(self._all, self._newest, number, keep=2)

    def save_best(self, number):
        """Save the weights as the best so far."""
        _write(self._weights, self._best, number, keep=1)

    def restore(self):
        """Restore the newest sound checkpoint; False if there is none yet."""
        prefixes = checkpoints_in(self._newest)
        return bool(prefixes) and bool(_restore_first_sound(self._all, prefixes))


def _write(checkpoint, folder, number, keep):
    """Write folder/ckpt-<number> and then delete all but the newest `keep`.

    TensorFlow's CheckpointManager would do, but for the state file it keeps: damaged, that is one more way to lose a run.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"partial-{number}"  # TensorFlow writes the index in place: killed then, it would be cut off
        checkpoint.write(str(partial))
        for path in sorted(folder.glob(f"{partial.name}.*")):  # the data, and last the index that makes it count
            put_in_place(path, folder / path.name.replace(partial.name, f"ckpt-{number}"))
        for old in checkpoints_in(folder)[keep:]:
            for path in folder.glob(f"{old.name}.*"):
                path.unlink()
    except (tf.errors.OpError, OSError) as error:
        for leftover in folder.glob("partial-*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        reason = describe(error) if isinstance(error, OSError) else error.message.split("\n")[0]
        raise UserError(f"cannot save a checkpoint in {folder} (the last good one is kept): {reason}") from None


def _restore_first_sound(checkpoint, prefixes):
    """Restore the first of `prefixes` that can be read and fits; says which ones could not. Returns it.

    A checkpoint is a TensorFlow tensor bundle: reading it checks every tensor's sum and never runs code.
    """
    for prefix in prefixes:
        try:
            _restore(checkpoint, str(prefix))
            return prefix
        except (tf.errors.OpError, OSError, IndexError, ValueError, AssertionError) as error:
            problem = "does not fit the network" if isinstance(error, ValueError | AssertionError) else "is damaged"
            say(f"warning: checkpoint {prefix} {problem}")
    raise UserError(f"no sound checkpoint among {', '.join(map(str, prefixes))}", NO_DATA)


def _restore(checkpoint, prefix):
    """Restore one checkpoint; raises ValueError or AssertionError where it does not fit."""
    try:
        checkpoint.read(prefix).expect_partial().assert_existing_objects_matched()
    except (ValueError, AssertionError):
        parts = {name: part for name, part in vars(checkpoint).items() if not name.startswith("_")}
        if "network" not in parts or parts["network"].name != "cnn":
            raise
        _restore_older_cnn(prefix, **parts)


def _restore_older_cnn(prefix, network, trained=None, **others):
    """Restore a cnn from before pooling came last: its layers had other numbers, but its weights are in the same order.

    Those of the `trained` network are restored with the optimizer, which knows them by their order, too.
    """
    reader = tf.train.load_checkpoint(prefix)
    found = [re.match(r"network/_operations/(\d+)/(_kernel|bias)/", key) for key in reader.get_variable_to_shape_map()]
    found = sorted(filter(None, found), key=lambda match: (int(match[1]), match[2]))
    if found or not others:  # else the optimizer has them, where there is no average
        network.set_weights([reader.get_tensor(match.string) for match in found])
    if others:
        tf.train.Checkpoint(**others).read(prefix).expect_partial().assert_existing_objects_matched()


def load_best(run, network):
    """Give a network the best weights of a run, or its newest where those cannot be read.

    Raises UserError with exit code 3 for a folder that has no sound checkpoint.
    """
    folders = [run / "checkpoints" / name for name in ("best", "fine-tuning", "newest")]
    prefixes = [prefix for folder in folders for prefix in checkpoints_in(folder)]
    if not prefixes:
        raise UserError(f"{run} has no checkpoint yet", NO_DATA)
    used = _restore_first_sound(tf.train.Checkpoint(network=network), prefixes)
    if used != prefixes[0]:
        say(f"using checkpoint {used} instead")


def save_novelty(run, novelty, number):
    """Save the Novelty that belongs to a run's best network, of epoch `number`."""
    _write(tf.train.Checkpoint(novelty=novelty), run / "checkpoints" / "novelty", number, keep=1)


def load_network(run, card, novelty=False):
    """Rebuild the network of a run with its best weights; raises what load_best() does.

    (n, image_size, image_size, 3) uint8 RGB → (n, classes) logits, already divided by the temperature of the card. With
    `novelty`, where the run has it, → (logits, (n,) novelty).
    """
    size, num_classes = card["image_size"], len(card["classes"])
    network = create_network(card["network"], size, num_classes)
    load_best(run, network)
    pictures = keras.Input((size, size, 3), dtype="uint8", name="pictures")
    kind = card.get("novelty", {}).get("features", "last")
    features, logits = with_features(network, kind)(pictures, training=False)
    outputs = logits / card.get("temperature", 1.0)
    if novelty and "novelty" in card:
        layer = Novelty(num_classes, name="novelty")
        with_novelty = (outputs, layer(features))
        try:
            _restore_first_sound(tf.train.Checkpoint(novelty=layer), checkpoints_in(run / "checkpoints" / "novelty"))
            outputs = with_novelty
        except UserError as error:
            say(f"warning: no picture will be called unknown: {error}")
    return keras.Model(pictures, outputs, name=network.name)
