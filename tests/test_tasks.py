import importlib
import subprocess
import sys
from pathlib import Path

import ml_collections
import pytest

from distcam_jax.evaluators import run_task, tasks

ROOT = Path(__file__).parents[1]
NAMES = ("ablations", "explanations", "table1")


@pytest.fixture
def calls(monkeypatch):
    """A task "some", and what it was called with."""
    called = []

    def some(config, folder):
        called.append((config, folder))
        return {"figures": 1}

    monkeypatch.setattr(tasks, "TASKS", {"some": some, "other": lambda config, folder: {}})
    return called


def test_tasks_are_those_of_the_configurations():
    for name in NAMES:
        assert importlib.import_module(f"configs.{name}").get_config().task == name
    assert sorted(tasks.TASKS) == list(NAMES)


@pytest.mark.parametrize(("output", "folder"), [(None, "runs/some"), ("", "runs/some"), ("a/b", "a/b")])
def test_run_task_hands_over_the_configuration_and_the_folder(output, folder, calls, capsys):
    config = ml_collections.ConfigDict({"task": "some", "seed": 3})
    assert run_task(config, output) == {"figures": 1}
    assert calls == [(config, Path(folder))]
    assert capsys.readouterr().out.endswith(f"figures: {folder}/metrics.json\n")


@pytest.mark.parametrize(("values", "shown"), [({"task": "sum"}, "'sum'"), ({"task": "Some"}, "'Some'"), ({}, "None")])
def test_run_task_lists_the_known_ones(values, shown, calls):
    with pytest.raises(ValueError, match=rf"unknown task {shown}; choose one of some, other"):
        run_task(ml_collections.ConfigDict(values))
    assert not calls


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"compare": ["a"]}, "--compare means nothing to the task some, .*; leave it out$"),
        ({"weights": "a.pth", "prototypes": None}, "--weights means nothing to the task some, .*; leave it out$"),
        ({"prototypes": "p", "compare": ["a", "b"]}, "--prototypes, --compare mean nothing .*; leave them out$"),
        ({"workdir": "a"}, "--workdir means nothing .*; leave it out, and name the folder .* with --output$"),
    ],
)
def test_refuse_flags_names_them_and_the_mend(flags, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        tasks.refuse_flags(ml_collections.ConfigDict({"task": "some"}), flags)


def test_refuse_flags_lets_flags_pass_that_were_not_given():
    config = ml_collections.ConfigDict({"task": "some"})
    assert tasks.refuse_flags(config, {"workdir": None, "weights": "", "compare": [], "prototypes": None}) is None


def test_evaluate_script_refuses_flags_beside_a_task(tmp_path):
    arguments = ["--config=configs/table1.py", f"--output={tmp_path / 'out'}", "--weights=a.pth", "--compare=b"]
    command = [sys.executable, str(ROOT / "evaluate.py"), *arguments, "--prototypes=c"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().split("\n")[-1] == (
        "evaluate.py: --weights, --compare, --prototypes mean nothing to the task table1, whose networks the "
        "configuration names; leave them out"
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
