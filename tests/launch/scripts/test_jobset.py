"""The JobSet for Kubernetes, validated by schemas."""

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.launch.scripts.commands import LAUNCH

pytestmark = pytest.mark.medium

# The fields of JobSet's v1alpha2 definition that jobset.yaml uses; no package has the definition.
RULE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "action"],
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
        "action": {"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
        "onJobFailureReasons": {
            "type": "array",
            "items": {
                "enum": [
                    *("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes"),
                    *("MaxFailedIndexesExceeded", "PodFailurePolicy"),
                ]
            },
        },
        "targetReplicatedJobs": {"type": "array", "items": {"type": "string"}},
    },
}
JOBSET = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["replicatedJobs"],
            "properties": {
                "failurePolicy": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "maxRestarts": {"type": "integer", "minimum": 0},
                        "restartStrategy": {"enum": ["Recreate", "BlockingRecreate"]},
                        "rules": {"type": "array", "items": RULE},
                    },
                },
                "replicatedJobs": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["name", "template"],
                        "properties": {
                            "name": {"type": "string"},
                            "replicas": {"type": "integer", "minimum": 1},
                            "template": {"type": "object", "required": ["spec"]},
                        },
                    },
                },
            },
        },
    },
}


def job_of(jobset: dict) -> dict:
    """Return the Job of a JobSet with the version, kind and name that the template leaves out."""
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}}
    return {**job, **jobset["spec"]["replicatedJobs"][0]["template"]}


@pytest.fixture
def jobset():
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


def test_the_jobset_is_valid(jobset):
    jsonschema.validate(jobset, JOBSET)
    kubernetes_validate.validate(job_of(jobset), "1.33", strict=True)


def test_a_wrong_jobset_fails_validation(jobset):
    job_of(jobset)["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["operator"] = ["In"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job_of(jobset), "1.33", strict=True)
    jobset["spec"]["failurePolicy"]["maxRestart"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(jobset, JOBSET)


def test_the_jobset_restarts_on_75_and_not_on_a_users_error(jobset):
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    container = spec["template"]["spec"]["containers"][0]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [1])
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # Kubernetes requires it
    assert spec["backoffLimit"] == 0
    (failing,) = jobset["spec"]["failurePolicy"]["rules"]
    assert (failing["action"], failing["onJobFailureReasons"]) == (
        "FailJobSet",
        ["PodFailurePolicy"],
    )
    grace = int(container["args"][0].partition("=")[2])
    assert grace < spec["template"]["spec"]["terminationGracePeriodSeconds"]
