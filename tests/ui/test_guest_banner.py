"""What a public demonstration says at its top."""

from lora_studio.access.guests import ABOUT, LIMITS
from lora_studio.ui.theme import guest_banner


def test_guests_are_told_their_limits_and_the_owner_how_to_come_in() -> None:
    told = guest_banner(ABOUT, owned=False, login=True)
    assert str(LIMITS.rows) in told
    assert str(LIMITS.steps) in told
    assert 'href="login/hub"' in told
    assert "login" not in guest_banner(ABOUT, owned=False, login=False)


def test_the_owner_is_told_that_there_are_no_limits() -> None:
    told = guest_banner(ABOUT, owned=True, login=True)
    assert "no limits" in told
    assert 'action="logout"' in told


def test_who_logged_in_without_owning_it_is_told_so_and_can_log_out() -> None:
    told = guest_banner(ABOUT, owned=False, login=True, name="bert<")
    assert "logged in as bert&lt;, who does not own this studio" in told
    assert str(LIMITS.rows) in told
    assert 'action="logout"' in told
    assert "login/hub" not in told
    assert "Hugging Face Jobs" not in told
    allowed = guest_banner(ABOUT, owned=False, login=True, name="bert", allowed=True)
    assert "On the targets of Hugging Face Jobs you can train other models, paid by your own account." in allowed
