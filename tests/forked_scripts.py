"""Runs scripts, each in a fork of one process that has imported what they need: python -m tests.forked_scripts.

Every line of standard input is JSON: a command `[script, argument, ...]` and its environment. A line answers it, with
the return code and what the script wrote to standard error. Imports take far longer than what ends at a wrong argument.
"""

import json
import os
import runpy
import sys
import tempfile
import traceback
from pathlib import Path


def run_as_main(command: list[str]) -> int:
    """Does with a script what the interpreter does, and gives the return code."""
    sys.argv, sys.path[0] = command, str(Path(command[0]).resolve().parent)
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def run_in_fork(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Return code and standard error of a script."""
    with tempfile.TemporaryFile() as errors:
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(errors.fileno(), 2)
            os.environ.update(environment)
            code = run_as_main(command)
            sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        errors.seek(0)
        return code, errors.read().decode()


if __name__ == "__main__":
    import distcam_jax.evaluators  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(run_in_fork(*json.loads(line))), flush=True)
