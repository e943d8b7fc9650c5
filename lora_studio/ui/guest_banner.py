"""What a public demonstration says at its top: to guests what they may do, to the owner that all of it is theirs."""

import gradio as gr

from lora_studio.guests import ABOUT, hub_name
from lora_studio.ui import text
from lora_studio.ui.studio import Studio
from lora_studio.ui.theme import LOG_OUT

LOGIN = ' <a href="login/hub" target="_blank">Log in with Hugging Face</a> if it is yours.'


def build(studio: Studio) -> None:
    """Draws the banner; whom it is for is known when the page is opened."""
    login = studio.serving.hub_app is not None
    shown = gr.HTML(words(owned=False, login=login), elem_id="guests")

    def refresh() -> str:
        workspace = studio.workspace
        return words(owned=workspace.owned, login=login, name=hub_name(workspace.maker))

    gr.on(None, refresh, None, shown, show_progress="hidden", api_visibility="private")


def words(*, owned: bool, login: bool, name: str = "") -> str:
    """The banner as markup. `name` is that of a Hub account that does not own the studio."""
    about, link = ABOUT, LOGIN if login else ""
    if owned or name:
        link = f" {LOG_OUT}"
    if owned:
        about = "You own it: no limits are kept for you."
    elif name:
        about = f"You are logged in as {name}, whose it is not. {ABOUT}"
    return text.notice("This is a public demonstration.", about, link=link)
