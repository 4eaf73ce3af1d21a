"""What other processes do to a run directory in its tests."""

from tubelet.run_directory import RunDirectory


def begin_attempts(task: tuple[str, int]) -> list[int]:
    """Begin so many attempts, one after another; returns their numbers."""
    uri, count = task
    run = RunDirectory(uri)
    return [run.begin_attempt(ray_run="other", world_size=1).number for _ in range(count)]
