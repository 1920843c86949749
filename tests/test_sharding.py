"""The plan: which arrays are split, and rules that fit nothing are errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from bjax.errors import UserError
from bjax.runtime import sharding
from bjax.step import gather

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


def test_weights_are_gathered_as_they_are_read_and_their_gradients_come_back_split():
    mesh = sharding.make_mesh(1, 8)
    plan = sharding.plan(TREE, mesh, ((".*", "fsdp"),))
    random = np.random.default_rng(0)
    tree = jax.tree.map(lambda x, s: jax.device_put(random.normal(size=x.shape).astype(x.dtype), s), TREE, plan)
    x = random.normal(size=(16, 128)).astype(jnp.bfloat16)

    def use(tree):  # the kernel in bfloat16 alone, the bias in both types
        y = x @ tree["dense"]["kernel"].astype(jnp.bfloat16) + tree["dense"]["bias"].astype(jnp.bfloat16)
        return jnp.sin(y.astype(jnp.float32) * tree["dense"]["bias"]).sum()

    def loss(tree):
        return use(gather.gathered(tree, plan, use))

    program = jax.jit(jax.value_and_grad(loss)).lower(tree)
    sent = {line.rsplit(" : ", 1)[1] for line in program.as_text().splitlines() if "sharding_constraint" in line}
    assert (
        sent >= {"tensor<128x512xbf16>", "tensor<512xf32>"} and "tensor<128x512xf32>" not in sent
    )  # "odd" is not used
    (value, gradients), (want, wanted) = program.compile()(tree), jax.jit(jax.value_and_grad(use))(tree)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), gradients, wanted)
    assert gradients["dense"]["kernel"].sharding.spec == P(None, "fsdp")
