"""Policies as files."""

import json
from pathlib import Path

import pytest

from app.errors import InvalidRequest
from app.judgement.policy import Policy, read_policy


def test_a_policy_file_names_only_what_differs(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text(json.dumps({"recovery_margin": 0.05}))
    assert read_policy(file) == Policy(recovery_margin=0.05)


@pytest.mark.parametrize("text", ["{", '{"recovery_margins": 1}', '{"recovery_margin": 7}'])
def test_a_policy_file_that_is_wrong_is_refused_with_file_and_field(tmp_path: Path, text: str) -> None:
    file = tmp_path / "policy.json"
    file.write_text(text)
    with pytest.raises(InvalidRequest) as error:
        read_policy(file)
    assert error.value.errors
    assert error.value.errors[0].file == str(file)
