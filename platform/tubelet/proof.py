"""The proof that a run consumed every sample once, for people: what its folder holds, put side by side.

Everything comes from the run's folder: the plan from ``run.json``, what workers received from the audit files, what
happened from attempts and events. Nothing of it is a prediction.
"""

from collections import Counter
from collections.abc import Iterator

from clips import storage
from tubelet import audit
from tubelet.audit import AuditReport
from tubelet.config import UserError
from tubelet.ledger import Ledger, Part
from tubelet.run_directory import RunDirectory

_NAMED = 10


def plan_of(run: RunDirectory) -> tuple[Ledger, int]:
    """The run's ledger and clips per visit, as its record has them.

    Raises:
        UserError: there is no run, or one of before this was recorded.
    """
    where = storage.redact(run.uri)
    record = run.read_json("run.json")
    if record is None:
        there = ", ".join(storage.list_names(run.uri)[:5]) or "nothing"
        raise UserError(
            f"{where} holds no run (no run.json; there is: {there}); name a run's folder, <run.storage>/<run.name>"
        )
    if "plan" not in record:
        raise UserError(
            f"{where} was begun by an earlier version, which did not record its plan: start its command once more"
        )
    plan = dict(record["plan"])
    copies = plan.pop("copies")
    parts = tuple(Part(**part) for part in plan.pop("parts"))
    return Ledger(**plan, parts=parts), copies


def prove(run: RunDirectory) -> tuple[bool, list[str]]:
    """Whether the run is exact, and what shows it, as lines to read."""
    ledger, copies = plan_of(run)
    damaged = damaged_files(run)
    if damaged:  # what they say proves nothing
        return False, [
            f"damaged    {run.path('audit', n)} is not what its commit says" for n in damaged
        ]
    report = audit.verify(run, ledger=ledger, copies=copies)
    lines = [
        f"run        {storage.redact(run.uri)}",
        f"steps      {report.step} of {ledger.steps} up to the newest checkpoint",
        f"positions  {report.consumed} of {report.expected} consumed, "
        f"{len(report.lost)} lost, {len(report.repeated)} repeated",
        *_named("lost", report.lost, ledger),
        *_named("repeated", report.repeated, ledger),
        *_bad(report),
        *_attempts(run),
    ]
    lines.append("exact: every position once" if report.exact else "not exact: see above")
    return report.exact, lines


def damaged_files(run: RunDirectory) -> list[str]:
    """Audit files that differ from what the commits of the lineage list, as far as those still exist."""
    last = {attempt.number: step for attempt, step in run.lineage()}
    commits = [run.commit(name) for name in run.committed()]
    return [
        name
        for commit in commits
        if commit.step <= last.get(commit.attempt, -1)
        for name, expected in sorted(commit.audit.items())
        if storage.fingerprint(run.path("audit", name)) != expected
    ]


def _named(what: str, positions: list[int], ledger: Ledger) -> Iterator[str]:
    for position in positions[:_NAMED]:
        unit = ledger.unit(position // ledger.micro_batch)
        place = position % ledger.micro_batch
        yield (
            f"  {what} {position}: step {position // ledger.batch + 1}, "
            f"epoch {unit.epoch[place]}, row {unit.index[place]} of the selected ones"
        )
    if len(positions) > _NAMED:
        yield f"  and {len(positions) - _NAMED} more"


def _bad(report: AuditReport) -> Iterator[str]:
    if report.bad:
        yield f"bad clips  {len(report.bad)} kept their place and weighed nothing"
        for reason, count in Counter(report.bad).most_common(_NAMED):
            yield f"  {count:6} {reason}"


def _attempts(run: RunDirectory) -> Iterator[str]:
    """Each start of the workers: from which step, how many, and what ended it."""
    ends: dict[int, str] = {}
    for event in run.events():
        if event["event"] == "failure":
            ends[event["attempt"]] = f"failed at step {event['step']}: {event['message']}"
        elif event["event"] == "resize":
            ends[event["attempt"]] = f"saved at step {event['step']} for {event['workers']} workers"
    kept = {attempt.number: step for attempt, step in run.lineage()}
    for attempt in run.attempts():
        outcome = run.read_json("attempts", f"{attempt.number:05d}.outcome")
        end = ends.get(attempt.number) or (outcome["kind"] if outcome else "its driver ended")
        until = (
            f"counts up to step {kept[attempt.number]}"
            if attempt.number in kept
            else "counts nothing"
        )
        yield (
            f"attempt {attempt.number:2} from step {attempt.step} with {attempt.world_size} workers; {until}; {end}"
        )
