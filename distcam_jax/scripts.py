"""What the scripts share: errors that the user can mend end in one line, and compiled programs are kept."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import jax
from absl import app, flags, logging

from distcam_jax.checks import one_line
from distcam_jax.cluster import Stopped

_MENDABLE = (ValueError, OSError, FloatingPointError)


def run(main: Callable[[], None]) -> None:
    """Parses the flags and runs a script.

    What XLA compiles is kept in the folder that the environment variable JAX_COMPILATION_CACHE_DIR names, by default
    `~/.cache/distcam_jax/compiled`, so that the same experiment starts faster the next time.

    Args:
        main: takes nothing; reads the flags.
    """
    name = Path(sys.argv[0]).name
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/distcam_jax/compiled"))

    def parse(argv):
        try:
            return flags.FLAGS(argv)
        except flags.Error as error:
            # A configuration's own error arrives as the last line of a traceback, after its type.
            lines = [line for line in str(error).splitlines() if line.strip()]
            text = lines[-1].partition(": ")[2] if "Traceback" in str(error) else one_line(error)
            sys.exit(f"{name}: {text}")
        except (AttributeError, KeyError) as error:  # of ml_collections, for an override that names no key
            inner = error.args[0] if error.args else ""  # an AttributeError holds a KeyError
            told = str(inner.args[0] if isinstance(inner, KeyError) else inner)
            key = told.splitlines()[0].strip("\"'") if told else ""
            sys.exit(f"{name}: the configuration has no key {key!r}; configs/ lists them")
        except _MENDABLE as error:
            sys.exit(f"{name}: {one_line(error)}")

    def guarded(_):
        logging.set_verbosity(logging.WARNING)
        try:
            main()
        except _MENDABLE as error:
            if jax.process_count() > 1:
                # The other processes wait for this one in a collective, and a regular exit would wait for them.
                print(f"{name}: process {jax.process_index()}: {one_line(error)}", file=sys.stderr, flush=True)
                os._exit(1)
            sys.exit(f"{name}: {one_line(error)}")
        except Stopped as stopped:
            print(f"{name}: {stopped}", file=sys.stderr)
            sys.exit(128 + stopped.signal_number)  # what a shell reports for the signal, so that no later command runs

    app.run(guarded, flags_parser=parse)
