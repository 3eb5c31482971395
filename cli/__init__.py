"""The command line `semair`: one module per group of commands."""

from __future__ import annotations

import signal
import sys

import typer
from rich.markup import escape

from ..errors import SemairError
from . import captures, loop, models, radios, runs, semantic, tools
from .common import INTERRUPTED, app, err

__all__ = ["app", "captures", "loop", "main", "models", "radios", "runs", "semantic", "tools"]


def main() -> None:
    """Entry point: errors a user can mend end as one line and an exit code, never as a traceback."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = app(prog_name="semair", standalone_mode=False)
    except SemairError as error:
        err.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        # Wrong usage. Where the classes of such errors live depends on the version of typer, what they have does not.
        if not (hasattr(error, "show") and hasattr(error, "exit_code")):
            raise
        error.show()
        code = error.exit_code
    if code == INTERRUPTED:
        err.print("stopped by Ctrl-C")
    sys.exit(code if isinstance(code, int) else 0)
