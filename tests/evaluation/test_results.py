"""Guards the file of a run's evaluation."""

import pytest

from m3ae_tpu.errors import UserError
from m3ae_tpu.evaluation.results import EVALUATION, read_evaluation


def test_an_evaluation_that_is_not_there_is_empty_and_a_damaged_one_refused(tmp_path):
    assert read_evaluation(tmp_path) == {}
    (tmp_path / EVALUATION).write_text("{")
    with pytest.raises(UserError, match=r"is not JSON\. Write it again"):
        read_evaluation(tmp_path)
