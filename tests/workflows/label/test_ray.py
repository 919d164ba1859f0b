"""Labeling on a real Ray cluster of this machine, one of its workers killed in the middle: nothing is lost.

Skipped where Ray is not installed. Nothing here needs JAX: the student is made by hand.
"""

import json
import os
import signal
import threading
import time

import numpy as np
import pytest

from jaxmix.models.student.features import hash_texts
from jaxmix.models.student.model import Student, StudentConfig
from jaxmix.workflows.label.config import label_from
from jaxmix.workflows.label.run import run_labeling
from jaxmix.workflows.provenance import write_json

pytest.importorskip("ray", reason='Ray is not installed: pip install "jaxmix[ray]"')
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # Ray's own warnings are not ours

FILES, DOCUMENTS = 40, 400
WORDS = ("rock", "fish", "star")


@pytest.fixture
def corpus(tmp_path):
    """A student of three words, and files to label."""
    ids, _ = hash_texts(list(WORDS), buckets=1024, orders=(1, 2), seed=0, max_words=512)
    order = np.argsort(ids)
    student = Student(
        StudentConfig(3, buckets=1024),
        ids[order],
        9 * np.eye(3, dtype=np.float32)[order],
        None,
        np.zeros(3, np.float32),
    )
    student.save(tmp_path / "domains" / "student" / "model")
    identities = {"encoder": "none", "clusters": "none", "student": student.identity}
    write_json(tmp_path / "domains" / "domains.json", {"format": 1, "names": list(WORDS), "identities": identities})
    rng = np.random.default_rng(0)
    for i in range(FILES):
        texts = [" ".join(rng.choice(WORDS, 200, p=rng.dirichlet(np.ones(3)))) for _ in range(DOCUMENTS)]
        path = tmp_path / "web" / f"{i:02d}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return tmp_path


def label(folder, engine):
    config = label_from(
        {
            "domains": str(folder / "domains"),
            "sources": {"web": {"path": str(folder / "web")}},
            "labels": str(folder / engine),
            "engine": engine,
            "ray": {"workers": 2},
            "batch_documents": 64,
        },
        file="label.yaml",
        out=str(folder / f"out-{engine}"),
    )
    return run_labeling(config, command="x", say=lambda line: None)


def workers():
    """Processes of Ray's actors that label, by id: started below this process alone."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    title = file.read().replace(b"\0", b" ")
                with open(f"/proc/{entry}/environ", "rb") as file:
                    is_mine = MARK in file.read()
            except OSError:
                continue
            if is_mine and b"_Worker" in title and title.startswith(b"ray::"):
                found[int(entry)] = title
    return found


MARK = f"JAXMIX_TEST_OF={os.getpid()}".encode()


@pytest.fixture
def killer(corpus, monkeypatch):
    """Kills one labeling worker as soon as a few files are labeled; → list of killed ids."""
    monkeypatch.setenv(*MARK.decode().split("="))
    killed, stop = [], threading.Event()

    def watch():
        while not stop.is_set() and not killed:
            if len(list((corpus / "ray").rglob("*.parquet"))) >= 3 and (alive := workers()):
                victim = min(alive)
                os.kill(victim, signal.SIGKILL)
                killed.append((victim, len(list((corpus / "ray").rglob("*.parquet")))))
            time.sleep(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    yield killed
    stop.set()
    thread.join()


def test_a_killed_worker_loses_nothing_and_the_bytes_are_the_same(corpus, killer):
    here = label(corpus, "local")
    on_ray = label(corpus, "ray")
    assert len(killer) == 1, "a worker was killed"
    assert 3 <= killer[0][1] < FILES, "in the middle"
    assert {k: v for k, v in on_ray.items() if k != "out"} == {k: v for k, v in here.items() if k != "out"}
    names = sorted(path.name for path in (corpus / "local" / "web").iterdir())
    assert len(names) == FILES
    assert sorted(path.name for path in (corpus / "ray" / "web").iterdir()) == names
    for name in names:
        assert (corpus / "ray" / "web" / name).read_bytes() == (corpus / "local" / "web" / name).read_bytes()
