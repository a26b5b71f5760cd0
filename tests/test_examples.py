"""The examples: what they say is checked, and their commands run as processes of this machine."""

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest
from conftest import HANGING, PROJECT, run

EXAMPLES = PROJECT / "examples"
NO_SCHEMAS = "no schemas: pip install -c requirements-optional.txt kubernetes-validate"
AS_USER = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]
AS_USER += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]  # may read all: this Python may be root's


def documents(name):
    """The documents of a YAML file, {kind: it}."""
    yaml = pytest.importorskip("yaml", reason=NO_SCHEMAS)
    return {document["kind"]: document for document in yaml.safe_load_all((EXAMPLES / name).read_text())}


def command_of(name, replaced=()):
    """The command line of a Job's container with /data and /runs in the current folder; replaced: pairs of other texts."""
    (container,) = documents(name)["Job"]["spec"]["template"]["spec"]["containers"]
    command = [re.sub(r"(?<= )/(data|runs)\b", rf"{Path.cwd()}/\1", text) for text in container["command"]]
    for old, new in replaced:
        assert any(old in text for text in command)
        command = [text.replace(old, new) for text in command]
    return command


def ends_of(python, command, *environments):
    """Run a command line in each of these environments, at once: [(exit code, standard output, standard error)].

    `python` is the folder of the program of this name.
    """
    processes = []
    for environment in environments:
        environment = os.environ | environment | {"PATH": f"{python}:{os.environ['PATH']}"}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
        processes.append(subprocess.Popen([*map(str, command)], env=environment, **pipes))
    outputs = [process.communicate(timeout=HANGING) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def program(path, text):
    """Make a program; returns its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path.parent.absolute()


def is_sent(path):
    """Does Docker get this file of the project? The last pattern of Dockerfile.dockerignore that matches decides."""
    sent = True
    for line in (EXAMPLES / "Dockerfile.dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        for part in (path, *path.parents):
            same_depth = pattern.startswith("**/") or len(part.parts) == len(PurePosixPath(pattern).parts)
            if not line.startswith("#") and same_depth and fnmatch.fnmatch(part.name, pattern.removeprefix("**/")):
                sent = line.startswith("!")
    return sent


def copy(source, folder):
    """COPY: the files of the project that a pattern names, and those in a folder that it names, in their places."""
    found = [file for path in PROJECT.glob(source) for file in (path, *path.rglob("*")) if file.is_file()]
    copied = [path for path in (PurePosixPath(file.relative_to(PROJECT)) for file in found) if is_sent(path)]
    assert copied, f"COPY {source}: there is no such file, or it is not sent"
    for path in copied:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / path, folder / path)


def build(stages):
    """Do what Dockerfile says in a folder for each of its stages, but install no packages.

    Returns the last stage's instructions, {name: the last one's rest}.
    """
    lines = [line for line in (EXAMPLES / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    for name, rest in (line.split(maxsplit=1) for line in lines):
        if name == "FROM":
            assert re.fullmatch(r"python:3\.1[0-3]-slim( AS packages)?", rest)  # as requirements.txt says
            root = stages / str(len(list(stages.iterdir())))
            instructions = {}
        elif name == "WORKDIR":
            folder = root / rest.lstrip("/")
            folder.mkdir(parents=True)
        elif name == "COPY" and not rest.startswith("--from=packages "):
            *sources, target = rest.split()
            assert target in (".", "./", sources[0])
            for source in sources:
                copy(source.rstrip("/"), folder)
        elif name == "RUN" and "pip install" not in rest and ("install -d -o" not in rest or os.geteuid() == 0):
            subprocess.run(["sh", "-ec", rest.replace(" /", f" {root}/")], cwd=folder, check=True)
        instructions[name] = rest
    return instructions


def test_the_image_has_what_the_scripts_need_and_runs_them_as_another_user(trained, photo):
    stages = Path("stages").absolute()
    stages.mkdir()
    last = build(stages)
    needed, listed = (
        {*re.findall("^[a-z0-9-]+", path.read_text(), re.MULTILINE)}
        for path in (stages / "0/packages/needed.txt", PROJECT / "requirements.txt")
    )
    assert listed - needed <= {"pytest", "pytest-xdist", "ruff", "mypy"}
    assert needed <= listed

    code, runs = stages / "1/classifier", stages / "1/runs"
    assert {path.name for path in code.iterdir()} == {path.name for path in PROJECT.glob("*.py")} | {"classifier"}
    runs.mkdir(exist_ok=True)
    assert last["USER"].split(":")[0] == "1000"
    user = AS_USER if os.geteuid() == 0 and shutil.which("setpriv") and not subprocess.call([*AS_USER, "true"]) else []
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": re.search("HOME=(.*)", last["ENV"])[1]}

    def container(*arguments):
        command = [*user, *json.loads(last["ENTRYPOINT"]), *map(str, arguments)]
        return subprocess.run(command, cwd=code, env=environment, capture_output=True, encoding="utf-8", check=True).stdout

    assert "--data-dir" in container(*json.loads(last["CMD"]))
    printed = container("predict.py", photo, "--model", trained, "--format", "csv", "--copy-to", runs / "sorted")
    assert printed == run("predict", photo, "--model", trained, "--format", "csv").stdout
    (sorted_photo,) = runs.rglob(photo.name)
    if user:
        assert sorted_photo.stat().st_uid == 1000
        assert not [*code.rglob("__pycache__")], "the code can be written"


def test_kubernetes_knows_all_fields():
    schemas = pytest.importorskip("kubernetes_validate", reason=NO_SCHEMAS)
    for document in [*documents("kubernetes-predict.yaml").values(), *documents("kubernetes-train.yaml").values()]:
        schemas.validate(document, "1.33", strict=True)


def test_the_parts_of_an_example_fit_together():
    service, job = documents("kubernetes-train.yaml").values()
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"] == "train"
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    (workers,) = pod["containers"][0]["env"]
    assert int(workers["value"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    shares = documents("kubernetes-predict.yaml")["Job"]["spec"]["completions"]
    assert f"/{shares} >" in command_of("kubernetes-predict.yaml")[-1]


def test_a_worker_knows_the_others_and_resumes_a_run_that_there_is():
    python = program(Path("bin/python"), '#!/bin/sh\necho "$TF_CONFIG"\necho "$@"\nexit 7\n')

    def worker():
        command = [*command_of("kubernetes-train.yaml"), "--network", "resnet"]
        ((code, stdout, stderr),) = ends_of(python, command, {"WORKERS": "3", "JOB_COMPLETION_INDEX": "2"})
        assert (code, stderr) == (7, "")
        config, arguments = stdout.splitlines()
        workers = [f"train-{i}.train:2222" for i in range(3)]
        assert json.loads(config) == {"cluster": {"worker": workers}, "task": {"type": "worker", "index": 2}}
        return arguments

    begin = f"train.py --data-dir {Path.cwd()}/data --output {Path.cwd()}/runs/photos --network resnet"
    assert worker() == begin
    Path("runs/photos/001").mkdir(parents=True)  # made, and then all were killed
    assert worker() == begin
    Path("runs/photos/001/model.json").touch()
    assert worker() == f"train.py --resume {Path.cwd()}/runs/photos"


def test_shares_are_the_whole(images, trained):
    Path("runs").mkdir()
    Path("runs/photos").symlink_to(trained.parent)
    Path("predict.py").symlink_to(PROJECT / "predict.py")  # the current folder looks like the project's
    images.rename("data")
    whole = run("predict", Path.cwd() / "data", "--model", "runs/photos", "--format", "csv").stdout
    here = Path(sys.executable).parent
    pod = command_of("kubernetes-predict.yaml", [("))/16", "))/2")])
    slurm = ["bash", EXAMPLES / "slurm-predict.sh", Path.cwd() / "data", "runs/photos"]
    pods = [{"JOB_COMPLETION_INDEX": str(i)} for i in range(2)]
    tasks = [{"SLURM_ARRAY_TASK_ID": str(i), "SLURM_ARRAY_TASK_COUNT": "2"} for i in (1, 2)]
    assert ends_of(here, pod, *pods) + ends_of(here, slurm, *tasks) == 4 * [(0, "", "")]
    for folder in (".", "runs"):
        parts = [path.read_text() for path in sorted(Path(folder).glob("part-0[12].csv"))]
        assert all(parts)
        assert "".join(parts) == whole


@pytest.mark.parametrize(("code", "starts"), [(0, 1), (1, 3), (2, 1), (3, 1), (137, 3), (143, 1)])
def test_slurm_starts_again_only_what_may_do_better_and_resumes_a_run_that_there_is(code, starts):
    script = f'#!/bin/sh\necho "$@"\nmkdir -p runs/001\ntouch runs/001/model.json\nexit {code}\n'
    command = ["bash", EXAMPLES / "slurm-train.sh", "data", "runs", "--network", "cnn"]
    ((ended, stdout, _),) = ends_of(program(Path(".venv/bin/srun"), script), command, {})
    first, *others = stdout.splitlines()
    assert (ended, len(others)) == (code, starts - 1)
    assert first.endswith("train.py --data-dir data --output runs --network cnn")
    assert all(line.endswith("train.py --resume runs") for line in others)
