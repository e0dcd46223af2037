"""The doctor on simulated faults: each is named, graded, and comes with a mend."""

import shutil
import sys
from types import SimpleNamespace

import pytest

from course_lib import doctor, setup_env


def only(findings):
    assert len(findings) == 1
    return findings[0]


def test_report_exit_code_and_format(monkeypatch, capsys):
    fine, warning, failing = (doctor.Finding(level, "disk", "text", "do this") for level in ("ok", "warn", "fail"))
    for checks, code in (([fine], 0), ([fine, warning], 0), ([warning, failing], 1)):
        monkeypatch.setattr(doctor, "CHECKS", tuple((lambda found: lambda: [found])(found) for found in checks))
        assert doctor.report() == code
    assert "fail  disk        text\n                  -> do this" in capsys.readouterr().out


def test_a_check_that_raises_becomes_a_finding(monkeypatch, capsys):
    def device():
        raise RuntimeError("CUDA driver is too old")

    monkeypatch.setattr(doctor, "CHECKS", (device,))
    assert doctor.report() == 1
    assert "fail  device      RuntimeError: CUDA driver is too old" in capsys.readouterr().out


def test_without_packages_the_report_still_comes(monkeypatch, capsys):
    missing = [("torch", "torch>=2.11", "2.9.1"), ("nbval", "nbval>=0.11", None)]
    monkeypatch.setattr(setup_env, "unmet", lambda root: missing)
    assert doctor.report(setup_env.SetupError("No network.\nConnect.")) == 1
    out = capsys.readouterr().out
    assert "fail  setup       No network.\n                  -> Connect." in out
    assert "torch>=2.11 (not 2.9.1), nbval>=0.11" in out
    assert out.rstrip().endswith("2 to mend, 0 to know about.")


def test_interpreter_of_32_bits(monkeypatch):
    monkeypatch.setattr(sys, "maxsize", 2**31 - 1)
    assert only(doctor.interpreter()).level == "fail"


def test_interpreter_newer_than_tested(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 14, 0))
    assert only(doctor.interpreter()).level == "warn"


def test_package_that_does_not_load(monkeypatch):
    def load(name):
        if name == "torch":
            raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(doctor.importlib, "import_module", load)
    finding = only(doctor.imports())
    assert finding.level == "fail" and "torch does not load" in finding.text and finding.mend


@pytest.mark.slow
def test_kernel_starts():
    assert only(doctor.kernel()).level == "ok"


def test_kernel_of_another_python(monkeypatch):
    import jupyter_client.kernelspec as kernelspec
    import jupyter_client.manager as manager

    spec = SimpleNamespace(argv=["/somewhere/else/python", "-m", "ipykernel_launcher"])
    monkeypatch.setattr(kernelspec.KernelSpecManager, "get_kernel_spec", lambda self, name: spec)
    silent = SimpleNamespace(stop_channels=lambda: None, shutdown_kernel=lambda now: None)
    monkeypatch.setattr(manager, "start_new_kernel", lambda **_: (silent, silent))
    finding = only(doctor.kernel())
    assert finding.level == "warn" and "/somewhere/else/python" in finding.text and finding.mend


def test_kernel_of_another_environment_of_the_same_python(monkeypatch, tmp_path):
    """Both interpreters are links to one file: what tells environments apart is the folder."""
    import jupyter_client.kernelspec as kernelspec
    import jupyter_client.manager as manager

    (tmp_path / "python").symlink_to(sys.executable)
    silent = SimpleNamespace(stop_channels=lambda: None, shutdown_kernel=lambda now: None)
    monkeypatch.setattr(manager, "start_new_kernel", lambda **_: (silent, silent))
    for command, level in ((str(tmp_path / "python"), "warn"), (sys.executable, "ok"), ("python", "ok")):
        monkeypatch.setattr(kernelspec.KernelSpecManager, "get_kernel_spec", lambda self, name: SimpleNamespace(argv=[command]))
        assert only(doctor.kernel()).level == level


def test_kernel_missing_or_dying(monkeypatch):
    import jupyter_client.kernelspec as kernelspec
    import jupyter_client.manager as manager

    def die(**_):
        raise RuntimeError("Kernel died before replying to kernel_info")

    monkeypatch.setattr(manager, "start_new_kernel", die)
    assert only(doctor.kernel()).level == "fail"

    def unknown(self, name):
        raise kernelspec.NoSuchKernel(name)

    monkeypatch.setattr(kernelspec.KernelSpecManager, "get_kernel_spec", unknown)
    assert "no Python kernel" in only(doctor.kernel()).text


def test_nvidia_driver_that_torch_cannot_use(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "precision", lambda place: doctor.Finding("ok", "precision", ""))
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/" + name)
    assert doctor.device()[0].level == "warn"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert doctor.device()[0].level == "ok"


def test_emulated_bf16_is_not_taken_for_native(monkeypatch):
    """A T4 says that it supports bf16; it does so by emulation."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(doctor, "matmul_speed", lambda place, dtype: 100.0 if dtype is torch.float32 else 900.0)
    assert "emulated" in doctor.precision("cuda").text
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert "bf16 pays" in doctor.precision("cuda").text


def test_speed_of_a_matrix_product_is_measured(device):
    import torch

    assert 0.1 < doctor.matmul_speed(device, torch.float32) < 1e7


@pytest.mark.parametrize(("free", "level"), [(0.4e9, "fail"), (20e9, "ok")])
def test_disk(free, level, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(total=100e9, free=free))
    assert only(doctor.disk()).level == level


@pytest.mark.parametrize(("free", "level"), [(1.2e9, "warn"), (8e9, "ok")])
def test_memory(free, level, monkeypatch):
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free, total=16e9))
    assert only(doctor.memory()).level == level


def test_store_in_a_place_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COURSE_STORE", str(tmp_path / "file" / "store"))
    finding = only(doctor.shelf())
    assert finding.level == "fail" and "COURSE_STORE" in finding.mend


def test_store_with_a_damaged_artifact(monkeypatch, tmp_path):
    from course_lib import store

    states = {"a-1": "ready", "b-2": "damaged"}
    entries = [SimpleNamespace(name=name[0], state=state, folder=tmp_path / name) for name, state in states.items()]
    monkeypatch.setattr(store, "list", lambda: entries)
    finding = only(doctor.shelf())
    assert finding.level == "warn" and "b-2" in finding.text and "a-1" not in finding.text
    assert finding.mend.endswith("store clear b")
    monkeypatch.setattr(store, "list", lambda: entries[:1])
    assert "1 artifacts ready" in only(doctor.shelf()).text


@pytest.mark.parametrize("platform, found, level, said", [
    ("linux", ["limits", "syscall filter", "chroot"], "ok", "limits, syscall filter, chroot, and a process of its own"),
    ("linux", ["limits", "chroot"], "warn", "no syscall filter, only limits, chroot"),
    ("darwin", ["limits"], "ok", "limits, and a process"),
    ("win32", [], "ok", "run none here that comes from strangers"),
])
def test_the_sandbox_says_what_protects_this_machine(monkeypatch, platform, found, level, said):
    from course_lib.rewards import sandbox

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(sandbox, "protections", lambda: found)
    finding = only(doctor.sandbox())
    assert finding.level == level and said in finding.text and bool(finding.mend) == (level == "warn")


def test_missing_browser_is_no_fault(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert only(doctor.browser()).level == "ok"
