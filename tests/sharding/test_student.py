"""The student trained on 1, 2, 4 and 8 devices is the same student."""

import jax
import numpy as np

from jaxmix.core.sharding import build_mesh
from jaxmix.models.student.training import train_student


def test_it_is_the_same_on_any_number_of_devices():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 45).astype(np.int32)
    texts = [" ".join(f"{'abc'[y]}{i}" for i in rng.integers(0, 9, 8)) for y in labels]
    texts += ["", "the"]  # 47 texts: no whole number of batches
    labels = np.append(labels, [0, 1]).astype(np.int32)
    found = {}
    for devices in (1, 2, 4, 8):
        mesh = build_mesh(data=devices // 2 or 1, fsdp=2 if devices > 1 else 1, devices=jax.devices()[:devices])
        found[devices] = train_student(
            texts, labels, num_clusters=3, key=jax.random.key(0), buckets=512, batch_size=16, width=4, mesh=mesh
        )
    assert np.abs(found[1].table).max() > 0.1
    for devices in (2, 4, 8):
        np.testing.assert_array_equal(found[devices].buckets, found[1].buckets)
        np.testing.assert_allclose(found[devices].table, found[1].table, atol=1e-4)
        np.testing.assert_allclose(found[devices].head, found[1].head, atol=1e-4)
        np.testing.assert_allclose(found[devices].predict(texts)[1], found[1].predict(texts)[1], atol=1e-4)
