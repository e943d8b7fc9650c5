"""Files made for a download: written when asked for, linked without a copy, cleared away when newer ones are made."""

import secrets
import shutil
import time
from pathlib import Path
from urllib.parse import quote

import gradio as gr

from lora_studio.taken import OF
from lora_studio.ui import browser
from lora_studio.ui.text import escape, size
from lora_studio.workspace import Workspace, safe_name

KEPT_SECONDS = 3600.0


def place(workspace: Workspace) -> gr.HTML:
    """Where a link appears that the browser follows by itself; it stays for those whose browser asks first."""
    gr.set_static_paths([str(workspace.downloads_folder)])
    return gr.HTML(visible=True, js_on_load=browser.on_load("download"), elem_classes="download-place")


def new_file(workspace: Workspace, name: str) -> Path:
    """A path for a file of that name; what was made for downloads long ago is removed."""
    theirs = folder(workspace)
    theirs.mkdir(parents=True, exist_ok=True)
    for old in (*theirs.iterdir(), *workspace.downloads_folder.iterdir()):
        if time.time() - old.stat().st_mtime > KEPT_SECONDS:
            shutil.rmtree(old)
    workspace.check_room()
    new = theirs / secrets.token_hex(8)
    new.mkdir()
    return new / safe_name(name)


def folder(workspace: Workspace) -> Path:
    """Where files for whoever is answered now are put."""
    return workspace.downloads_folder / f"{OF}{workspace.maker}"


def link(path: Path) -> str:
    """The link to a file that was made."""
    words = f"{path.name} ({size(path.stat().st_size)})"
    return f'<a class="ls-download" download href="gradio_api/file={quote(str(path))}">{escape(words)}</a>'
