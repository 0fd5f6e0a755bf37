"""Running the command `gimp` in this process, and comparing folders before and after."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from gimp_ray.cli.commands import main


def gimp(*arguments: str | Path) -> Result:
    """The command in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def state(folder: Path) -> dict[str, object]:
    """Everything below a folder, hidden files too: contents, where links lead, and when files were written."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = path.readlink()
        elif path.is_dir():
            found[name] = "folder"
        else:
            found[name] = (path.stat().st_mtime_ns, path.read_bytes())
    return found


def assert_error(answer: Result, *words: str, has_file: bool = True) -> None:
    """Exit code 2 and a message that says what, where, what was found and what to do, with these words in it."""
    assert answer.exit_code == 2, (answer.output, answer.exception)
    assert isinstance(answer.exception, SystemExit)
    assert answer.stderr.startswith("error: ") and "Traceback" not in answer.output
    for word in words:
        assert word in answer.stderr, f"{word!r} is not in:\n{answer.stderr}"
    lines = [line.strip().partition(":")[0] for line in answer.stderr.splitlines()[1:]]
    for name in ["found", "fix"] + ["file"] * has_file:
        assert name in lines, f"no {name} in:\n{answer.stderr}"
