"""Whose fault it is when a prediction ends: the storage's, which the same command survives, or ours."""

import pytest
from ray.data.exceptions import UserCodeException
from ray.exceptions import RayTaskError

from clips import StorageError
from tubelet.file_jobs import storage_failure


def raised(error: Exception, *, cause: Exception) -> Exception:
    with pytest.raises(type(error)) as caught:
        raise error from cause
    return caught.value


def test_a_failing_storage_is_found_inside_of_what_ray_makes_of_it() -> None:
    failure = StorageError("unreachable", "cannot reach the storage of s3://bucket")
    task = RayTaskError("decode", "traceback", failure)
    assert storage_failure(task) is failure
    assert storage_failure(raised(UserCodeException("UDF failed"), cause=task)) is failure


def test_any_other_failure_is_not_the_storages() -> None:
    bug = KeyError("frames")
    assert storage_failure(bug) is None
    assert storage_failure(RayTaskError("decode", "traceback", bug)) is None
    loop = ValueError("one")
    loop.__cause__ = loop
    assert storage_failure(loop) is None
