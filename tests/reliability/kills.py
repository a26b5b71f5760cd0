"""Kills: trainings are killed again and again, and stopped by signals; resumed, they end as if nothing had happened."""

import os
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from classifier.base.console import INTERRUPTED, TERMINATED
from tests.comparing import difference
from tests.reliability import Result, count, faults
from tests.reliability.damage import answers, problem_with_answers
from tests.reliability.trainings import Trainings, call, changes_of, end_of, finish, is_saved, problem_when_resumed, start

KILLS_OF_A_RUN, SIGNALS, KILLS_OF_EXPORTS = 5, 25, 20
SECONDS_TO_SAVE = 5  # of processor time, from a signal to the end


def check(folder: Path, short: bool, seed: int) -> Iterator[Result]:
    """Kill and stop trainings of every kind.

    Of the kills, a third are aimed at changes of files, evenly over all changes that a training makes, half of them in the
    middle of what is written. Afterwards the run must be the same as the one that nothing disturbed, bit for bit:
    see difference().
    """
    rng, trainings, seconds = np.random.default_rng(seed), Trainings(folder), {}
    for kind, runs in ({"cnn": 1} if short else {"cnn": 16, "resnet": 8, "head": 8, "fine-tuning": 8}).items():
        started, kills = time.monotonic(), 2 if short else KILLS_OF_A_RUN
        changes = len(changes_of(("train", *trainings.flags(kind), "--output", folder / "watched"), folder / "watched"))
        seconds[kind] = time.monotonic() - started
        shutil.rmtree(folder / "watched")
        aims = iter(np.linspace(1, changes, runs * -(-kills // 3)).astype(int))
        output = folder / f"{kind} killed"
        problems = (kill_run(trainings, kind, output, kills, aims, seconds[kind], rng) for _ in range(runs))
        yield count(f"trainings ({kind}), {kills} SIGKILLs each, resumed", problems, output)
    if not short:
        exported = kill_exports(trainings, folder / "exported", rng)
        yield count("SIGKILL while exporting: predicts as before, and exported again", exported, folder / "exported")
        for signum, code in ((signal.SIGTERM, TERMINATED), (signal.SIGINT, INTERRUPTED)):
            output, moments = folder / "stopped", rng.uniform(0, seconds["cnn"], SIGNALS)
            stopped = (stop(trainings, output, signum, code, moment) for moment in moments)
            what = f"{signal.Signals(signum).name} while training: at most {SECONDS_TO_SAVE} s to the end; resumed"
            yield count(what, stopped, output)


def kill_run(trainings, kind: str, output: Path, kills: int, aims, seconds: float, rng: np.random.Generator) -> str | None:
    """Train in `output`, kill the training some times and resume it, at last to the end. Returns what is wrong or None.

    Every third time it is killed before the change of a file that comes next in `aims`, else after a random time.
    """
    flags = [*trainings.flags(kind), "--save-minutes", 0 if rng.integers(2) else 5]
    for kill in range(kills):
        at = next(aims, 0) if kill % 3 == 0 else 0
        faulty = faults.environment(output, at=at, kill=True, torn=rng.integers(2)) if at else None
        command = ["--resume"] if is_saved(output) else flags
        process = start("train", *command, "--output", output, env=faulty)
        if not at:
            wait(process, rng.uniform(0, seconds))
            process.kill()
        finished = finish(process)
        if finished.returncode not in (0, -signal.SIGKILL):  # 0: it was over before
            return end_of(finished)
    return problem_when_resumed(flags, output, trainings.undisturbed(kind))


def kill_exports(trainings, output: Path, rng: np.random.Generator) -> Iterator[str | None]:
    """Kill exports at changes of files: the run must predict as before, and be exported again."""
    whole, export = trainings.undisturbed("cnn"), ("export", "--model", output / "001")
    expected = answers(whole.parent, trainings.images)
    shutil.copytree(whole.parent, output)
    changes = len(changes_of(export, output))
    for at in np.linspace(1, changes, KILLS_OF_EXPORTS).astype(int):
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(whole.parent, output)
        finish(start(*export, env=faults.environment(output, at=at, kill=True, torn=rng.integers(2))))
        problem, again = problem_with_answers(output, trainings.images, expected), call(*export)
        yield problem or (end_of(again) if again.returncode else difference(output / "001", whole))


def stop(trainings, output: Path, signum: int, code: int, seconds: float) -> str | None:
    """Send a training a signal after some seconds, then resume it. Returns what is wrong or None."""
    process = start("train", *trainings.flags("cnn"), "--output", output)
    wait(process, seconds)
    before = cpu_seconds(process)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    process.send_signal(signum)
    finished, ended = finish(process), resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of processor time, or a busy machine would count.
    used = ended.ru_utime + ended.ru_stime - children.ru_utime - children.ru_stime - before
    # While Python starts or, after all was done and said, ends, a signal kills it: a shell gives the same code for that.
    if finished.returncode not in (0, code, -signum) or "Traceback" in finished.stderr:
        return f"after {seconds:.1f} s: {end_of(finished)}"
    if used > SECONDS_TO_SAVE and finished.returncode:
        return f"after {seconds:.1f} s: it went on for {used:.1f} s"
    problem = problem_when_resumed(trainings.flags("cnn"), output, trainings.undisturbed("cnn"))
    return problem and f"after {seconds:.1f} s: {problem}"


def wait(process, seconds: float) -> None:
    """Wait for some seconds, or until the process ends."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


def cpu_seconds(process) -> float:
    """The processor time that a running process has used; 0 where it has ended."""
    try:
        user, system = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    except OSError:
        return 0.0
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
