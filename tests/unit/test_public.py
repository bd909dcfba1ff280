"""The public names, their module, and the package as a program."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
import tomllib
from types import FunctionType, MethodType
from typing import Any

import pytest

import bridgehead
from support.pages import ROOT, SITE


def test_every_public_name_is_defined() -> None:
    assert [name for name in bridgehead.__all__ if not hasattr(bridgehead, name)] == []


def test_importing_bridgehead_imports_no_optional_library() -> None:
    found = (
        "print([name for name in ('IPython', 'anyio', 'anywidget', 'numpy', 'pandas', 'psutil') "
        "if name in sys.modules])"
    )
    code = f"import sys, jupyter_client; {found}; import bridgehead; {found}"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    before, after = ran.stdout.splitlines()
    assert after == before


@pytest.mark.parametrize("name", bridgehead.__all__)
def test_a_public_name_says_bridgehead_as_its_module(name: str) -> None:
    public = getattr(bridgehead, name)
    assert (public.__module__, public.__qualname__) == ("bridgehead", name)
    assert pickle.loads(pickle.dumps(public)) is public


@pytest.mark.parametrize("name", bridgehead.__all__)
def test_a_method_says_the_public_class_that_has_it(name: str) -> None:
    """Python's warnings show these names: "coroutine 'Bridge.call' was never awaited"."""
    public = getattr(bridgehead, name)
    for method in vars(public) if isinstance(public, type) else ():
        function = getattr(public, method)
        if isinstance(function, FunctionType | MethodType) and not method.startswith("_"):
            assert function.__module__ == "bridgehead"
            assert function.__qualname__ == f"{name}.{method}"
            assert pickle.loads(pickle.dumps(function)) == function


def test_what_a_private_base_gives_to_one_public_class_says_its_name() -> None:
    shown = [bridgehead.Bridge.call, bridgehead.Bridge.run, bridgehead.Bridge.attach]
    shown += [bridgehead.SyncBridge.call, bridgehead.SyncBridge.attach, bridgehead.Fleet.submit]
    assert [one.__qualname__ for one in shown] == [
        *("Bridge.call", "Bridge.run", "Bridge.attach"),
        *("SyncBridge.call", "SyncBridge.attach", "Fleet.submit"),
    ]
    assert {one.__module__ for one in shown} == {"bridgehead"}
    assert pickle.loads(pickle.dumps(shown)) == shown
    with pytest.raises(TypeError, match=r"^Bridge\.call\(\) missing 1 required"):
        bridgehead.Bridge.call(None)  # type: ignore[call-overload,arg-type]


def test_the_package_runs_as_the_command_line() -> None:
    command = [sys.executable, "-m", "bridgehead", "--version"]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    assert ran.stdout == f"bridgehead {bridgehead.__version__}\n"
    assert ran.stderr == ""


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def test_the_tests_run_on_each_python_of_the_classifiers() -> None:
    [matrix] = re.findall(r"python: (\[.*\])", (ROOT / ".github/workflows/ci.yml").read_text())
    claimed = [
        one for name in project()["classifiers"] if (one := name.split(" :: ")[-1])[:2] == "3."
    ]
    assert claimed
    assert set(claimed) <= set(json.loads(matrix))
    assert claimed[0] == project()["requires-python"].removeprefix(">=")


def test_the_page_describes_each_extra() -> None:
    """Its table has what each brings; extras for work on bridgehead itself are named below it."""
    page = (SITE / "guides/install.md").read_text()
    extras = {name: names(wanted) for name, wanted in project()["optional-dependencies"].items()}
    rows = re.findall(r"^\| `?(\w+)`? \| (.*?) \|", page, re.MULTILINE)
    brings = {name: set(re.findall(r"[a-z_]+", text)) for name, text in rows if name != "extra"}
    assert brings.pop("none") == names(project()["dependencies"])
    table = [name for name in brings if name not in ("all", "bench")]
    assert {name: brings[name] for name in table} == {name: extras[name] for name in table}
    assert extras["all"] == {f"bridgehead[{','.join(sorted(table))}]", "numpy", "pandas"}
    assert "| `all` | all of the above, numpy and pandas |" in page
    assert extras["bench"] == {"bridgehead[cli]", "matplotlib", "numpy", "pandas"}
    assert "| `bench` | the extra `cli`, matplotlib, numpy, pandas |" in page
    assert {*extras} == {*brings, "docs", "peers", "test"}
    assert "`docs`, `peers` and `test` are for work on bridgehead itself" in page


def names(requirements: list[str]) -> set[str]:
    """Return what requirements name, without versions."""
    return {re.split("[>;= ]", one)[0] for one in requirements}
