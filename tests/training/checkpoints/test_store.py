import dataclasses
import errno
import functools
import shutil
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from fsdit.config import MeshConfig
from fsdit.errors import CheckpointError
from fsdit.training.checkpoints import listing, store
from fsdit.training.checkpoints.metadata import UnreadableCheckpointError
from fsdit.training.telemetry.running import Running
from tests.conftest import small_run
from tests.training.checkpoints import saved_runs
from tests.training.checkpoints.saved_runs import (
    DAMAGES,
    IDENTITY,
    RUNNING,
    FewArrays,
    _empty,
    _flip_largest,
    assert_equal,
    at_step,
    mesh_of,
)

pytestmark = pytest.mark.medium

saved_run = functools.partial(saved_runs.saved_run, model=FewArrays)
fresh_state = functools.partial(saved_runs.fresh_state, model=FewArrays)
template_of = functools.partial(saved_runs.template_of, model=FewArrays)


@pytest.fixture
def config():
    return small_run(Path("unread"))


def new_writer(workdir, config):
    return store.Checkpoints(workdir, config, IDENTITY, mesh_of(config), 0)


@pytest.mark.parametrize(
    ("shape", "method"),
    [
        ((2, 4), "adamw"),
        pytest.param((8, 1), "adamw", marks=pytest.mark.large),
        pytest.param((1, 8), "adamw", marks=pytest.mark.large),
        pytest.param((2, 4), "muon", marks=pytest.mark.large),
    ],
)
def test_restores_bitwise_on_any_mesh(tmp_path, config, shape, method):
    config = dataclasses.replace(
        config,
        mesh=MeshConfig(data=8, fsdp=1),
        optimizer=dataclasses.replace(config.optimizer, method=method),
    )
    states = saved_run(tmp_path, config)
    _, _, template = template_of(dataclasses.replace(config, mesh=MeshConfig(*shape)))
    restored = store.restore(tmp_path, template, set_aside=True)
    assert_equal(restored.state, states[10])
    assert (restored.step, restored.next_index) == (10, 160)
    assert Running.from_json(restored.running) == dataclasses.replace(
        Running.fresh(), loss_average=0.1
    )
    jax.tree.map(lambda leaf, t: _same_sharding(leaf, t), restored.state, template)


