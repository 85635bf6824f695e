"""launch/kubernetes and launch/Dockerfile, without a cluster.

`kubectl` builds what would be applied; the schemas of the oldest and newest Kubernetes,
and JobSet's own API models, check every field's name and type. What no schema knows is
asserted here: which exit codes are retried, who reaches which port, which names agree.
"""

import copy
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
from pages import find_blocks

from mnist_dist import __version__
from mnist_dist.errors import EXIT_INPUT, EXIT_STOPPED

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "launch" / "kubernetes"
DOCKERFILE = ROOT / "launch" / "Dockerfile"
TOOLS = Path(sys.executable).parent  # where pip puts kubectl and hadolint
OLDEST = "1.31"  # as kustomization.yaml says
RUN_LABELS = {  # which tell a pod the name of its run
    "Job": "batch.kubernetes.io/job-name",
    "JobSet": "jobset.sigs.k8s.io/jobset-name",
}
VARIANTS = ["job", "jobset", "job-gpu", "jobset-gpu"]
KILLED = 137


def build(directory):
    """The objects that `kubectl apply -k` would send."""
    command = [TOOLS / "kubectl", "kustomize", directory]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return list(yaml.safe_load_all(result.stdout))


def copy_manifests(tmp_path, *edits):
    """A copy, with (file, old, new) replaced where each `old` stands once."""
    root = shutil.copytree(MANIFESTS, tmp_path / "kubernetes")
    for name, old, new in edits:
        text = (root / name).read_text()
        assert text.count(old) == 1
        (root / name).write_text(text.replace(old, new))
    return root


@pytest.fixture(scope="module")
def variants(tmp_path_factory):
    with_gpu = copy_manifests(
        tmp_path_factory.mktemp("gpu"),
        ("kustomization.yaml", "components: []", "components: [gpu]"),
        ("jobset/kustomization.yaml", "components: []", "components: [../gpu]"),
    )
    return {
        "job": build(MANIFESTS),
        "jobset": build(MANIFESTS / "jobset"),
        "job-gpu": build(with_gpu),
        "jobset-gpu": build(with_gpu / "jobset"),
    }


@pytest.fixture(params=VARIANTS)
def objects(request, variants):
    return copy.deepcopy(variants[request.param])


def only(objects, kind, name=None):
    (found,) = [
        o
        for o in objects
        if o["kind"] == kind and name in (None, o["metadata"]["name"])
    ]
    return found


def volume_claim():
    return yaml.safe_load((MANIFESTS / "volume.yaml").read_text())


def copy_pod():
    return yaml.safe_load((MANIFESTS / "copy.yaml").read_text())


def job_of(objects):
    """The Job, or the one that the JobSet would make, with the name it would get."""
    if any(o["kind"] == "Job" for o in objects):
        return only(objects, "Job")
    jobset = only(objects, "JobSet")
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1
    name = f"{jobset['metadata']['name']}-{replicated['name']}-0"
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}}
    return job | replicated["template"]


def templates(objects):
    """The pods' templates by component."""
    owners = [job_of(objects), only(objects, "Deployment")]
    found = [o["spec"]["template"] for o in owners]
    return {t["metadata"]["labels"]["app.kubernetes.io/component"]: t for t in found}


def container(template):
    (found,) = template["spec"]["containers"]
    assert "initContainers" not in template["spec"]
    return found


# Fields and their types.


def is_jobset(document):
    """Whether JobSet's API models know every field, and its type."""
    try:
        return JobsetV1alpha2JobSet.from_dict(document).to_dict() == document
    except ValueError:
        return False


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
def test_every_object_is_of_its_schema(objects, version):
    for document in [*objects, volume_claim(), copy_pod()]:
        if document["kind"] == "JobSet":
            assert document["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
            assert is_jobset(document)
            document = job_of(objects)
        kubernetes_validate.validate(document, version, strict=True)


def test_schemas_see_wrong_names_and_types(variants):
    job, jobset = only(variants["job"], "Job"), only(variants["jobset"], "JobSet")
    for field, value in [("backOffLimit", 6), ("backoffLimit", "6")]:
        wrong = job | {"spec": job["spec"] | {field: value}}
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, OLDEST, strict=True)
    for policy in [{"maxRestart": 10}, {"maxRestarts": "10"}]:
        spec = jobset["spec"] | {"failurePolicy": policy}
        assert not is_jobset(jobset | {"spec": spec})


