"""Run the kits' programs, with stand-ins for the runtimes of the boards."""

import os
import subprocess
import sys
from pathlib import Path

RUNTIMES = Path(__file__).parent / "runtimes"


def run(script, *arguments, runtime=None, **environment):
    """Return the exit status, the output and the errors of a program."""
    path = [str(RUNTIMES / runtime), str(RUNTIMES)] if runtime else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), **environment}
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout, done.stderr
