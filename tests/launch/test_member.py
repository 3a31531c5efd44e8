"""Jobs that version 0.1.0 submitted, which name its modules."""

from __future__ import annotations

import pickle

from esper.sweep.job import MemberJob


def test_a_pickled_job_of_version_0_1_0_can_be_loaded() -> None:
    pickled = b"cesper.launch.member\nMemberJob\n."
    assert pickle.loads(pickled) is MemberJob
