"""Files of cluster/: the job fits the operator's schema, images are pinned, and Slurm's script runs with stand-ins."""

import asyncio
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from harness.cli.verbs import app
from harness.errors import UserError
from harness.registry import PROJECT_ROOT

SCHEMAS = Path(os.environ.get("MANYMINDS_SCHEMAS", PROJECT_ROOT.parent / "shared" / "schemas"))
PROJECT = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())
DOCKERFILE = (PROJECT_ROOT / "cluster" / "Dockerfile").read_text()
README = (PROJECT_ROOT / "cluster" / "README.md").read_text()
VERBS = ("run", "encode", "generate")


def manifests(name):
    return list(yaml.safe_load_all((PROJECT_ROOT / "cluster" / name).read_text()))


def pods():
    """Return the pod specifications by name."""
    _claim, files = manifests("volume.yaml")
    (job,) = manifests("rayjob.yaml")
    cluster = job["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]} | {"head": cluster["headGroupSpec"]}
    return {name: group["template"]["spec"] for name, group in groups.items()} | {"files": files["spec"]}


def parse(command):
    """Parse the words after `manyminds` by the verbs; a wrong verb, option or value raises."""
    verb, *arguments = shlex.split(command)
    verbs = typer.main.get_command(app).commands
    assert verb in verbs, f"there is no verb {verb}"
    return verbs[verb].make_context(verb, arguments).params


# Kubernetes


def closed(schema):
    """Return a validator that refuses unknown fields, which an operator would silently drop."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(part) for key, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        schema.setdefault("additionalProperties", False)
    return schema


@pytest.fixture(scope="module")
def validator():
    jsonschema = pytest.importorskip("jsonschema")
    file = SCHEMAS / "ray.io_rayjobs.yaml"
    if not file.exists():
        pytest.skip(f"no {file}: set MANYMINDS_SCHEMAS to a folder with KubeRay's definitions")
    definition = yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (v for v in definition["spec"]["versions"] if v["name"] == "v1")
    return jsonschema.Draft7Validator(closed(version["schema"]["openAPIV3Schema"]))


def test_the_job_is_what_the_operator_expects(validator):
    (job,) = manifests("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert [error.message for error in validator.iter_errors(job)] == []


@pytest.mark.parametrize(
    "path, value",
    [
        (["backOffLimit"], 3),
        (["backoffLimit"], "3"),
        (["rayClusterSpec", "authOptions", "mode"], "tokens"),
        (["rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "imagePullPolitics"], "Always"),
        (["rayClusterSpec", "workerGroupSpecs", 1, "template", "spec", "containers", 0, "env", 0, "name"], None),
    ],
)
def test_the_schema_notices_a_slip(validator, path, value):
    (job,) = manifests("rayjob.yaml")
    place = job["spec"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert list(validator.iter_errors(job))


def test_the_job_asks_for_a_token_and_ends_its_cluster():
    (job,) = manifests("rayjob.yaml")
    spec = job["spec"]
    assert spec["rayClusterSpec"]["authOptions"]["mode"] == "token"
    assert f"generic {spec['rayClusterSpec']['authOptions']['secretName']} --from-file=auth_token=" in README
    assert spec["shutdownAfterJobFinishes"] and spec["backoffLimit"] > 0
    assert spec["jobId"] == job["metadata"]["name"]
    (ray,) = (line for line in PROJECT["project"]["dependencies"] if line.startswith("ray["))
    assert ray.endswith(f"~={spec['rayClusterSpec']['rayVersion']}")


def test_the_jobs_command_is_one_that_can_be_typed():
    (job,) = manifests("rayjob.yaml")
    python, m, module, *rest = shlex.split(job["spec"]["entrypoint"])
    assert (python, m) == ("python", "-m") and (PROJECT_ROOT / f"{module.replace('.', '/')}.py").is_file()
    said = parse(shlex.join([module.removeprefix("jobs."), *rest]))
    assert (PROJECT_ROOT / said["suite"]).is_file()
    assert not set(";&|<>$`") & set(job["spec"]["entrypoint"])  # the operator writes it into a shell's line
    folders = {mount["mountPath"] for pod in pods().values() for c in pod["containers"] for mount in c["volumeMounts"]}
    assert folders == {"/shared"} and all(str(said[name]).startswith("/shared/") for name in ("store", "data"))


def test_all_pods_share_one_folder_are_not_root_and_hold_no_secret():
    claim, _ = manifests("volume.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for name, pod in pods().items():
        assert pod["securityContext"]["runAsNonRoot"] and pod["automountServiceAccountToken"] is False, name
        (volume,) = pod["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        (container,) = pod["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (name == "gpu")
        for variable in container.get("env", []):
            if re.search("TOKEN|SECRET|KEY|PASS", variable["name"]):
                assert "value" not in variable and "secretKeyRef" in variable["valueFrom"]


def test_no_file_holds_a_secret_or_names_a_package_index():
    for file in (PROJECT_ROOT / "cluster").iterdir():
        text = file.read_text()
        assert not re.search(r"hf_[A-Za-z0-9]{16,}|\b[0-9a-f]{32,}\b", text), file
        assert not re.search(r"index-url\s|pypi|https?://[^\s)]*(simple|whl)", text, re.I), file


# Images


def stages():
    """Return the base and the instructions of each image, with continued lines joined."""
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M))
    return {
        name: (base, body.strip().splitlines())
        for base, name, body in re.findall(r"^FROM (\S+) AS (\S+)\n(.*?)(?=^FROM|\Z)", text, re.M | re.S)
    }


def test_images_are_pinned_hold_this_project_and_do_not_run_as_root():
    base, cpu, gpu = (stages()[name] for name in ("base", "cpu", "gpu"))
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base[0])
    packages = {pattern.removesuffix("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    empty = [line for line in base[1] if "__init__.py" in line]
    assert set(empty) == {f"COPY {package}/__init__.py {package}/" for package in packages}
    for parent, lines in (cpu, gpu):
        assert parent == "base" and lines[-1] == "USER 1000"
        copied = {line.split()[1] for line in lines if line.startswith("COPY")}
        assert copied == packages
    assert "RUN pip install --no-cache-dir --editable ." in cpu[1]
    assert "RUN pip install --no-cache-dir --editable '.[vllm]'" in gpu[1]
    assert "RAY_AUTH_MODE=token" in DOCKERFILE


def test_manifests_name_the_images_that_the_readme_builds():
    version = PROJECT["project"]["version"]
    assert f"manyminds:{version}-$kind" in README and "for kind in cpu gpu" in README
    for name, pod in pods().items():
        kind = "gpu" if name == "gpu" else "cpu"
        assert pod["containers"][0]["image"] == f"registry.example/manyminds:{version}-{kind}"


# Slurm


FAKES = {
    # Processes that Slurm would start on other nodes are started here.
    "srun": """echo "srun $*" >>log
      while [[ $1 == --* ]]; do [[ $1 == --ntasks=* ]] && export TASKS=${1#*=}; shift; done
      exec "$@\"""",
    "scontrol": 'echo "scontrol $*" >>log; if [ "$1" = show ]; then printf "one\\ntwo\\nthree\\n"; fi',
    # A file stands for a node that has joined, which happens a moment after its start.
    "ray": """[ -e broken ] && exit 1
      echo "ray $*" >>log
      sleep .1
      for task in $(seq "$TASKS"); do touch "node.$task.$$"; done
      exec sleep 60""",
    "python": """case "$2" in
      *import*ray*) [ "$(ls node.* 2>/dev/null | wc -l)" -ge "$3" ] ;;
      *) exec PYTHON "$@" ;;
    esac""",
    "manyminds": """stat -c '%a' "$RAY_AUTH_TOKEN_PATH" "${RAY_AUTH_TOKEN_PATH%/*}" >seen
      echo "$RAY_AUTH_MODE $RAY_ADDRESS $(wc -c <"$RAY_AUTH_TOKEN_PATH") $SRUN_CPUS_PER_TASK $(ls node.* | wc -l)" >>seen
      echo "$@" >>seen
      [ -e slow ] && exec sleep 60
      exit 3""",
}


@pytest.fixture
def slurm(tmp_path):
    """Start the script in its own folder, as the first of three nodes would."""
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, does in FAKES.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{does.replace('PYTHON', shlex.quote(sys.executable))}\n")
        (programs / name).chmod(0o755)
    said = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "n[1-3]"}
    said |= {"SLURM_JOB_NUM_NODES": "3", "SLURM_CPUS_PER_TASK": "8", "HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()

    def start(*arguments):
        command = ["bash", str(PROJECT_ROOT / "cluster" / "slurm.sh"), *arguments]
        return subprocess.Popen(command, env=os.environ | said, stderr=subprocess.PIPE, text=True)

    return start


def steps(folder):
    return [shlex.split(line) for line in (folder / "log").read_text().splitlines()]


def alive(folder):
    """Return the nodes whose process still runs."""
    return [node for node in folder.glob("node.*") if Path(f"/proc/{node.suffix[1:]}").exists()]


@pytest.mark.skipif(sys.platform != "linux", reason="Slurm runs on Linux")
def test_slurm_starts_ray_under_a_token_runs_the_verb_and_leaves_nothing(slurm, tmp_path):
    job = slurm("run", "my suite.toml", "--store", "/scratch/store")
    assert job.wait(60) == 3  # the exit code of the verb
    file, folder, ray, verb = (tmp_path / "seen").read_text().splitlines()
    assert (file, folder) == ("600", "700")
    assert ray == "token one:24711 64 8 3"
    assert verb == "run my suite.toml --store /scratch/store"
    assert not alive(tmp_path) and not any((tmp_path / "home").iterdir())
    begun = [step for step in steps(tmp_path) if step[0] == "ray"]
    assert [("--head" in step, "--address=one:24711" in step) for step in begun] == [(True, False), (False, True)]
    asked = [step for step in steps(tmp_path) if step[:1] == ["srun"] and "start" in step]
    assert "--nodelist=one" in asked[0] and {"--nodes=2", "--ntasks=2", "--exclude=one"} <= set(asked[1])

    from ray.scripts.scripts import start

    for step in begun:  # the installed Ray knows every option
        said = start.make_context("start", step[2:]).params
        assert (said["num_cpus"], said["block"]) == (8, True)


@pytest.mark.skipif(sys.platform != "linux", reason="Slurm runs on Linux")
def test_a_slurm_job_whose_time_is_up_requeues_itself(slurm, tmp_path):
    (tmp_path / "slow").touch()
    job = slurm("generate", "suite.toml")
    deadline = time.monotonic() + 60
    while not (tmp_path / "seen").exists():
        assert time.monotonic() < deadline and job.poll() is None
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == 0
    assert ["scontrol", "requeue", "4711"] in steps(tmp_path)
    assert not alive(tmp_path) and not any((tmp_path / "home").iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="Slurm runs on Linux")
def test_a_slurm_job_whose_head_does_not_start_fails_at_once(slurm, tmp_path):
    (tmp_path / "broken").touch()
    job = slurm("run", "suite.toml")
    assert job.wait(60) == 1 and "fewer than 1 Ray nodes" in job.stderr.read()
    assert not (tmp_path / "seen").exists() and not any((tmp_path / "home").iterdir())


# Jobs


@pytest.mark.parametrize("verb", VERBS)
def test_a_job_is_the_verb_of_its_name(verb, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"jobs/{verb}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"jobs.{verb}", run_name="__main__")
    assert not ended.value.code and re.search(rf"Usage: .*\b{verb} \[OPTIONS\]", capsys.readouterr().out)


@pytest.fixture
def submitted(monkeypatch, tmp_path):
    """Submit to a stand-in for a cluster; return the submission id and the arguments."""
    from jobs import submit

    jobs = {}

    class Client:
        def __init__(self, address):
            pass

        def list_jobs(self):
            return []

        def submit_job(self, submission_id, **said):
            jobs[submission_id] = said

        async def tail_job_logs(self, name):
            yield ""

        def get_job_status(self, name):
            return "SUCCEEDED"

    monkeypatch.setattr(submit.requests, "get", lambda *_, **__: type("Answer", (), {"ok": False}))
    monkeypatch.setattr(submit.job_submission, "JobSubmissionClient", Client)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # `submit` sets this variable; pytest restores it afterwards

    def call(*options):
        jobs.clear()
        assert not asyncio.run(submit.submit("http://10.0.0.5:8265", *options))
        ((name, said),) = jobs.items()
        return name, said

    return call


def test_every_verb_is_submitted_under_a_name_of_its_own(submitted):
    quick = str(PROJECT_ROOT / "jobs" / "suites" / "quick.toml")
    names = set()
    for verb in VERBS:
        options = ["--store", "/s", "--job", verb, "--data", "/d"]
        name, said = submitted(quick, *options)
        assert said["entrypoint"] == f"python -m jobs.{verb} {quick} --store /s --data /d"
        assert submitted(quick, *options)[0] == name
        names.add(name)
    assert len(names) == 3
    assert submitted(quick, "--store", "/s", "--data", "/d")[0] in names  # `run` is the default
    with pytest.raises(UserError, match="no job 'judge'"):
        submitted(quick, "--store", "/s", "--job", "judge")


def test_how_options_are_typed_changes_no_name(submitted, tmp_path):
    """A job's name is the same with = or a space, before or after the suite; another value or plug-in changes it."""
    quick = str(PROJECT_ROOT / "jobs" / "suites" / "quick.toml")
    mine = tmp_path / "mine.py"
    mine.write_text('"""Mine."""\nfrom harness.methods.chance import Chance\n\n\nclass Mine(Chance):\n    pass\n')
    name, said = submitted(quick, "--store", "/s", "--plugin", str(mine), "--workers", "2")
    assert submitted(f"--plugin={mine}", "--workers=2", "--job=run", quick, "--store=/s")[0] == name
    assert said["entrypoint"] == f"python -m jobs.run {quick} --store /s --plugin {mine} --workers 2"
    others = [["--workers", "3", f"--plugin={mine}"], ["--workers=2"]]
    assert len({name, *(submitted(quick, "--store=/s", *other)[0] for other in others)}) == 3
    for wrong, says in (
        (["--wrokers", "2"], "did you mean '--workers'"),
        (["--workers", "0"], "greater than or equal to 1"),
    ):
        with pytest.raises(UserError, match=says):
            submitted(quick, "--store", "/s", *wrong)
    with pytest.raises(UserError, match="store that outlives it"):
        submitted(quick, "--workers", "2")


def test_a_file_of_texts_is_named_by_what_it_holds(submitted, tmp_path):
    texts = tmp_path / "texts.jsonl"
    names = []
    for text in ("one", "two", "one"):
        texts.write_text(text)
        names.append(submitted(str(texts), "--store", "/s", "--job", "encode")[0])
    assert names[0] == names[2] != names[1]


def test_readme_commands_can_be_typed():
    lines = re.sub(r"\\\n *", "", README)
    typed = re.findall(r"slurm\.sh (\w+ .*)", lines) + re.findall(r"-(?:cpu|gpu) manyminds (\w+ .*)", lines)
    assert len(typed) == 5
    for line in typed:
        parse(line)
    for file in re.findall(r"(?<![/\w])(?:cluster|jobs)/[\w/.]+\w", README):
        assert (PROJECT_ROOT / file).exists(), file
