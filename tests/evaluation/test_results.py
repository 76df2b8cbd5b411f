"""results.json, including files that older versions wrote."""

import dataclasses
import json

import numpy as np
import pytest

from fsdit.errors import DataError
from fsdit.evaluation.results import read_results, write_results
from tests.evaluation import results_example as example

# Class names that equal old names of fields; reading old results must not rename them.
NAMES = ["drawings", "judge", "samples"]


def with_old_names(values):
    """Return the content of results.json under the names that older versions used."""
    values = json.loads(json.dumps(values))
    values["judge"] = values.pop("critic")
    protocol = values["protocol"]
    protocol["judge"] = protocol.pop("critic")
    protocol["drawings_per_episode"] = protocol.pop("samples_per_episode")
    del values["about"]
    for table in values["tables"]:
        table["drawings"] = table.pop("samples")
        for sets in table["scores"].values():
            if "samples" in sets:
                sets["drawings"] = sets.pop("samples")
    return values


def test_results_of_an_older_version_are_read(tmp_path):
    results = example.results(np.random.default_rng(0), NAMES)
    write_results(tmp_path / "results.json", results)
    values = json.loads((tmp_path / "results.json").read_text())
    assert values["tables"][0]["scores"]["top1"].keys() >= {"samples", "real"}
    old = tmp_path / "old.json"
    old.write_text(json.dumps(with_old_names(values)))
    assert "critic" not in old.read_text() and old.read_text() != json.dumps(values)
    assert read_results(tmp_path / "results.json") == results
    assert read_results(old) == dataclasses.replace(results, about={})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tables": 3}', '{"tables": [{}]}', "null"])
def test_any_other_file_gives_a_one_line_error(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(
        DataError, match=r"results\.json: not the results of an evaluation"
    ) as error:
        read_results(tmp_path / "results.json")
    assert "\n" not in str(error.value)
