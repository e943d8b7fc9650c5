"""`ui`: serves the page. The only place outside the page itself that imports it."""

import argparse
import socket
import threading
import time
import webbrowser

from lora_studio.access.accounts import reachable
from lora_studio.access.serving import Serving, from_flags
from lora_studio.cli.output import say
from lora_studio.workspace import Workspace

_OPEN_WITHIN_SECONDS = 30.0


def serve(workspace: Workspace, args: argparse.Namespace) -> int:
    """Serves the page until Ctrl-C."""
    how = from_flags(args)
    say("Starting LoRA Studio…")  # importing the page's libraries takes seconds
    from lora_studio.ui.serve import launch

    if args.open:
        threading.Thread(target=_open_when_up, args=(how,), daemon=True).start()
    launch(workspace, how)
    return 0


def _open_when_up(how: Serving) -> None:
    """Opens the browser as soon as the page's port answers."""
    end = time.monotonic() + _OPEN_WITHIN_SECONDS
    while time.monotonic() < end:
        try:
            socket.create_connection((reachable(how.host).strip("[]"), how.port), timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            # Without the token: other users of the machine see the browser's command. The page asks for it.
            webbrowser.open(f"http://{reachable(how.host)}:{how.port}")
            return
