"""`notify`: the webhook that is told when a job ends."""

import argparse
import getpass
import sys

from lora_studio.cli.output import print_json, say
from lora_studio.errors import StudioError
from lora_studio.jobs.notes import FORMATS, read_webhook, remove_webhook, save_webhook, send_test
from lora_studio.workspace import Workspace


def notify(workspace: Workspace, args: argparse.Namespace) -> int:
    """Shows, sets, tests or removes the webhook. The address is read from stdin, so that no list of commands has it."""
    if args.action == "set":
        url = getpass.getpass("Webhook URL: ") if sys.stdin.isatty() else sys.stdin.readline()
        if not url.strip():
            raise StudioError("No address was given.", "Type it, or pipe it: `lora-studio notify set < FILE`.")
        save_webhook(workspace, url, args.format)
    elif args.action == "test":
        say(send_test(workspace))
    elif args.action == "remove":
        remove_webhook(workspace)
        say("No more notes are sent.")
    webhook = read_webhook(workspace)
    if args.json:
        known = {"host": webhook.host, "format": webhook.shape, "error": webhook.error} if webhook else None
        print_json({"webhook": known})
    elif webhook is None:
        say("No webhook is set. `lora-studio notify set` sets one.")
    else:
        say(f"Notes are sent to {webhook.host} ({FORMATS[webhook.shape]}).")
        if webhook.error:
            say(f"The last note did not arrive: {webhook.error}")
    return 0
