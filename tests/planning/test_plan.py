"""The planning program, for TPU slices that this machine does not have."""

import dataclasses
import importlib.util
import json
import os
import re

import jax
import jax.numpy as jnp
import pytest

from fsdit.config import apply_overrides, load_experiment
from fsdit.data.layout import DatasetInfo
from fsdit.errors import ConfigError
from fsdit.features.frozen import open_networks
from fsdit.planning import costs, plan, programs, report, target
from fsdit.planning.published import CODECS, ENCODERS, abstract_networks
from fsdit.planning.target import Target
from tests.conftest import experiment_file
from tests.programs import ROOT, environment, run_module

pytestmark = pytest.mark.medium

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, which compiles for TPUs, is not installed: pip install 'fsdit[tpu]'",
)
INFO = DatasetInfo(32, 3, splits={}, command="", seed=0)


@pytest.fixture
def experiment(tmp_path, small_config):
    """A small run whose dataset does not exist."""
    config = apply_overrides(small_config, {"data.dataset_dir": str(tmp_path / "nowhere")})
    return experiment_file(tmp_path / "small.py", config)


def run_plan(experiment, *flags, devices=8):
    size = () if any("dataset_dir" in f for f in flags) else ("--image_size=24", "--channels=1")
    return run_module("fsdit.plan", f"--config={experiment}", *size, *flags, devices=devices)


def error_of(done):
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--topology=v5e:3x5"], ["--topology=v5e:3x5", "v5e:2x2, 2x4, 4x4", "v6e", "local"]),
        (["--topology=local", "--mesh=3x1"], ["--topology=local", "3", "8 devices"]),
        (["--topology=local", "--mesh=-1x0"], ["config.mesh: an axis is a positive size"]),
        (["--topology=local", "--config.data.batch_size=12"], ["batch_size=12", "divisible by 8"]),
        (["--topology=local", "--steps=encode"], ["--steps=encode", "no frozen network"]),
        (
            ["--topology=local", "--config.model.attention=cudnn", "--config.model.dtype=bfloat16"],
            ["--topology=local", "attention=cudnn", "this device is cpu"],
        ),
    ],
    ids=["topology", "mesh", "empty mesh", "batch", "nothing to encode", "attention"],
)
def test_a_wrong_flag_gives_one_line(experiment, flags, words):
    line = error_of(run_plan(experiment, *flags))
    assert all(word in line for word in words)


def test_absent_libtpu_gives_one_line_that_says_how_to_get_it(experiment, tmp_path):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "libtpu.py").write_text("raise ImportError('not installed')\n")
    env = {name: value for name, value in environment().items() if name != "TPU_LIBRARY_PATH"}
    env["PYTHONPATH"] = os.pathsep.join(map(str, (hidden, ROOT)))
    flags = (f"--config={experiment}", "--topology=v5e:2x2")
    done = run_module("fsdit.plan", *flags, env=env)
    line = error_of(done)
    assert all(word in line for word in ("--topology=v5e:2x2", "libtpu", "fsdit[tpu]"))


@pytest.mark.large
def test_the_plan_for_this_machine_is_the_same_as_json_and_as_table(experiment, tmp_path):
    saved = tmp_path / "plan.json"
    flags = ("--topology=local", "--mesh=8x1,1x8", "--config.model.depth=1", f"--json={saved}")
    done = run_plan(experiment, *flags)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "planned for images of 24 x 24 x 1" in done.stdout
    assert "no published peaks are known here for 'cpu'" in done.stdout
    plans = json.loads(saved.read_text())["plans"]
    header = next(line for line in done.stdout.splitlines() if line.startswith("program"))
    start = done.stdout.splitlines().index(header)
    rows = [line.split() for line in done.stdout.splitlines()[start + 1 : start + 3]]
    assert len(plans) == len(rows) == 2
    for made, row in zip(plans, rows, strict=True):
        mesh = f"{made['mesh']['data']}x{made['mesh']['fsdp']}"
        assert row[:3] == [made["program"], "local", mesh]
        assert float(row[3]) == pytest.approx(made["compile_seconds"], abs=0.06)
        shown = dict(zip(("code", "arguments", "temporaries", "total"), row[5:9], strict=True))
        for name, text in shown.items():
            assert float(text) == pytest.approx(made["memory"][name] / 1e9, rel=0.01, abs=1e-9)
        assert float(row[10]) == pytest.approx(made["costs"]["flops"] / 1e12, rel=0.01)
        assert float(row[11]) == pytest.approx(made["costs"]["bytes"] / 1e9, rel=0.01)
    train = {p["mesh"]["fsdp"]: p for p in plans}
    kinds = {n: {c["kind"] for c in p["costs"]["collectives"]} for n, p in train.items()}
    assert kinds[1] == {"all-reduce"}
    assert "all-gather" in kinds[8]
    assert train[8]["memory"]["arguments"] < train[1]["memory"]["arguments"]


