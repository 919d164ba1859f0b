"""Texts encoded on 1, 2, 4 and 8 devices give the rows of one."""

import sys
from pathlib import Path

import jax
import numpy as np

from jaxmix.core.sharding import build_mesh
from jaxmix.models.encoders.load import load_encoder

sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "encoders"))
from tiny_bert import ROUNDING, TEXTS, write_checkpoint


def test_every_mesh_gives_the_rows_of_one_device(tmp_path):
    write_checkpoint(tmp_path)
    expected = load_encoder(tmp_path, max_length=16, batch_tokens=128).encode(TEXTS)
    for data, fsdp in ((2, 1), (2, 2), (8, 1)):
        mesh = build_mesh(data=data, fsdp=fsdp, devices=jax.devices()[: data * fsdp])
        encoder = load_encoder(tmp_path, max_length=16, batch_tokens=128, mesh=mesh)
        np.testing.assert_allclose(encoder.encode(TEXTS), expected, rtol=0, atol=ROUNDING)
