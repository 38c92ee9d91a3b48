"""Which versions there are, and environments made of them: uv, used as scripts/setup.sh uses it.

A resolution is one version per package, for this machine and this Python, of what `make test` needs: all five steps,
step 5's engine, the developers' tools. The newest one follows the ranges in the pyproject files and nothing else. The
locked one is made the same way with requirements.lock as constraints, so the two differ only in what has moved.
"""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

from shared.errors import UserError
from step5_serving.trace_viewer import program, uv_settings

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECTS = [Path("shared"), *sorted(path.relative_to(REPOSITORY) for path in REPOSITORY.glob("step[0-9]_*"))]
LOCK = REPOSITORY / "requirements.lock"

Resolution = Mapping[str, str]  # package → version


@dataclass(frozen=True)
class Change:
    """A package whose version differs. None: it is not there. asked_by: the folders whose pyproject.toml names it."""

    name: str
    locked: str | None
    newest: str | None
    asked_by: tuple[str, ...] = ()


class Versions:
    """Resolves and installs. beyond: without the upper bounds (`<4`) of our own pyproject files; exact pins stay.

    folder: where lifted copies of the pyproject files and lists of versions are written.
    """

    def __init__(self, folder: Path, *, beyond: bool = False) -> None:
        self.folder = folder
        self.root = _lifted(folder / "lifted") if beyond else REPOSITORY

    @cached_property
    def env(self) -> dict[str, str]:
        """The environment for uv, which reads nothing of what pip is told; finding out starts pip four times."""
        links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS") or _pip_setting("find-links")
        return os.environ | uv_settings() | {"UV_FIND_LINKS": ",".join(links.split())}

    def resolve(self, constraints: Path | None = None) -> Resolution:
        """Return the newest allowed versions, none of them outside of `constraints`.

        Raises UserError (exit code 1) with uv's reason when there are none, or the registry cannot be reached.
        """
        files = [str(self.root / project / "pyproject.toml") for project in [*PROJECTS, Path()]]
        limits = [] if constraints is None else ["--constraint", str(constraints)]
        text = self._uv(
            "compile", "--python", sys.executable, *engine(), "--extra", "dev",
            "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links", *limits, *files,
        )  # fmt: skip
        return pins(text)

    def hold(self, locked: Resolution, names: Iterable[str]) -> Resolution:
        """Return the newest versions with these packages at their locked ones; what depends on them follows."""
        path = self.folder / "holding.txt"
        path.write_text(pin_text({name: locked[name] for name in names}), encoding="utf-8")
        return self.resolve(path)

    def install(self, resolution: Resolution, environment: Path) -> Path:
        """Make the virtual environment hold exactly these versions and this repository; return its Python.

        One that exists is changed where it differs. Raises UserError (exit code 1) when uv cannot do it.
        """
        python = program(environment, "python")
        self._run([_uv_program(), "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(environment)])
        listed = self.folder / f"{environment.name}.txt"
        own = "".join(f"-e {REPOSITORY / project}\n" for project in PROJECTS)
        listed.write_text(pin_text(resolution) + own, encoding="utf-8")
        self._uv("sync", "--python", str(python), str(listed))
        return python.absolute()

    def _uv(self, verb: str, *arguments: str) -> str:
        """`uv pip verb`: with this machine's own wheels where there are any, else with the torch build that fits it."""
        command = [_uv_program(), "pip", verb, "--quiet", *arguments]
        if not self.env["UV_FIND_LINKS"]:
            found = subprocess.run(
                [*command, "--torch-backend=auto"], cwd=REPOSITORY, env=self.env, capture_output=True, text=True
            )
            if found.returncode == 0:
                return found.stdout
            # PyTorch's own index cannot be reached from everywhere: the normal registry has torch as well.
        return self._run(command)

    def _run(self, command: list[str]) -> str:
        found = subprocess.run(command, cwd=REPOSITORY, env=self.env, capture_output=True, text=True)
        if found.returncode != 0:
            said = found.stderr.strip()[-2000:]
            raise UserError(f"uv failed; when that is repaired, the same command goes on:\n{said}", exit_code=1)
        return found.stdout


def engine() -> list[str]:
    """The extra of step 5 that scripts/setup.sh would install: vLLM for this machine's CPU or GPU, Linux only."""
    if sys.platform != "linux":
        return []
    nvidia = any(Path(path).exists() for path in ("/proc/driver/nvidia/version", "/dev/nvidia0"))
    return ["--extra", "cuda" if nvidia else "cpu"]


def pins(text: str) -> dict[str, str]:
    """Read `name==version` lines, as uv writes them; markers after `;`, comments and other lines do not count."""
    return dict(re.findall(r"^([\w.-]+)==([^\s;#]+)", text, re.MULTILINE))


def pin_text(resolution: Resolution) -> str:
    """Write them again, one a line, in the alphabet's order."""
    return "".join(f"{name}=={version}\n" for name, version in sorted(resolution.items()))


def changes(locked: Resolution, newest: Resolution) -> list[Change]:
    """Return what differs: what a pyproject file asks for, then what comes with it, each in the alphabet's order."""
    asked = asked_by()
    found = [
        Change(name, locked.get(name), newest.get(name), tuple(asked.get(name, ())))
        for name in sorted({*locked, *newest})
        if locked.get(name) != newest.get(name)
    ]
    return sorted(found, key=lambda change: not change.asked_by)


def asked_by() -> dict[str, list[str]]:
    """Return the direct dependencies: package → folders whose pyproject.toml names it ("dev" for the tools' own)."""
    found: dict[str, list[str]] = {}
    for project in [*PROJECTS, Path()]:
        table = tomllib.loads((REPOSITORY / project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        wanted = [*table["dependencies"], *chain(*table.get("optional-dependencies", {}).values())]
        names = {re.split(r"[^\w.-]", entry)[0].lower().replace("_", "-") for entry in wanted}
        for name in names:
            found.setdefault(name, []).append(project.name or "dev")
    return found


def lift(text: str) -> str:
    """Take the upper bounds from a pyproject file: "openai>=3.54,<4" becomes "openai>=3.54"."""
    return re.sub(r"(>=[\w.]+),<[\w.]+", r"\1", text)


def _lifted(folder: Path) -> Path:
    """Copies of the pyproject files without upper bounds, in folders of the same names."""
    for project in [*PROJECTS, Path()]:
        target = folder / project / "pyproject.toml"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(lift((REPOSITORY / project / "pyproject.toml").read_text("utf-8")), encoding="utf-8")
    return folder


def _uv_program() -> str:
    path = program(Path(sys.executable).parents[1], "uv")
    if not path.exists():
        raise UserError(f"{path} is not there; start with: make drift")
    return str(path)


def _pip_setting(name: str) -> str:
    command = [sys.executable, "-m", "pip", "config", "get", f"global.{name}"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()
