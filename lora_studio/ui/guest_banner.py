"""What a public demonstration says at its top: to guests what they may do, to the owner that all of it is theirs."""

import gradio as gr

from lora_studio.guests import ABOUT
from lora_studio.ui import text
from lora_studio.ui.studio import Studio

LOGIN = ' <a href="login/hub" target="_blank">Log in with Hugging Face</a> if it is yours.'
OUT = ' <a href="logout">Log out</a>'


def build(studio: Studio) -> None:
    """Draws the banner; whom it is for is known when the page is opened."""
    shown = gr.HTML(words(owned=False, login=studio.serving.hub_app is not None), elem_id="guests")

    def refresh() -> str:
        return words(owned=studio.workspace.owned, login=studio.serving.hub_app is not None)

    gr.on(None, refresh, None, shown, show_progress="hidden", api_visibility="private")


def words(*, owned: bool, login: bool) -> str:
    """The banner as markup."""
    about, link = ("You own it: no limits are kept for you.", OUT) if owned else (ABOUT, LOGIN if login else "")
    return text.notice("This is a public demonstration.", about).replace("</span></div>", f"{link}</span></div>")
