"""Kills: trainings are killed again and again, and stopped by signals; resumed, they end as if nothing had happened."""

import os
import resource
import shutil
import signal
import time

import numpy as np

from classifier.base.console import INTERRUPTED, NO_DATA, TERMINATED, say
from classifier.runs.folder import find_run, read_metadata
from tests import faults
from tools.reliability import Result
from tools.reliability.damage import answers, same_answers
from tools.reliability.trainings import Trainings, call, difference, finish, sound, start

KILLS_OF_A_RUN, SIGNALS = 5, 25
SECONDS_TO_SAVE = 5  # of processor time, from a signal to the end


def check(folder, short, seed):
    """Kill and stop trainings of every kind. Yields Results.

    Of the kills, a third are aimed at changes of files, evenly over all changes that a training makes, half of them in the
    middle of what is written. Afterwards the run must be the same as the one that nothing disturbed, bit for bit:
    see difference().
    """
    rng, trainings = np.random.default_rng(seed), Trainings(folder)
    kills = {"cnn": 6, "head": 3, "fine-tuning": 3} if short else {"cnn": 80, "resnet": 40, "head": 40, "fine-tuning": 40}
    seconds_of = {}
    for kind, count in kills.items():
        seconds, changes = record(trainings, kind, folder)
        seconds_of[kind] = seconds
        aims = iter(np.linspace(1, changes, -(-count // 3)).astype(int))
        done = failed = 0
        while done < count:
            output, most = folder / f"{kind} killed", min(KILLS_OF_A_RUN, count - done)
            killed, problem = kill_again_and_again(trainings, kind, output, most, aims, seconds, rng)
            done += killed
            failed += report(problem, f"{kind}: killed {killed} times", output, failed)
        yield Result(f"SIGKILL while training ({kind}), resumed", done, failed)
    if not short:
        yield kill_exports(trainings, folder, rng)
        for signum, code in ((signal.SIGTERM, TERMINATED), (signal.SIGINT, INTERRUPTED)):
            yield send_signals(trainings, folder, signum, code, seconds_of["cnn"], rng)


def send_signals(trainings, folder, signum, code, seconds, rng):
    """Stop trainings, which take some seconds, by a signal before they are over. Returns a Result."""
    done, failed, slowest = 0, 0, 0.0
    while done < SIGNALS:
        output = folder / "stopped"
        problem, used = stop(trainings, "cnn", output, signum, code, rng.uniform(0, seconds))
        if used is not None:
            done, slowest = done + 1, max(slowest, used)
        failed += report(problem, signal.Signals(signum).name, output, failed)
    name = signal.Signals(signum).name
    return Result(f"{name} while training, resumed: at most {slowest:.1f} s to the end", done, failed)


def kill_exports(trainings, folder, rng):
    """Kill exports at changes of files: the run must predict as before, and be exported again. Returns a Result."""
    whole, output, failed, count = trainings.undisturbed("cnn"), folder / "exported", 0, 20
    expected = answers(whole.parent, trainings.images)
    export = ("export", "--model", output / "001")
    shutil.copytree(whole.parent, output)
    sound(finish(start(*export, env=faults.environment(output, log=folder / "log"))))
    changes = len(faults.read_log(folder / "log"))
    for at in np.linspace(1, changes, count).astype(int):
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(whole.parent, output)
        finish(start(*export, env=faults.environment(output, at=at, kill=True, torn=rng.integers(2))))
        problem = None
        for got, wanted in zip(answers(output, trainings.images), expected, strict=True):
            problem = problem or (got.stderr if got.returncode else same_answers(got, wanted))
        again = call(*export)
        problem = problem or (again.stderr if again.returncode else difference(output / "001", whole))
        failed += report(problem, f"export killed at change {at}", output, failed)
    return Result("SIGKILL while exporting: predicts as before, and exported again", count, failed)


def record(trainings, kind, folder):
    """Train what nothing disturbs: (seconds that it takes, how many changes of files it makes)."""
    started = time.monotonic()
    trainings.undisturbed(kind, log=folder / "log")
    seconds = time.monotonic() - started
    changes = len(faults.read_log(folder / "log"))
    (folder / "log").unlink()
    return seconds, changes


def kill_again_and_again(trainings, kind, output, most, aims, seconds, rng):
    """Train in `output`; kill the training up to `most` times, and resume it. Returns (kills, what is wrong or None).

    Every third time it is killed before the change of a file that comes next in `aims`, else after a random time.
    """
    kills, resuming = 0, False
    flags = [*trainings.flags(kind), "--output", output, "--save-minutes", 0 if rng.integers(2) else 5]
    while True:
        command = ["--resume", "--output", output] if resuming else flags
        at = next(aims, 0) if kills < most and kills % 3 == 0 else 0
        faulty = faults.environment(output, at=at, kill=True, torn=rng.integers(2)) if at else None
        process = start("train", *command, env=faulty)
        if kills < most and not at:
            wait(process, rng.uniform(0, seconds))
            process.kill()
        finished = finish(process)
        if finished.returncode == -signal.SIGKILL:
            kills, resuming = kills + 1, True
        elif finished.returncode == NO_DATA and resuming and not any(output.glob("*/checkpoints/*/ckpt-*.index")):
            resuming = False  # nothing was saved yet: begin again
        elif finished.returncode:
            return kills, f"exit code {finished.returncode}: {finished.stderr.strip()[-500:]}"
        elif kills >= most or not at:
            return kills, difference(find_run(output), trainings.undisturbed(kind))
        else:  # it was over before this change: another run
            shutil.rmtree(output)
            resuming = False


def stop(trainings, kind, output, signum, code, seconds):
    """Send a training a signal after some seconds, then resume it: (what is wrong or None, seconds to the end or None).

    The seconds are of processor time, or a busy machine would count.
    """
    process = start("train", *trainings.flags(kind), "--output", output)
    wait(process, seconds)
    if process.poll() is not None:  # it was faster this time
        sound(finish(process))
        return difference(find_run(output), trainings.undisturbed(kind)), None
    before = cpu_seconds(process)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    process.send_signal(signum)
    finished, ended = finish(process), resource.getrusage(resource.RUSAGE_CHILDREN)
    used = ended.ru_utime + ended.ru_stime - children.ru_utime - children.ru_stime - before
    # While Python starts or, after all was done and said, ends, a signal kills it: a shell gives the same code for that.
    usual = [0, code, -signum] if is_finished(output) else [code] if output.exists() else [code, -signum]
    if finished.returncode not in usual:
        return f"after {seconds:.1f} s: exit code {finished.returncode}: {finished.stderr.strip()[-500:]}", used
    if "Traceback" in finished.stderr:
        return f"after {seconds:.1f} s: {finished.stderr.strip()[-500:]}", used
    if used > SECONDS_TO_SAVE:
        return f"after {seconds:.1f} s: it went on for {used:.1f} s", used
    resumed = finish(start("train", "--resume", "--output", output))
    if resumed.returncode == NO_DATA and not any(output.glob("*/checkpoints/*/ckpt-*.index")):
        resumed = finish(start("train", *trainings.flags(kind), "--output", output))
    if resumed.returncode:
        return f"after {seconds:.1f} s, resumed: exit code {resumed.returncode}: {resumed.stderr.strip()[-500:]}", used
    return difference(find_run(output), trainings.undisturbed(kind)), used


def wait(process, seconds):
    """Wait for some seconds, or until the process ends."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


def is_finished(output):
    """Whether the training in `output` has come to its end."""
    return (output / "001" / "model.json").exists() and read_metadata(output / "001")["finished"]


def cpu_seconds(process):
    """The processor time that a running process has used."""
    with open(f"/proc/{process.pid}/stat") as file:
        user, system = file.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def report(problem, what, output, number):
    """Say what is wrong, if anything, and keep the folder; removes it otherwise. Returns how many failed, 1 or 0."""
    if problem is None:
        shutil.rmtree(output, ignore_errors=True)
        return 0
    say(f"{what}: {problem}")
    if output.exists():
        output.rename(output.with_name(f"{output.name} failed {number}"))
    return 1