def test_a_dataset_that_is_there_decides_the_image_size(glyphs, experiment):
    done = run_plan(
        experiment,
        *("--topology=local", "--steps=sample", f"--config.data.dataset_dir={glyphs}"),
        devices=1,
    )
    assert done.returncode == 0, done.stderr
    assert "no dataset" not in done.stdout
    assert "sample on local: 1 x cpu" in done.stdout


def test_model_flops_are_those_of_a_step_that_computes_nothing_again(small_config):
    local = Target("local", tuple(jax.devices()))
    info, found = DatasetInfo(24, 1, splits={}, command="", seed=0), {}
    for remat in ("none", "full"):
        config = apply_overrides(small_config, {"model.remat": remat, "model.depth": "1"})
        (program,) = programs.lower("train", config, info, local)
        found[remat] = program.model_flops, program.lowered.cost_analysis()["flops"]
    assert found["full"][0] == found["none"][0] > 0
    assert found["full"][1] > found["none"][1]


@needs_libtpu
@pytest.mark.large
def test_a_tpu_slice_is_planned_for_without_a_tpu(experiment, tmp_path):
    saved = tmp_path / "plan.json"
    done = run_plan(experiment, "--topology=v5e:2x4", f"--json={saved}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "train on v5e:2x4: 8 x TPU v5 lite, mesh data x fsdp = 8x1" in done.stdout
    (made,) = json.loads(saved.read_text())["plans"]
    assert made["fits"] is True
    assert made["costs"]["unknown_loops"] == 0
    assert 0 < made["utilisation"] < 1
    assert made["bound"] == "memory"
    assert made["seconds"]["memory"] == pytest.approx(made["costs"]["bytes"] / 819e9)
    assert {c["kind"] for c in made["costs"]["collectives"]} == {"all-reduce"}


@needs_libtpu
@pytest.mark.large
def test_a_real_dump_of_a_small_step_predicts_its_time(experiment, tmp_path):
    saved = tmp_path / "plan.json"
    done = run_plan(experiment, "--topology=v5e:2x4", "--predict", f"--json={saved}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (made,) = json.loads(saved.read_text())["plans"]
    assert made["predicted"]["trouble"] is None
    found = made["predicted"]["prediction"]
    assert found["seconds"] > max(made["seconds"]["arithmetic"], made["seconds"]["links"])
    assert 0 < made["mfu"] < 1
    named = {part["name"] for part in found["parts"]}
    assert {"MLP", "self-attention: projections", "collectives", "optimizer and EMA"} <= named
    errors = {check["name"]: check["error"] for check in made["predicted"]["checks"]}
    assert set(errors) == {"bfloat16 product", "copy", "all-gather"}
    assert max(map(abs, errors.values())) < 0.05
    assert f"predicted time   {found['seconds'] * 1e3:.2f} ms" in done.stdout


@pytest.fixture(scope="module")
def slice_of_four():
    """The TPU slice v5e:2x2, in a process whose own backend is the CPU."""
    pytest.importorskip("libtpu", reason="libtpu, which compiles for TPUs, is not installed")
    (made,) = target.open_targets(["v5e:2x2"])
    return made


def on_tpu(made: Target, function, *shapes):
    sharding = jax.sharding.SingleDeviceSharding(made.devices[0])
    arguments = [jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=sharding) for s in shapes]
    return jax.jit(function).lower(*arguments).compile()


def scanned(x, ws):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]


def unrolled(x, ws):
    for i in range(ws.shape[0]):
        x = jnp.tanh(x @ ws[i])
    return x


def test_counting_agrees_with_the_tpu_compilers_own(slice_of_four):
    shapes = (256, 512), (6, 512, 512)
    plain, loop = (on_tpu(slice_of_four, f, *shapes) for f in (unrolled, scanned))
    counted, own = costs.count(plain), plain.cost_analysis()
    assert (counted.flops, counted.bytes) == (own["flops"], own["bytes accessed"])
    assert "while(" in loop.as_text()
    assert costs.count(loop).flops == pytest.approx(counted.flops, rel=0.02)
    assert costs.count(loop).unknown_loops == 0


def small_plan(**memory) -> plan.Plan:
    sizes = {"arguments": 0, "outputs": 0, "aliased": 0, "temporaries": 0, "code": 0} | memory
    work = costs.Costs(394e9, 8.19e9, (costs.Collective("all-reduce", 1, 10**8, 10**8),), 0)
    chip = plan.find_chip("TPU v5 lite")
    held = plan.Memory(**sizes)
    return plan.Plan("train", "v5e:2x4", "TPU v5 lite", (8, 1), 128, 1.0, held, work, chip)


