"""The examples: what they say is checked, and their commands run as processes of this machine."""

import fnmatch
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest
from conftest import HANGING, PROJECT, QUICK, run
from run_folders import history_of, metadata_of

EXAMPLES = PROJECT / "examples"
AS_USER = [
    "setpriv",
    "--reuid=1000",
    "--regid=1000",
    "--clear-groups",  # and it may read all: this Python may be root's
    "--inh-caps=+dac_read_search",
    "--ambient-caps=+dac_read_search",
]


def documents(name):
    """The documents of a YAML file, {kind: it}."""
    yaml = pytest.importorskip("yaml", reason="no yaml: pip install -c requirements-optional.txt kubernetes-validate")
    return {document["kind"]: document for document in yaml.safe_load_all((EXAMPLES / name).read_text())}


def job_of(kind, name):
    """(job, pod, container): a Job of one of the YAML files, its pods and their only container."""
    job = documents(name)[kind]
    if kind == "TrainingRuntime":
        (replicated,) = job["spec"]["template"]["spec"]["replicatedJobs"]
        job = replicated["template"]
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return job, pod, container


def local(command, replaced=()):
    """A container's command line with /data and /runs in the current folder; replaced: pairs of other texts."""
    command = [re.sub(r"(?<= )/(data|runs)\b", rf"{Path.cwd()}/\1", text) for text in command]
    for old, new in replaced:
        assert any(old in text for text in command)
        command = [text.replace(old, new) for text in command]
    return command


