import jax.numpy as jnp
import numpy as np

from jaxmix.train.run.micro_batches import rejoin, split_rows


def test_rows_split_in_turns_and_come_back():
    rows = jnp.arange(12).reshape(6, 2)
    assert split_rows(rows, 3)[1].tolist() == [[2, 3], [8, 9]]
    np.testing.assert_array_equal(rejoin(split_rows(rows, 3)), rows)