def test_the_roofline_follows_the_published_peaks():
    made = small_plan()
    assert made.seconds == pytest.approx({"arithmetic": 0.002, "memory": 0.01, "links": 0.0005})
    assert made.bound == "memory"
    assert made.utilisation == pytest.approx(0.2)


def test_a_table_of_meshes_names_the_best_that_fits_and_why():
    whole = small_plan(temporaries=17 * 10**9)
    work = dataclasses.replace(whole.costs, bytes=4.095e9)
    sends = costs.Collective("all-gather", 2, 10**9, 10**9)
    split = dataclasses.replace(work, collectives=(*work.collectives, sends))
    fits = dataclasses.replace(whole.memory, temporaries=0)
    plans = [
        dataclasses.replace(whole, costs=work),
        dataclasses.replace(whole, mesh=(4, 2), costs=split, memory=fits),
        dataclasses.replace(whole, mesh=(1, 8), memory=fits),
    ]
    assert [p.seconds_in_turn for p in plans] == pytest.approx([0.0055, 0.0105, 0.0105])
    plans[2] = dataclasses.replace(plans[2], costs=dataclasses.replace(whole.costs, bytes=7e9))
    shown = report.text(plans)
    assert re.search(r"train +v5e:2x4 +4x2 +all-gather +2 +1.000 +1.000 +5.000\n", shown)
    best = shown.splitlines()[-1]
    assert "mesh 1x8 is best of those that fit" in best
    assert best.endswith("1x8 9.0 = memory 8.5 + links 0.5, 4x2 10.5 = memory 5.0 + links 5.5")


def test_a_plan_that_does_not_fit_says_what_to_change():
    made = small_plan(arguments=9 * 10**9, outputs=9 * 10**9, aliased=8 * 10**9, temporaries=7**11)
    assert made.memory.total == 10 * 10**9 + 7**11
    assert small_plan(temporaries=16 * 10**9).fits
    made = small_plan(arguments=9 * 10**9, temporaries=8 * 10**9)
    assert made.fits is False
    shown = report.listing(made)
    assert "DOES NOT FIT" in shown
    assert "mesh.fsdp" in shown
    assert "remat" in shown
    assert "mesh.fsdp" not in plan.advice(small_plan(arguments=10**9, temporaries=16 * 10**9))


def test_abstract_networks_equal_the_real_ones_without_values(frozen_config, photos):
    """Abstract parameters have the shapes, types and structure of those read from a directory."""
    spec, frozen = open_networks(frozen_config, INFO)
    abstract, shapes = abstract_networks(frozen_config, INFO)
    assert abstract.features == spec.features
    assert abstract.latent_shape == spec.latent_shape
    for real, shape in (
        (frozen.codec, shapes.codec),
        (frozen.encoder_params, shapes.encoder_params),
    ):
        assert jax.tree.map(lambda a: (a.shape, a.dtype), shape) == jax.tree.map(
            lambda a: (a.shape, a.dtype), real
        )
    assert jax.tree.leaves(shapes.codec)


def test_published_networks_have_their_published_sizes():
    """The networks are the vision towers of SigLIP 2 B/16-224 and DINOv2 B/14, and the SD VAE."""
    config = load_experiment(str(ROOT / "experiments" / "miniimagenet_b2.py"))
    info = DatasetInfo(224, 3, splits={}, command="", seed=0)
    counts = {}
    for location in ENCODERS:
        changed = apply_overrides(config, {"model.encoder.location": location})
        spec, frozen = abstract_networks(changed, info)
        counts[location] = sum(leaf.size for leaf in jax.tree.leaves(frozen.encoder_params))
        assert spec.features.dim == frozen.encoder.dim
    assert counts["google/siglip2-base-patch16-224"] == 92_884_224
    assert counts["facebook/dinov2-base"] == 86_580_480 - 768  # without the mask token
    assert spec.latent_shape == (28, 28, 4)
    assert sum(leaf.size for leaf in jax.tree.leaves(frozen.codec)) == 83_653_863
    assert set(CODECS) >= {config.model.codec.location}


def test_an_unknown_codec_is_named():
    config = load_experiment(str(ROOT / "experiments" / "miniimagenet_b2.py"))
    changed = apply_overrides(config, {"model.codec.location": "nobody/vae"})
    with pytest.raises(ConfigError, match=r"model\.codec\.location=nobody/vae.*sd-vae-ft-ema"):
        abstract_networks(changed, DatasetInfo(224, 3, splits={}, command="", seed=0))