# Restarts.


def action_on(job, exit_code, *, is_disrupted=False):
    """What Kubernetes does about a failed pod: the first rule that matches, or Count."""
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        assert ("onExitCodes" in rule) != ("onPodConditions" in rule)
        if "onExitCodes" in rule:
            codes = rule["onExitCodes"]
            name = container(job["spec"]["template"])["name"]
            assert (codes["operator"], codes["containerName"]) == ("In", name)
            matches = exit_code in codes["values"]
        else:
            condition = {"type": "DisruptionTarget", "status": "True"}
            assert rule["onPodConditions"] == [condition]
            matches = is_disrupted
        if matches:
            return rule["action"]
    return "Count"


def test_wrong_input_is_never_retried(objects):
    job = job_of(objects)
    assert EXIT_INPUT == 2
    assert action_on(job, EXIT_INPUT) == "FailJob"
    assert action_on(job, EXIT_INPUT, is_disrupted=True) == "FailJob"


def test_all_else_is_retried_and_disruptions_are_not_counted(variants):
    job = only(variants["job"], "Job")
    for code in (1, EXIT_STOPPED, KILLED):
        assert action_on(job, code) == "Count"
        assert action_on(job, code, is_disrupted=True) == "Ignore"


def test_each_worker_has_its_restarts(variants):
    spec = only(variants["job"], "Job")["spec"]
    assert spec["backoffLimitPerIndex"] > 0
    assert "backoffLimit" not in spec  # its default grows with the number of workers
    assert spec["maxFailedIndexes"] == 0  # a run can't go on without one worker


def test_jobset_restarts_all_but_on_wrong_input(variants):
    jobset = only(variants["jobset"], "JobSet")
    job = job_of(variants["jobset"])
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    (rule,) = policy["rules"]
    assert rule["action"] == "FailJobSet"
    # The reason that a FailJob rule leaves: only exit code 2 has one.
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    for code in (1, EXIT_STOPPED, KILLED):
        for is_disrupted in (False, True):
            assert action_on(job, code, is_disrupted=is_disrupted) == "Count"
    # One failure takes all workers down, in whatever order Kubernetes sees them. Each
    # fails for good: the last ends the Job, and a 2 among them always does so first.
    assert job["spec"]["backoffLimitPerIndex"] == 0
    assert not {"backoffLimit", "maxFailedIndexes"} & job["spec"].keys()


def launch_of(template):
    """Which field of the pod tells the program that a launcher started it again."""
    (variable,) = [
        e for e in container(template)["env"] if e["name"] == "MNIST_DIST_LAUNCH"
    ]
    return variable["valueFrom"]["fieldRef"]


def test_workers_share_a_token_that_no_other_pod_is_told(variants):
    for objects in variants.values():
        env = {e["name"]: e for e in container(templates(objects)["worker"])["env"]}
        field = env["MNIST_DIST_TOKEN"]["valueFrom"]["fieldRef"]["fieldPath"]
        assert field == "metadata.labels['batch.kubernetes.io/controller-uid']"


def test_restarted_pods_are_of_the_same_launch(variants):
    # A Job replaces its pods; a JobSet replaces its Jobs, and keeps its name.
    for name in VARIANTS:
        label = "batch.kubernetes.io/controller-uid"
        if name.startswith("jobset"):
            label = "jobset.sigs.k8s.io/jobset-name"
        field = launch_of(templates(variants[name])["worker"])["fieldPath"]
        assert field == f"metadata.labels['{label}']"


