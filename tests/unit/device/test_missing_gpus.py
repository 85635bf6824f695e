"""What is said where the driver lists GPUs and TensorFlow sees none, with stand-ins."""

import os
from types import SimpleNamespace

import pytest

from mnist_dist.device import missing_gpus
from mnist_dist.device.missing_gpus import explain_missing_gpus, list_driver_gpus

BUILD = {
    "is_cuda_build": True,
    "cuda_version": "12.5.1",
    "cuda_compute_capabilities": ["sm_60", "sm_70", "sm_89", "compute_90"],
}


def number(reference):
    """The int that ctypes passes by reference."""
    return reference._obj


class Driver:
    """Stands in for libcuda.so.1."""

    def __init__(self, *, version=12040, init=0, capability=(8, 0), count=1):
        self.version, self.init = version, init
        self.capability, self.count = capability, count

    def cuDriverGetVersion(self, version):
        number(version).value = self.version

    def cuInit(self, flags):
        return self.init

    def cuDeviceGetCount(self, count):
        number(count).value = self.count

    def cuDeviceGet(self, device, ordinal):
        number(device).value = ordinal

    def cuDeviceGetAttribute(self, value, attribute, device):
        number(value).value = self.capability[attribute - 75]


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A root folder with two GPUs as NVIDIA's driver shows them."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for bus in ("0000:3b:00.0", "0000:af:00.0"):
        folder = tmp_path / "proc" / "driver" / "nvidia" / "gpus" / bus
        folder.mkdir(parents=True)
        (folder / "information").write_text("Model: \t\t NVIDIA H100 80GB\nIRQ:   81\n")
    (tmp_path / "proc" / "driver" / "nvidia" / "version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13\n"
    )
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / "dev" / name).touch()
    return tmp_path


def explain(host, *, driver=None, lost=(), environ=None, **build):
    def load_library(name):
        name = os.path.basename(name)
        if name in lost:
            raise OSError(f"{name}: cannot open shared object file")
        return (driver or Driver()) if name == "libcuda.so.1" else SimpleNamespace()

    return explain_missing_gpus(
        root=str(host),
        environ=environ or {},
        build_info=BUILD | build,
        load_library=load_library,
    )


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ({"is_cuda_build": False}, "built without CUDA: pip install 'tensorflow[and"),
        (
            {"lost": ["libcuda.so.1"]},
            "the driver's libcuda.so.1 does not load (libcuda.so.1: cannot open",
        ),
        (
            {"driver": Driver(version=11040)},
            "the driver 470.57.02 knows CUDA up to 11.4, TensorFlow was built for 12.5",
        ),
        (
            {"driver": Driver(init=803)},
            "cuInit of the driver 470.57.02 fails with 803: the driver's library and",
        ),
        (
            {"driver": Driver(init=100), "environ": {"CUDA_VISIBLE_DEVICES": "7"}},
            "CUDA_VISIBLE_DEVICES is '7', of which none is there",
        ),
        (
            {"lost": ["libcudnn.so.9", "libcufft.so.11"]},
            "libcufft.so.11 (libcufft.so.11: cannot open shared object file), "
            "libcudnn.so.9 (libcudnn.so.9: cannot open shared object file) do not load",
        ),
        (
            {"driver": Driver(capability=(5, 2))},
            "GPU 0 has compute capability 5.2, this TensorFlow has kernels for sm_60",
        ),
        ({}, "unknown reason: TF_CPP_MIN_LOG_LEVEL=0"),
    ],
)
def test_reason_and_cure_are_named(host, case, words):
    line = explain(host, **case)
    assert line.startswith("--num_gpus: found GPUs on this host (2 NVIDIA H100 80GB)")
    assert words in line
    assert line.endswith("--num_gpus=0 for the CPU")
    assert "\n" not in line


def test_wheel_for_arm_is_named(host, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert "wheel for aarch64 has no CUDA" in explain(host, is_cuda_build=False)


def test_container_without_the_devices_is_named(host):
    for name in ("nvidia0", "nvidia1"):
        (host / "dev" / name).unlink()
    assert "this container was given no GPU (docker run --gpus=all" in explain(host)


@pytest.mark.parametrize("visible", ["", "-1"])
def test_hidden_gpus_are_meant_to_be_so(host, visible):
    assert explain(host, environ={"CUDA_VISIBLE_DEVICES": visible}) is None


def test_gpus_are_those_of_proc_else_of_dev_else_of_nvidia_smi(host):
    assert list_driver_gpus(str(host)) == ["NVIDIA H100 80GB"] * 2
    os.rename(host / "proc", host / "gone")
    assert list_driver_gpus(str(host)) == ["/dev/nvidia0", "/dev/nvidia1"]
    os.rename(host / "dev", host / "away")
    assert list_driver_gpus(str(host)) == []
    assert explain(host) is None
    (host / "bin").mkdir()
    program = host / "bin" / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        'echo "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6)"\n'
        'echo "  MIG 1g.5gb Device 0: (UUID: MIG-c7384736)"\n'
    )
    program.chmod(0o755)
    assert list_driver_gpus(str(host)) == ["NVIDIA A100-SXM4-40GB"]
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    assert list_driver_gpus(str(host)) == []


def test_libraries_are_sought_in_the_wheels_and_then_in_the_system(tmp_path):
    asked = []

    def load_library(name):
        asked.append(name)
        raise OSError("not there")

    assert missing_gpus._library_reasons(load_library)
    assert [os.path.basename(name) for name in asked] == list(missing_gpus.LIBRARIES)
