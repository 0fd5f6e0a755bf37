"""What the engine notes in a run's record: stages that are done, restarts of workers, how many train now."""

from __future__ import annotations

from typing import Any

from gimp_ray.runs.folder import RunFolder, timestamp


def note_stage(run: RunFolder, name: str, seconds: float) -> None:
    """Note that a stage is done, and what it took."""

    def change(record: dict[str, Any]) -> None:
        stage = record.setdefault("stages", {}).setdefault(name, {"seconds": 0.0})
        stage["seconds"] = round(stage["seconds"] + seconds, 1)
        stage["status"] = "done"

    run.update(change)


def note_restart(run: RunFolder, reason: str) -> bool:
    """Note that the run's present attempt goes on from its last checkpoint; not twice for one start of workers.

    Returns:
        Whether that was news.
    """
    news = []

    def change(record: dict[str, Any]) -> None:
        restarts = _restarts(record)
        if restarts is not None and (not restarts or "workers" in restarts[-1]):
            restarts.append(_restart(reason))
            news.append(True)

    run.update(change)
    return bool(news)


def note_workers(run: RunFolder, count: int) -> None:
    """Note how many workers train now; where there were others before, that is a restart or belongs to one."""

    def change(record: dict[str, Any]) -> None:
        restarts = _restarts(record)
        if restarts is None:
            return
        attempt = record["attempts"][-1]
        before, attempt["workers"] = attempt.get("workers"), count
        if restarts and "workers" not in restarts[-1]:
            restarts[-1]["workers"] = count
        elif before not in (None, count):
            reason = f"the cluster has room for {count} worker(s) now, {before} before"
            restarts.append(_restart(reason) | {"workers": count})

    run.update(change)


def _restarts(record: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Those of the attempt that runs; None where work is no attempt of the run, such as `gimp embed`."""
    attempts = record.get("attempts")
    if not attempts or attempts[-1].get("status") != "running":
        return None
    found: list[dict[str, Any]] = attempts[-1].setdefault("restarts", [])
    return found


def _restart(reason: str) -> dict[str, Any]:
    return {"time": timestamp(), "reason": reason}