def _same_sharding(leaf, template):
    assert leaf.sharding == template.sharding


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder for the run that the tests of damages copy, and its states once it is made."""
    return tmp_path_factory.mktemp("kept") / "run", {}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_step_is_set_aside_and_the_one_before_is_used(
    tmp_path, config, kept, capsys, damage
):
    folder, states = kept
    if not states:
        states.update(saved_run(folder, config))
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "checkpoints" / "10")
    _, _, template = template_of(config)
    restored = store.restore(tmp_path, template, set_aside=True)
    assert restored.step == 5
    assert_equal(restored.state, states[5])
    assert "10 is damaged" in capsys.readouterr().out
    assert (tmp_path / "checkpoints" / "10.damaged").is_dir()


def folders(workdir):
    return sorted(p.name for p in (workdir / "checkpoints").iterdir())


def test_files_that_cannot_be_opened_stop_the_run_and_change_nothing(tmp_path, config, monkeypatch):
    saved_run(tmp_path, config)
    _empty(tmp_path / "checkpoints" / "10")
    template = template_of(config)[2]

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    def refuse_as_tensorstore(*_, **__):
        raise ValueError("PERMISSION_DENIED: Failed to open \"x\" [os_error_code='13']")

    for holder, name, by in (
        (Path, "read_bytes", refuse),
        (ocp.StandardCheckpointHandler, "restore", refuse_as_tensorstore),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(holder, name, by)
            for set_aside in (True, False):
                with pytest.raises(UnreadableCheckpointError, match="nothing has been changed"):
                    store.restore(tmp_path, template, set_aside=set_aside, start_over=True)
        assert folders(tmp_path) == ["10", "5"]
    with monkeypatch.context() as patched:  # full device memory is no damage to a file
        out_of_memory = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        restore = mock.Mock(side_effect=out_of_memory)
        patched.setattr(ocp.StandardCheckpointHandler, "restore", restore)
        with pytest.raises(jax.errors.JaxRuntimeError):
            store.restore(tmp_path, template, set_aside=True)
    assert folders(tmp_path) == ["10", "5"]


def test_if_no_step_is_valid_nothing_is_renamed_without_the_flag(tmp_path, config):
    saved_run(tmp_path, config)
    for step in ("5", "10"):
        _flip_largest(tmp_path / "checkpoints" / step)
    template = template_of(config)[2]
    with pytest.raises(CheckpointError, match=r"steps 5, 10, and none.*--start_over"):
        store.restore(tmp_path, template, set_aside=True)
    assert store.restore(tmp_path, template, set_aside=False, start_over=True) is None
    assert folders(tmp_path) == ["10", "5"]
    assert store.restore(tmp_path, template, set_aside=True, start_over=True) is None
    assert folders(tmp_path) == ["10.damaged", "5.damaged"]


def test_values_may_change_while_they_are_written(tmp_path, config, monkeypatch):
    state, writer = fresh_state(config), new_writer(tmp_path, config)
    save = mock.Mock()
    monkeypatch.setattr(ocp.CheckpointManager, "save", save)
    running = {**RUNNING, "bin_losses": [1.0] * 10}
    writer.save(at_step(state, 5), 5, 80, running)
    running["bin_losses"][0] = running["loss_average"] = 7.0
    held = save.call_args.kwargs["args"]["meta"].item
    assert held["running"] == {**RUNNING, "bin_losses": [1.0] * 10, "bin_counts": [0.0] * 10}


def test_a_first_save_is_read_back(tmp_path, config):
    # Orbax treats [1] as a pattern, and cannot read back what it writes there.
    with pytest.raises(CheckpointError, match=r"5 was written and cannot be read back"):
        saved_run(tmp_path / "lr[1]", config, steps=(5,))


def test_a_step_set_aside_can_be_saved_again(tmp_path, config):
    saved_run(tmp_path, config)
    _empty(tmp_path / "checkpoints" / "10")
    template = template_of(config)[2]
    restored = store.restore(tmp_path, template, set_aside=True)
    writer = store.Checkpoints(tmp_path, config, IDENTITY, mesh_of(config), restored.step)
    writer.save(at_step(restored.state, 10), 10, 160, {})
    writer.finish()
    assert store.restore(tmp_path, template, set_aside=True).step == 10


def test_a_reader_leaves_a_damaged_step_where_it_is(tmp_path, config):
    saved_run(tmp_path, config)
    _empty(tmp_path / "checkpoints" / "10")
    before = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    restored = store.restore(tmp_path, template_of(config)[2], set_aside=False)
    assert restored.step == 5
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == before


def test_leftovers_of_an_interrupted_save_are_no_checkpoint(tmp_path, config):
    saved_run(tmp_path, config)
    source = tmp_path / "checkpoints" / "10"
    source.rename(source.with_name("15.orbax-checkpoint-tmp"))
    assert store.restore(tmp_path, template_of(config)[2], set_aside=True).step == 5


def test_an_empty_workdir_restores_nothing(tmp_path, config):
    assert store.restore(tmp_path, template_of(config)[2], set_aside=True) is None


def test_keeps_the_last_n_and_every_mth(tmp_path, config):
    policy = dataclasses.replace(config.checkpoint, keep_last=2, keep_every=10)
    saved_run(tmp_path, dataclasses.replace(config, checkpoint=policy), steps=(5, 10, 15, 20, 25))
    assert listing.steps(tmp_path) == [25, 20, 10]


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (OSError(errno.ENOSPC, "No space left"), CheckpointError),
        (jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: barrier"), jax.errors.JaxRuntimeError),
    ],
)
def test_a_lost_process_is_not_taken_for_a_full_disk(tmp_path, config, monkeypatch, raised, seen):
    state, writer = fresh_state(config), new_writer(tmp_path, config)
    monkeypatch.setattr(ocp.CheckpointManager, "save", mock.Mock(side_effect=raised))
    with pytest.raises(seen):
        writer.save(state, 5, 80, {})


def test_fingerprint_sees_each_flipped_bit_and_each_swap_on_any_mesh(config):
    state = fresh_state(dataclasses.replace(config, mesh=MeshConfig(data=8, fsdp=1)))
    expected = store.fingerprint(state)
    _, _, other = template_of(dataclasses.replace(config, mesh=MeshConfig(data=1, fsdp=8)))
    moved = jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, other))
    assert store.fingerprint(moved) == expected

    kernel = np.array(state.params["embed"]["kernel"])
    rng = np.random.default_rng(0)
    for _ in range(20):
        row, column = rng.integers(kernel.shape[0]), rng.integers(kernel.shape[1])
        flipped = kernel.copy()
        flipped.view(np.uint32)[row, column] ^= np.uint32(1 << rng.integers(32))
        assert _fingerprint_of_kernel(state, flipped) != _fingerprint_of_kernel(state, kernel)
    assert _fingerprint_of_kernel(state, kernel[::-1]) != _fingerprint_of_kernel(state, kernel)
    swapped = kernel[:, [1, 0, *range(2, kernel.shape[1])]]
    assert _fingerprint_of_kernel(state, swapped) != _fingerprint_of_kernel(state, kernel)


def _fingerprint_of_kernel(state, kernel):
    embed = {**state.params["embed"], "kernel": jnp.asarray(kernel)}
    return store.fingerprint(state.replace(params={**state.params, "embed": embed}))


def test_another_configuration_is_refused_with_the_field(tmp_path, config):
    saved_run(tmp_path, config)
    wider = dataclasses.replace(config, model=dataclasses.replace(config.model, hidden_size=64))
    with pytest.raises(CheckpointError, match=r"config.model.hidden_size is 64.* has 32"):
        listing.check_resumable(tmp_path, wider, IDENTITY)
    for name in ("dataset", "encoder", "codec"):
        with pytest.raises(CheckpointError, match=f"another {name} than config"):
            listing.check_resumable(tmp_path, config, {**IDENTITY, name: "other"})
    moved = dataclasses.replace(config, mesh=MeshConfig(data=1, fsdp=8))
    assert listing.check_resumable(tmp_path, moved, IDENTITY) == []
    # A lower learning rate is the advice after a run has diverged.
    lower = dataclasses.replace(config.optimizer, peak_learning_rate=1e-4)
    assert listing.check_resumable(
        tmp_path, dataclasses.replace(config, optimizer=lower), IDENTITY
    ) == ["config.optimizer.peak_learning_rate was 0.001 up to step 10, from now on it is 0.0001"]
