"""The plan: which arrays are split, and rules that fit nothing are errors."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from bjax.errors import UserError
from bjax.runtime import sharding

TREE = {
    "dense": {
        "kernel": jax.ShapeDtypeStruct((128, 512), np.float32),
        "bias": jax.ShapeDtypeStruct((512,), np.float32),
    },
    "odd": jax.ShapeDtypeStruct((999, 1001), np.float32),
}


def specs(mesh, rules):
    return jax.tree.map(lambda s: s.spec, sharding.plan(TREE, mesh, rules))


def test_fsdp_splits_the_largest_axis_of_large_arrays():
    found = specs(sharding.make_mesh(2, 4), ((".*", "fsdp"),))
    assert found == {"dense": {"kernel": P(None, "fsdp"), "bias": P()}, "odd": P()}


def test_the_first_matching_rule_counts():
    found = specs(sharding.make_mesh(2, 4), (("dense/kernel", "replicate"), (".*", "fsdp")))
    assert found["dense"]["kernel"] == P()


def test_one_fsdp_device_splits_nothing():
    assert set(jax.tree.leaves(specs(sharding.make_mesh(-1, 1), ((".*", "fsdp"),)))) <= {P()}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((("dense", "fsdp"),), "no pattern matches odd"),
        (((".*", "fsdp"), ("head", "replicate")), "no parameter matches 'head'"),
        (((".*", "zero3"),), "'.*' names 'zero3'; expected one of fsdp, replicate"),
    ],
)
def test_rules_that_do_not_fit_are_refused(rules, message):
    with pytest.raises(UserError, match=f"config.mesh.rules: .*{message.replace('.*', '[.][*]')}"):
        sharding.plan(TREE, sharding.make_mesh(8, 1), rules)


def test_batches_are_split_over_both_axes():
    mesh = sharding.make_mesh(4, 2)
    batch = sharding.put({"image": np.arange(16 * 3).reshape(16, 3)}, mesh)["image"]
    assert batch.shape == (16, 3)
    assert {s.data.shape for s in batch.addressable_shards} == {(2, 3)}
