import pytest
from loopback import free_port

from jaxmix.core.errors import EnvironmentProblem
from jaxmix.workflows import doctor


@pytest.mark.parametrize(
    ("version", "spec", "expected"),
    [
        ("0.12.8", "<=0.12.8", True),
        ("0.12.9", "<=0.12.8", False),
        ("0.12.10", ">=0.12.9", True),  # as numbers, not as text
        ("0.12", "==0.12.0", True),
        ("0.12.0.1", ">=0.11.1,<0.13", True),
        ("0.13.0", ">=0.11.1,<0.13", False),
        ("2.4.6rc1", ">2.4.5", True),
        ("1.0", "", True),
    ],
)
def test_versions_compare_as_releases(version, spec, expected):
    assert doctor.matches(version, spec) is expected


@pytest.mark.parametrize(
    ("flax", "jax", "is_bad"),
    [("0.12.8", "0.10.2", False), ("0.12.8", "0.11.1", True), ("0.12.9", "0.11.1", False), ("0.12.12", "0.10.2", True)],
)
def test_known_bad_pairs(monkeypatch, flax, jax, is_bad):
    monkeypatch.setattr(doctor, "installed_version", {"flax": flax, "jax": jax}.get)
    broken = [c for c in doctor._known_bad() if c.status == "broken"]
    assert bool(broken) is is_bad
    if is_bad:
        assert flax in broken[0].detail
        assert broken[0].fix.startswith("pip install")


REQUIREMENTS = ["orbax-checkpoint>=0.12.8", "chex>=0.1.92", "jax<0.13,>=0.10.2", 'wandb>=0.18; extra == "wandb"']


def test_a_missing_and_an_old_package_are_broken_and_an_extra_is_optional(monkeypatch):
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: REQUIREMENTS)
    monkeypatch.setattr(doctor, "installed_version", {"orbax-checkpoint": "0.1.0", "jax": "0.12.0.1"}.get)
    found = {c.name: c for c in doctor._packages()}
    assert set(found) == {"orbax-checkpoint", "chex", "jax"}
    assert (found["orbax-checkpoint"].status, found["chex"].status, found["jax"].status) == ("broken", "broken", "ok")
    assert found["orbax-checkpoint"].detail == "0.1.0, needs >=0.12.8"
    assert found["chex"].fix == 'pip install "chex>=0.1.92"'
    (extra,) = doctor._extras()
    assert (extra.name, extra.status) == ("wandb", "note")
    assert 'pip install "jaxmix[wandb]"' in extra.detail


def test_run_from_a_source_folder_it_says_that_versions_are_unknown(monkeypatch):
    def unknown(name):
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "requires", unknown)
    (check,) = doctor._packages()
    assert check.status == "note"
    assert doctor._extras() == []


def test_a_folder_that_cannot_be_written_is_broken(monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    (check,) = doctor._disk()
    assert check.status == "broken"
    assert "Permission denied" in check.detail


def test_little_disk_space_is_told(monkeypatch):
    usage = type("Usage", (), {"free": 1e9})()
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert doctor._disk()[0].status == "note"
    usage.free = 1e8
    assert doctor._disk()[0].status == "broken"


def test_this_machine_passes():
    broken = [c for c in doctor.diagnose() if c.status == "broken"]
    assert broken == []


@pytest.mark.slow  # the processes of tests/core/test_sharding.py find each other the same way
@pytest.mark.multihost
def test_processes_on_this_machine_find_each_other():
    check = doctor.ping_this_machine()
    assert check.status == "ok"
    assert check.detail == "2 processes on this machine hear each other"


def test_a_process_that_does_not_come_is_named():
    with pytest.raises(EnvironmentProblem, match="process 1 did not come"):
        doctor.ping(f"127.0.0.1:{free_port()}", 2, 0, timeout_s=1)