def start_with(python, command, **variables):
    """Start a command line; `python` is the folder of the program of this name."""
    variables = {name: str(value) for name, value in variables.items()} | {"PATH": f"{python}:{os.environ['PATH']}"}
    return subprocess.Popen(
        [*map(str, command)],
        env=os.environ | variables,
        encoding="utf-8",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ends_of(processes):
    """What processes print until they end, [(exit code, standard output, standard error)]."""
    processes = list(processes)
    outputs = [process.communicate(timeout=HANGING) for process in processes]
    for _, stderr in outputs:
        assert "Traceback" not in stderr, stderr
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def program(path, text):
    """Make a program; returns its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path.parent.absolute()


@pytest.fixture
def project(images):
    """The current folder looks like the project's to a script, and has images in data."""
    images.rename("data")
    for script in ("train.py", "predict.py"):
        Path(script).symlink_to(PROJECT / script)
    return Path.cwd()


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
        (folder / path).parent.mkdir(exist_ok=True)
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
    needed = {
        re.match("[a-z0-9-]+", line)[0]
        for line in (stages / "0/packages/needed.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    listed = {*re.findall("^[a-z0-9-]+", (PROJECT / "requirements.txt").read_text(), re.MULTILINE)}
    assert listed - needed == {"pytest", "pytest-xdist", "ruff", "opencv-python"}
    assert needed - listed == {"opencv-python-headless"}

    code, runs = stages / "1/classifier", stages / "1/runs"
    assert {path.name for path in code.iterdir()} == {path.name for path in PROJECT.glob("*.py")} | {"classifier"}
    runs.mkdir(exist_ok=True)
    assert last["USER"].split(":")[0] == "1000"
    can_change = os.geteuid() == 0 and shutil.which("setpriv") and subprocess.run([*AS_USER, "true"]).returncode == 0
    user = AS_USER if can_change else []
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


@pytest.mark.parametrize("name", [path.name for path in EXAMPLES.glob("*.sh")])
def test_shell_scripts(name):
    subprocess.run(["bash", "-n", EXAMPLES / name], check=True)


def test_kubernetes_knows_all_fields():
    schemas = pytest.importorskip(
        "kubernetes_validate", reason="no schemas: pip install -c requirements-optional.txt kubernetes-validate"
    )
    found = [*documents("kubernetes-predict.yaml").values(), *documents("kubernetes-train.yaml").values()]
    job, _, _ = job_of("TrainingRuntime", "kubeflow-trainjob.yaml")
    found.append({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "node"}, "spec": job["spec"]})
    for document in found:
        schemas.validate(document, "1.33", strict=True)
    document["spec"]["backOffLimit"] = 0
    with pytest.raises(schemas.ValidationError):
        schemas.validate(document, "1.33", strict=True)


def test_kubeflow_knows_all_fields():
    models = pytest.importorskip(
        "kubeflow_trainer_api.models", reason="no models: pip install -c requirements-optional.txt kubeflow-trainer-api"
    )
    for kind, document in documents("kubeflow-trainjob.yaml").items():
        model = getattr(models, f"TrainerV1alpha1{kind}")
        assert model.from_dict(document).to_dict() == document, "it drops fields that it does not know"


def test_the_parts_of_an_example_fit_together():
    service, job = documents("kubernetes-train.yaml").values()
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["subdomain"] == service["metadata"]["name"] == "train"
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    (workers,) = container["env"]
    assert int(workers["value"]) == job["spec"]["completions"] == job["spec"]["parallelism"]

    job, _, container = job_of("Job", "kubernetes-predict.yaml")
    assert f"/{job['spec']['completions']} >" in container["command"][-1]

    runtime, train_job = documents("kubeflow-trainjob.yaml").values()
    assert train_job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    variables = {variable["name"]: variable["value"] for variable in train_job["spec"]["trainer"]["env"]}
    assert variables == {"WORKERS": str(train_job["spec"]["trainer"]["numNodes"]), "TRAINJOB": train_job["metadata"]["name"]}


@pytest.mark.parametrize(
    ("kind", "name", "host", "variables"),
    [
        ("Job", "kubernetes-train.yaml", "train-{}.train", {}),
        ("TrainingRuntime", "kubeflow-trainjob.yaml", "photos-node-0-{}.photos", {"TRAINJOB": "photos"}),
    ],
)
def test_a_worker_knows_the_others_and_resumes_a_run_that_there_is(kind, name, host, variables):
    _, _, container = job_of(kind, name)
    python = program(Path("bin/python"), '#!/bin/sh\necho "$TF_CONFIG"\necho "$@"\nexit 7\n')

    def worker():
        command = [*local(container["command"]), "--network", "resnet"]
        ((code, stdout, stderr),) = ends_of([start_with(python, command, WORKERS=3, JOB_COMPLETION_INDEX=2, **variables)])
        assert (code, stderr) == (7, "")
        config, arguments = stdout.splitlines()
        workers = [f"{host.format(i)}:2222" for i in range(3)]
        assert json.loads(config) == {"cluster": {"worker": workers}, "task": {"type": "worker", "index": 2}}
        return arguments

    here = Path.cwd()
    begin = f"train.py --data-dir {here}/data --output {here}/runs/photos --network resnet"
    assert worker() == begin
    Path("runs/photos/001").mkdir(parents=True)  # made, and then all were killed
    assert worker() == begin
    Path("runs/photos/001/model.json").touch()
    assert worker() == f"train.py --resume {here}/runs/photos"


def two_ports():
    """A number n: the ports 10 n and 10 n + 1 are free."""
    while True:
        with socket.create_server(("localhost", 0)) as free:
            n = free.getsockname()[1] // 10
        try:
            for port in (10 * n, 10 * n + 1):
                socket.create_server(("localhost", port)).close()
        except (OSError, OverflowError):
            continue
        return n


SRUN = """
import os, subprocess, sys
task = subprocess.Popen(sys.argv[2:], env=os.environ | {
    "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": "1",
    "SLURMD_NODENAME": "localhost", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"})
sys.exit(abs(task.wait()))
"""
MACHINE = """
import os, runpy, signal, sys
sys.path.insert(0, sys.argv[1])
from classifier.cluster import workers
from classifier.training.state import Training
workers.SLURM_PORT = int(sys.argv[2])
batches_from = Training.batches_from
def batches_until_death(training, first):
    if training.epoch == 1 and os.environ.get("JOB_COMPLETION_INDEX") == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return batches_from(training, first)
Training.batches_from = batches_until_death
sys.argv[:] = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.long
def test_a_worker_dies_in_kubernetes_and_slurm_resumes_the_run(project):
    """Of two workers, the second dies in the second epoch; Slurm has one machine. Not real: names of pods, srun, ports."""
    Path("srun.py").write_text(SRUN)
    Path("machine.py").write_text(MACHINE)
    begin, ports = f"#!/bin/sh\nexec {sys.executable}", two_ports()
    program(Path(".venv/bin/srun"), f'{begin} srun.py "$@"\n')
    here = program(Path(".venv/bin/python"), f'{begin} machine.py {PROJECT} {ports}0 "$@"\n')
    _, _, container = job_of("Job", "kubernetes-train.yaml")
    command = [*local(container["command"], [("train-%g.train:2222", f"localhost:{ports}%g")]), *QUICK]
    (code, _, stderr), (other_code, *_) = ends_of(
        start_with(here, command, WORKERS=2, JOB_COMPLETION_INDEX=i) for i in range(2)
    )
    assert (code, other_code) == (1, -signal.SIGKILL), stderr
    assert "workers    2, each takes its share of every batch" in stderr
    assert "stopped or does not answer: start all of them again, with --resume" in stderr

    slurm = ["bash", EXAMPLES / "slurm-train.sh", "data", "runs/photos", *QUICK]
    ((code, stdout, stderr),) = ends_of([start_with(here, slurm)])
    assert code == 0, stderr
    assert "resumed after epoch 1" in stderr
    assert "saved in runs/photos/001" in stdout
    assert len(history_of("runs/photos/001")) == 2
    assert metadata_of("runs/photos/001")["finished"]


def test_shares_are_the_whole(project, trained):
    Path("runs").mkdir()
    Path("runs/photos").symlink_to(trained.parent)
    whole = run("predict", project / "data", "--model", "runs/photos", "--format", "csv").stdout
    _, _, container = job_of("Job", "kubernetes-predict.yaml")
    pod = local(container["command"], [("))/16", "))/2")])
    here = Path(sys.executable).parent
    slurm = ["bash", EXAMPLES / "slurm-predict.sh", project / "data", "runs/photos"]
    processes = [start_with(here, pod, JOB_COMPLETION_INDEX=i) for i in range(2)]
    processes += [start_with(here, slurm, SLURM_ARRAY_TASK_ID=i, SLURM_ARRAY_TASK_COUNT=2) for i in (1, 2)]
    assert ends_of(processes) == 4 * [(0, "", "")]
    for folder in (".", "runs"):
        parts = [path.read_text() for path in sorted(Path(folder).glob("part-0[12].csv"))]
        assert all(parts)
        assert "".join(parts) == whole


@pytest.mark.parametrize(("code", "starts"), [(0, 1), (1, 3), (2, 1), (3, 1), (137, 3), (143, 1)])
def test_slurm_starts_again_only_what_may_do_better(code, starts):
    bin_folder = program(Path(".venv/bin/srun"), f"#!/bin/sh\necho start\nexit {code}\n")
    ((ended, stdout, _),) = ends_of([start_with(bin_folder, ["bash", EXAMPLES / "slurm-train.sh", "data", "runs"])])
    assert (ended, stdout) == (code, starts * "start\n")