def test_one_chief_that_has_time_to_save_and_decides_the_end(objects):
    spec = job_of(objects)["spec"]
    assert spec["completionMode"] == "Indexed"
    # With a podFailurePolicy Failed is also the default.
    assert spec.get("podReplacementPolicy", "Failed") == "Failed"
    assert spec["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] == 60
    assert pod["shareProcessNamespace"]  # no process 1, which would ignore SIGTERM


# The cluster: names, ports, the command of each worker.


def run_owner(objects):
    """The Job, or the JobSet."""
    (owner,) = [o for o in objects if o["kind"] in RUN_LABELS]
    return owner


def environ_of(objects):
    """The environment of a worker's container, as far as the manifests decide it."""
    owner, template = run_owner(objects), job_of(objects)["spec"]["template"]
    fields = {
        f"metadata.annotations['{name}']": value
        for name, value in template["metadata"]["annotations"].items()
    }
    label = RUN_LABELS[owner["kind"]]
    fields[f"metadata.labels['{label}']"] = owner["metadata"]["name"]
    found = {}
    for variable in container(template)["env"]:
        source = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        if "value" in variable or source in fields:
            found[variable["name"]] = variable.get("value") or fields[source]
    return found


def worker_arguments(objects, index, tmp_path):
    """What `mnist-dist` gets in the pod of this index, run through the pod's shell."""
    train = container(job_of(objects)["spec"]["template"])
    values = environ_of(objects)
    values["JOB_COMPLETION_INDEX"] = str(index)  # by the Job's controller

    def expand(text):  # as the kubelet does: names it doesn't know stay
        return re.sub(
            r"\$\(([^)]*)\)", lambda match: values.get(match[1], match[0]), text
        )

    stub = tmp_path / "mnist-dist"
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    command = [expand(part) for part in train["command"] + train["args"]]
    result = subprocess.run(
        command,
        env={**values, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.splitlines()


def overlay(directory, base, *lines, **files):
    """A directory of the user's own, with files by their names' stems."""
    directory.mkdir()
    base = os.path.relpath(base, directory)
    text = "\n".join([f"resources: [{base}]", *lines])
    (directory / "kustomization.yaml").write_text(text)
    for name, content in files.items():
        (directory / f"{name}.py").write_text(content)
    return directory


@pytest.mark.parametrize("kind", ["Job", "JobSet"])
@pytest.mark.parametrize(("num_workers", "suffix"), [(1, ""), (2, "-b"), (12, "-b")])
def test_overlay_changes_workers_and_name_in_one_place(
    tmp_path, kind, num_workers, suffix
):
    lines = [f"replicas: [{{name: mnist, count: {num_workers}}}]"]
    lines += [f"nameSuffix: {suffix}"] if suffix else []
    base = MANIFESTS / ("jobset" if kind == "JobSet" else ".")
    objects = build(overlay(tmp_path / "mine", base, *lines))
    job = job_of(objects)
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == num_workers
    run = run_owner(objects)["metadata"]["name"]
    assert run == f"mnist{suffix}"
    if kind == "JobSet":
        network = only(objects, "JobSet")["spec"]["network"]
        # Without a subdomain it is the JobSet's name.
        assert network == {"enableDNSHostnames": True, "publishNotReadyAddresses": True}
    else:
        assert only(objects, "Service")["metadata"]["name"] == run
        assert job["spec"]["template"]["spec"]["subdomain"] == run
    name = job["metadata"]["name"]
    hosts = [f"{name}-{i}.{run}:2222" for i in range(num_workers)]
    for index in {0, num_workers - 1}:
        arguments = worker_arguments(objects, index, tmp_path)
        assert arguments[0] == "train"
        assert f"--worker_hosts={','.join(hosts)}" in arguments
        assert f"--task_index={index}" in arguments
        assert "--distribution_strategy=multi_worker_mirrored" in arguments
        assert f"--model_dir=/runs/{run}" in arguments
    for template in templates(objects).values():  # the one volume of all runs
        volumes = {v["name"]: v for v in template["spec"]["volumes"]}
        assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == "mnist-runs"


@pytest.mark.parametrize("kind", ["Job", "JobSet"])
def test_documented_overlay_trains_an_own_module_from_one_image(tmp_path, kind):
    (text,) = find_blocks("docs/clusters.md", "yaml")
    (tmp_path / "launch").mkdir()
    shutil.copytree(MANIFESTS, tmp_path / "launch" / "kubernetes")
    mine = tmp_path / "mine"
    mine.mkdir()
    if kind == "JobSet":
        text = text.replace("launch/kubernetes]", "launch/kubernetes/jobset]")
        text = text.replace("{kind: Job}", "{kind: JobSet}")
        text = text.replace("path: /", "path: /spec/replicatedJobs/0/template/")
    (mine / "kustomization.yaml").write_text(text)
    (mine / "mine.py").write_text("def create(): ...\n")
    objects = build(mine)
    for document in objects:
        document = job_of(objects) if document["kind"] == "JobSet" else document
        kubernetes_validate.validate(document, OLDEST, strict=True)
    arguments = worker_arguments(objects, 3, tmp_path)
    assert {"--model=mine:create", "--data_dir=/runs/digits.npz"} < set(arguments)
    assert {"--num_gpus=1", "--model_dir=/runs/mnist-mine"} < set(arguments)
    worker = templates(objects)["worker"]
    mounts = {m["name"]: m["mountPath"] for m in container(worker)["volumeMounts"]}
    volumes = {v["name"]: v for v in worker["spec"]["volumes"]}
    config_map = only(objects, "ConfigMap")
    assert config_map["data"] == {"mine.py": "def create(): ...\n"}
    assert volumes["modules"]["configMap"]["name"] == config_map["metadata"]["name"]
    assert environ_of(objects)["PYTHONPATH"] == mounts["modules"]
    images = {container(t)["image"] for t in templates(objects).values()}
    assert images == {f"YOUR_REGISTRY/mnist-dist:{__version__}-gpu"}


def test_sources_agree_without_kustomize():
    for document in yaml.safe_load_all((MANIFESTS / "job.yaml").read_text()):
        if document["kind"] == "Job":
            spec = document["spec"]
            workers = spec["template"]["metadata"]["annotations"]["num-workers"]
            assert spec["completions"] == spec["parallelism"] == int(workers)


def test_service_publishes_the_workers_before_they_are_ready(variants):
    objects = variants["job"]
    spec = only(objects, "Service")["spec"]
    assert spec["clusterIP"] == "None"
    assert spec["publishNotReadyAddresses"] is True
    labels = templates(objects)["worker"]["metadata"]["labels"]
    assert spec["selector"].items() <= labels.items()
    for port in spec["ports"] + container(templates(objects)["worker"])["ports"]:
        assert 2222 in (port.get("port"), port.get("containerPort"))


def test_train_accepts_the_flags(objects, tmp_path):
    arguments = worker_arguments(objects, 1, tmp_path)
    program = (
        "import sys\n"
        "from mnist_dist.cli.train_flags import parse\n"
        "assert parse(sys.argv[2:]).cluster_timeout > 600\n"  # the Job controller's longest back-off
    )
    subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, check=True)


def test_threads_follow_the_cpu_limit(objects):
    train = container(templates(objects)["worker"])
    assert train["resources"]["limits"] == train["resources"]["requests"]
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        (variable,) = [e for e in train["env"] if e["name"] == name]
        field = variable["valueFrom"]["resourceFieldRef"]
        assert field == {"containerName": train["name"], "resource": "limits.cpu"}


def test_jobset_runs_the_pods_of_the_job(variants):
    for kind in ("", "-gpu"):
        job = templates(variants[f"job{kind}"])["worker"]
        jobset = templates(variants[f"jobset{kind}"])["worker"]
        job = copy.deepcopy(job)
        del job["spec"]["subdomain"]  # the JobSet's `network` sets it
        script = container(job)["command"][2]
        script = script.replace("$RUN_NAME-%", "$RUN_NAME-worker-0-%")
        container(job)["command"][2] = script
        launch_of(job)["fieldPath"] = launch_of(jobset)["fieldPath"]
        for variable in container(job)["env"]:
            if variable["name"] == "RUN_NAME":
                label = RUN_LABELS["JobSet"]
                variable["valueFrom"]["fieldRef"]["fieldPath"] = (
                    f"metadata.labels['{label}']"
                )
        assert job == jobset


# Who reaches what.


def is_admitted(objects, *, source, target, port):
    """Whether the policies let a TCP connection of a pod of this namespace in.

    `source` and `target` are pods' labels; a source of None is elsewhere.
    """
    policies = [
        o["spec"]
        for o in objects
        if o["kind"] == "NetworkPolicy"
        and o["spec"]["podSelector"]["matchLabels"].items() <= target.items()
    ]
    assert all("Ingress" in policy["policyTypes"] for policy in policies)
    if not policies:
        return True

    def admits(rule):
        peers = rule["from"]  # without it all would be let in
        assert all(peer.keys() == {"podSelector"} for peer in peers)
        from_it = source is not None and any(
            peer["podSelector"]["matchLabels"].items() <= source.items()
            for peer in peers
        )
        ports = rule.get("ports", [{"protocol": "TCP", "port": port}])
        return from_it and {"protocol": "TCP", "port": port} in ports

    return any(
        admits(rule) for policy in policies for rule in policy.get("ingress", [])
    )


def test_ports_are_open_to_the_workers_alone(objects):
    labels = {name: t["metadata"]["labels"] for name, t in templates(objects).items()}
    others = [None, {}, labels["tensorboard"], {"app.kubernetes.io/name": "mnist-dist"}]

    def admits(source, target, port):
        return is_admitted(objects, source=source, target=labels[target], port=port)

    assert admits(labels["worker"], "worker", 2222)
    for source in others:
        for port in (2222, 22, 40000):
            assert not admits(source, "worker", port)
    for source in [labels["worker"], *others]:
        assert not admits(source, "tensorboard", 6006)
    # NCCL chooses its ports itself; without GPUs there is one.
    has_gpus = "nvidia.com/gpu" in str(objects)
    assert admits(labels["worker"], "worker", 40000) == has_gpus


def test_tensorboard_listens_to_a_port_forward_alone(objects):
    board = container(templates(objects)["tensorboard"])
    assert board["command"] == ["tensorboard"]
    assert {"--host=127.0.0.1", "--port=6006"} <= set(board["args"])
    services = [o for o in objects if o["kind"] in ("Service", "Ingress")]
    labels = templates(objects)["tensorboard"]["metadata"]["labels"]
    for service in services:
        assert not service["spec"]["selector"].items() <= labels.items()


# What the pods may do and where they write.


def test_pods_meet_the_restricted_standard(objects):
    for template in [*templates(objects).values(), copy_pod()]:
        pod, main = template["spec"], container(template)
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert main["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        for volume in pod["volumes"]:
            kinds = {"persistentVolumeClaim", "emptyDir", "configMap"}
            assert volume.keys() - {"name"} < kinds
        assert not any("hostPort" in port for port in main.get("ports", []))
        assert main["resources"]["limits"]["memory"]


def test_runs_outlive_the_job_and_tensorboard_only_reads_them(objects):
    claim = volume_claim()
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    # `kubectl delete -k` must leave it.
    assert not any(o["kind"].startswith("PersistentVolume") for o in objects)
    for name, template in templates(objects).items():
        volumes = {v["name"]: v for v in template["spec"]["volumes"]}
        mounts = {m["mountPath"]: m for m in container(template)["volumeMounts"]}
        assert volumes.keys() == {m["name"] for m in mounts.values()}
        runs = volumes[mounts["/runs"]["name"]]["persistentVolumeClaim"]
        assert runs["claimName"] == claim["metadata"]["name"]
        is_read_only = name == "tensorboard"
        assert mounts["/runs"].get("readOnly", False) is is_read_only
        assert runs.get("readOnly", False) is is_read_only
        # The image's HOME, the one place to write besides.
        assert "emptyDir" in volumes[mounts["/tmp"]["name"]]
    assert "--logdir=/runs" in container(templates(objects)["tensorboard"])["args"]


def test_gpus_and_their_shared_memory(variants):
    for name in VARIANTS:
        worker = templates(variants[name])["worker"]
        has_gpus = name.endswith("-gpu")
        assert (
            "nvidia.com/gpu" in container(worker)["resources"]["limits"]
        ) is has_gpus
        assert ("--num_gpus=1" in container(worker)["args"]) is has_gpus
        mounts = {m["mountPath"]: m["name"] for m in container(worker)["volumeMounts"]}
        assert ("/dev/shm" in mounts) is has_gpus
        if has_gpus:
            memory = {"medium": "Memory", "sizeLimit": "8Gi"}
            volume = {"name": mounts["/dev/shm"], "emptyDir": memory}
            assert volume in worker["spec"]["volumes"]


# Images.


def test_images_are_those_that_the_dockerfile_says_to_build(objects):
    built = set(re.findall(r"docker build .*-t (\S+) \.", DOCKERFILE.read_text()))
    assert built == {f"mnist-dist:{__version__}", f"mnist-dist:{__version__}-gpu"}
    gpu = "-gpu" if "nvidia.com/gpu" in str(objects) else ""
    images = {container(t)["image"] for t in templates(objects).values()}
    assert images == {f"mnist-dist:{__version__}{gpu}"}


@pytest.mark.parametrize("directory", [".", "jobset"])
def test_image_moves_to_a_registry_by_one_entry(tmp_path, directory):
    name = f"{directory}/kustomization.yaml"
    component = "[gpu]" if directory == "." else "[../gpu]"
    edits = [("components: []", f"components: {component}")]
    edits += [("newName: mnist-dist", "newName: registry.example:5000/mnist-dist")]
    root = copy_manifests(tmp_path, *((name, *edit) for edit in edits))
    found = templates(build(root / directory))
    images = {container(template)["image"] for template in found.values()}
    assert images == {f"registry.example:5000/mnist-dist:{__version__}-gpu"}


def test_dockerfile_has_no_lint():
    result = subprocess.run(
        [TOOLS / "hadolint", "--no-color", DOCKERFILE], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout


def test_dockerfile_and_pods_agree(objects):
    lines = DOCKERFILE.read_text().splitlines()
    stages = [line.split() for line in lines if line.startswith("FROM")]
    assert stages[-1] == ["FROM", "base", "AS", "cpu"]  # what no --target builds
    assert 'ENTRYPOINT ["tini", "--", "mnist-dist"]' in lines
    assert "ENV HOME=/tmp \\" in lines
    for template in templates(objects).values():
        context = template["spec"]["securityContext"]
        user = f"USER {context['runAsUser']}:{context['runAsGroup']}"
        assert lines.count(user) == 2  # both final stages


def test_wheel_is_built_from_what_dockerignore_lets_through(tmp_path):
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    context = tmp_path / "context"
    context.mkdir()
    for rule in rules[1:]:
        if not rule.startswith("!"):
            continue
        source = ROOT / rule[1:]
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, context / source.name, ignore=ignore)
        else:
            shutil.copy(source, context)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps"]
    command += ["--no-build-isolation", "-w", str(tmp_path), str(context)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"mnist_dist-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [n for n in names if n.endswith(".dist-info/METADATA")]
        assert "\n# mnist_dist\n" in archive.read(metadata).decode()  # the README
    assert sum(name.endswith("-ubyte.gz") for name in names) == 4
    assert any(name.endswith("/LICENSE") for name in names)
