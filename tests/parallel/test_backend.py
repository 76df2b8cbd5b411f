import re

import jax
import pytest

from fsdit.config import Config, ModelConfig
from fsdit.errors import ConfigError
from fsdit.parallel import backend, sharding
from tests.conftest import experiment_file
from tests.programs import run_module

OTHER = {
    "jax_enable_x64": True,
    "jax_explicit_x64_dtypes": "error",
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_default_matmul_precision": "highest",
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 3,
    "jax_enable_custom_prng": True,
    "jax_legacy_prng_key": "error",
    "jax_debug_nans": True,
    "jax_debug_infs": True,
    "jax_debug_key_reuse": True,
    "jax_check_tracer_leaks": True,
    "jax_disable_jit": True,
    "jax_transfer_guard": "disallow",
    "jax_enable_preemption_service": False,
}


@pytest.mark.parametrize(("name", "value"), OTHER.items(), ids=OTHER.keys())
def test_a_setting_that_changes_numbers_is_pinned_with_a_warning(name, value, capsys):
    before = jax.config.values[name]
    jax.config.update(name, value)
    try:
        backend.pin_settings()
        assert jax.config.values[name] == before
    finally:
        jax.config.update(name, backend.PINNED[name])
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"warning: {name.upper()}={value} is not used: .*", line)
    backend.pin_settings()
    assert not capsys.readouterr().err


# (error of jax.devices(), word of our error, or None where JAX's error is passed on).
FAILURES = {
    "no plugin": (AssertionError(), "plugin"),
    "no device": (RuntimeError("Unable to initialize backend 'tpu': NOT_FOUND"), "NOT_FOUND"),
    "a peer is lost": (RuntimeError("DEADLINE_EXCEEDED: barrier timed out"), None),
}


@pytest.mark.parametrize(("failure", "word"), FAILURES.values(), ids=FAILURES.keys())
def test_a_missing_backend_is_distinguished_from_a_lost_process(monkeypatch, failure, word):
    def devices():
        raise failure

    monkeypatch.setattr(jax, "devices", devices)
    if word is None:
        with pytest.raises(RuntimeError, match="DEADLINE"):
            backend.open_devices()
    else:
        with pytest.raises(ConfigError, match=rf"JAX_PLATFORMS=cpu: no such backend.*{word}"):
            backend.open_devices()


@pytest.mark.medium
@pytest.mark.parametrize(
    ("program", "flags"),
    [
        ("fsdit.main", ["--config={experiment}", "--workdir={workdir}"]),
        ("fsdit.plan", ["--config={experiment}", "--topology=local"]),
    ],
)
def test_programs_name_a_backend_that_is_not_here(
    tmp_path, monkeypatch, small_config, program, flags
):
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    experiment = experiment_file(tmp_path / "experiment.py", small_config)
    names = {"experiment": experiment, "workdir": tmp_path / "run"}
    result = run_module(program, *(flag.format(**names) for flag in flags), real=True)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: JAX_PLATFORMS=nonsense: no such backend here (")
    assert not (tmp_path / "run").exists()


A100, H100 = "NVIDIA A100-SXM4-40GB", "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("kind", "capability", "num_heads", "message"),
    [
        (A100, (8, 0), 12, None),
        (H100, (9, 0), 3, None),
        ("NVIDIA B200", (10, 0), 3, None),
        (A100, (8, 0), 3, "heads of width 256 need a GPU of compute capability 9.0 (H100)"),
        (A100, (8, 0), 4, ": change config.model.num_heads=4, 6 would"),
        ("Tesla T4", (7, 5), 12, "8.0 (A100) or later, and this device is Tesla T4: set config"),
        ("TPU v5 lite", (0, 0), 12, "8.0 (A100) or later, and this device is TPU v5 lite: set"),
    ],
)
def test_attention_by_cudnn_is_refused_on_devices_that_lack_it(
    kind, capability, num_heads, message
):
    config = Config(model=ModelConfig(num_heads=num_heads, attention="cudnn"))
    if message is None:
        backend.check_cudnn(config, kind, capability)
        return
    with pytest.raises(ConfigError, match=f"^config.model.attention=cudnn.*{re.escape(message)}"):
        backend.check_cudnn(config, kind, capability)


def test_a_cpu_has_no_compute_capability_and_the_plain_attention_needs_none():
    (device, *_) = jax.devices()
    assert backend.cuda_capability(device) == (0, 0)
    backend.check_attention(Config(), [device])


@pytest.mark.parametrize("kernel", ["cudnn", "packed"])
def test_a_mesh_for_another_kernel_of_attention_is_not_made_of_this_machines_cpus(kernel):
    with pytest.raises(ConfigError, match=f"attention={kernel} .*this device is cpu: set config"):
        sharding.make_mesh(Config(model=ModelConfig(attention=kernel)))
