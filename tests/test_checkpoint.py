import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scoreflow.runs import checkpoint
from scoreflow.runs.errors import RunError, UserError
from scoreflow.step import TrainState


def _state(scale=1.0):
    params = {"a": scale * jnp.arange(3.0), "b": {"w": jnp.full((2, 2), scale, jnp.bfloat16)}}
    return TrainState(jnp.int32(5), params, params, optax.adamw(1e-3).init(params))


def _corrupt(path, how):
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
    elif how == "truncate":
        path.write_bytes(bytes(data[: len(data) // 2]))
    else:
        path.unlink()


def _largest(step_dir):
    return max((p for p in step_dir.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_round_trip_is_exact_and_old_steps_go(tmp_path):
    for step in (10, 20, 30, 40):
        checkpoint.save(tmp_path, step, _state(step), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["30", "30.sha256.json", "40", "40.sha256.json"]
    restored = checkpoint.restore(tmp_path, 30, _state())
    assert type(restored) is TrainState
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(_state(30))):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))
    branch = checkpoint.restore(tmp_path, 40, {"ema_params": _state().params})
    np.testing.assert_array_equal(branch["ema_params"]["a"], _state(40).params["a"])


@pytest.mark.parametrize("how", ["flip", "truncate", "delete"])
def test_damage_is_named_and_the_step_before_is_used(tmp_path, how):
    for step in (10, 20):
        checkpoint.save(tmp_path, step, _state(step))
    _corrupt(_largest(tmp_path / "20"), how)
    warnings = []
    assert checkpoint.latest(tmp_path, warn=warnings.append) == 10
    assert len(warnings) == 1 and str(tmp_path / "20") in warnings[0] and "damaged" in warnings[0]
    checkpoint.quarantine(tmp_path, 10)
    checkpoint.save(tmp_path, 20, _state(21))  # the same step can be written again
    np.testing.assert_array_equal(checkpoint.restore(tmp_path, 20, _state()).params["a"], _state(21).params["a"])
    assert (tmp_path / "20.damaged").is_dir()


def test_a_step_killed_before_its_seal_does_not_count(tmp_path):
    for step in (10, 20):
        checkpoint.save(tmp_path, step, _state(step))
    (tmp_path / "20.sha256.json").unlink()
    warnings = []
    assert checkpoint.latest(tmp_path, warn=warnings.append) == 10 and "never sealed" in warnings[0]
    (tmp_path / "10.sha256.json").write_text("{")
    assert checkpoint.latest(tmp_path, warn=warnings.append) is None


def test_a_half_written_step_is_not_seen_and_is_cleaned_up(tmp_path):
    checkpoint.save(tmp_path, 10, _state())
    (tmp_path / "20.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "20.orbax-checkpoint-tmp" / "file").write_text("half")
    assert checkpoint.latest(tmp_path) == 10
    checkpoint.save(tmp_path, 20, _state())
    assert checkpoint.latest(tmp_path) == 20


def test_a_missing_folder_has_no_latest_step(tmp_path):
    assert checkpoint.latest(tmp_path / "none") is None


def test_an_older_step_is_refused_and_nothing_is_lost(tmp_path):
    checkpoint.save(tmp_path, 20, _state())
    with pytest.raises(RunError, match="10 could not be written"):
        checkpoint.save(tmp_path, 10, _state())
    assert checkpoint.latest(tmp_path) == 20


def test_a_template_of_another_shape_is_refused(tmp_path):
    checkpoint.save(tmp_path, 10, _state())
    other = _state()._replace(params={"a": jnp.zeros(4), "b": {"w": jnp.ones((2, 2), jnp.bfloat16)}})
    with pytest.raises(UserError, match="does not fit"):
        checkpoint.restore(tmp_path, 10, other)
