import json

import pytest

from fsdit import config as configs
from fsdit.config import (
    Config,
    DataConfig,
)
from fsdit.errors import ConfigError

VALID = Config(data=DataConfig(dataset_dir="somewhere"))


IMPORTS = "from fsdit.config import *\n\n\ndef get_config():\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("x = 1\n", r"defines no get_config\(\)"),
        ("get_config = 3\n", r"defines no get_config\(\)"),
        ("def get_config():\n    return {}\n", "must return"),
        ("def get_config():\n    return Config()\n", r":2: NameError: name 'Config'"),
        ("def get_config(:\n", r":1: SyntaxError: "),
        ("x = '\x00'\n", "null bytes"),
        (b"x = '\xff'\n", "utf-8"),
        ("\n\nimport no_such_module\n", ":3: ModuleNotFoundError: .*no_such_module"),
        ("from fsdit.config import Confik\n", ":1: ImportError: .*Confik"),
        ("import sys\nsys.exit(3)\n", ":2: SystemExit: 3"),
        ("def get_config(size):\n    pass\n", "TypeError: .*size"),
        (IMPORTS + "    return get_config()\n", ":5: RecursionError"),
        (
            IMPORTS + "    return Config(train=TrainConfig(num_stepss=3))\n",
            r":5: config\.train\.num_stepss: no such field; did you mean .*num_steps\?$",
        ),
        (
            IMPORTS + "    return Config(data=DataConfig(batch_size='many'))\n",
            r":5: config\.data\.batch_size: .*integer.* \(got 'many'\)$",
        ),
        (
            IMPORTS + "    return Config(sampling=SamplingConfig(guidance_scale=float('nan')))\n",
            r":5: config\.sampling\.guidance_scale must be a finite number, got nan$",
        ),
        (IMPORTS + "    return dit('M')\n", ":5: KeyError: 'M'"),
        (
            IMPORTS + "    return load_experiment(__file__.replace('mine', 'other'))\n",
            r":5: --config=.*other\.py: no such file",
        ),
    ],
)
def test_an_experiment_file_that_gives_no_configuration_is_named(tmp_path, text, message):
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=rf"^--config=.*mine\.py.*{message}") as error:
        configs.load_experiment(str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting"),
        ("[]", "a configuration is a JSON object, not "),
        ("[" * 100_000, "recursion"),
        ('{"seed": ' + "9" * 5000 + "}", "digits"),
        ('{"seed": 1e400}', r"config\.seed must be a finite number"),
        ('{"sampling": {"guidance_scale": NaN}}', r"config\.sampling\.guidance_scale must be"),
        ('{"model": [1]}', r"config\.model: "),
        ('{"model": ' + "[" * 900 + "]" * 900 + "}", r"config\.model: "),
        ('{"colour": "red"}', r"config\.colour: no such field"),
        (b"\xff", "utf-8"),
    ],
)
def test_a_configuration_in_json_that_is_wrong_is_named(tmp_path, text, message):
    file = tmp_path / "config.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=rf"^--config=.*config\.json: .*{message}") as error:
        configs.load_experiment(str(file))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_the_configuration_that_a_run_saved_is_an_experiment_file(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(configs.to_dict(VALID)))
    assert configs.load_experiment(file) == VALID


def test_a_folder_is_no_experiment_file(tmp_path):
    with pytest.raises(ConfigError, match=f"--config={tmp_path}: no file"):
        configs.load_experiment(tmp_path)


def test_an_experiment_file_gives_its_configuration(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from fsdit.config import Config\n\n\ndef get_config():\n    return Config(seed=5)\n"
    )
    assert configs.load_experiment(str(file)) == Config(seed=5)


def test_a_derived_configuration_differs_only_in_the_named_settings(tmp_path):
    (tmp_path / "base.py").write_text(
        IMPORTS + "    return Config(seed=5, data=DataConfig(shots=3, flip=False))\n"
    )
    (tmp_path / "mine.py").write_text(
        IMPORTS + "    return derive(__file__, 'base.py', name='mine', data={'shots': 1})\n"
    )
    expected = Config(name="mine", seed=5, data=DataConfig(shots=1, flip=False))
    assert configs.load_experiment(tmp_path / "mine.py") == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            "derive(__file__, 'base.py', data={'shot': 1})",
            "config.data.shot: no such field; .*s",
        ),
        ("derive(__file__, 'base.py', dat={'shots': 1})", "config.dat.shots: no such field"),
        ("derive(__file__, 'base.py', data=3)", "config.data: no such field"),
        ("derive(__file__, 'base.py', data={'shots': -1})", "config.data.shots must not be neg"),
        ("derive(__file__, 'none.py', seed=1)", "none.py: no such file"),
    ],
)
def test_a_wrong_derivation_is_named_with_its_line(tmp_path, call, message):
    (tmp_path / "base.py").write_text(IMPORTS + "    return Config()\n")
    (tmp_path / "mine.py").write_text(IMPORTS + f"    return {call}\n")
    with pytest.raises(ConfigError, match=rf"^--config=.*mine\.py:5: .*{message}") as error:
        configs.load_experiment(tmp_path / "mine.py")
    assert "\n" not in str(error.value)
