"""Logging in with an account of the Hugging Face Hub, as a Space offers it: who somebody is, and nothing else.

OpenID Connect by Authlib. What must be remembered between the two halves of a login is in a signed cookie of minutes.
"""

from authlib.integrations.starlette_client import OAuth, OAuthError
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from lora_studio.errors import StudioError
from lora_studio.models.hub import HubApp

MINUTES = 10


class HubLogin:
    """The two halves of a login: away to the Hub, and back from it."""

    def __init__(self, app: HubApp) -> None:
        self._app = app
        self._oauth = OAuth()
        self._oauth.register(
            "hub",
            client_id=app.client_id,
            client_secret=app.client_secret,
            client_kwargs={"scope": "openid profile", "code_challenge_method": "S256"},
            server_metadata_url=f"{app.provider}/.well-known/openid-configuration",
        )

    @property
    def owner(self) -> str:
        """The account that owns the studio."""
        return self._app.owner

    def middleware(self) -> Middleware:
        """Keeps the state of a login that is under way; belongs around the door."""
        https = self._app.address.startswith("https:")
        return Middleware(
            SessionMiddleware,
            secret_key=self._app.client_secret,
            session_cookie="lora-studio-login",
            max_age=60 * MINUTES,
            same_site="none" if https else "lax",  # a Space is shown in a frame of another site
            https_only=https,
        )

    async def away(self, request: Request) -> Response:
        """To the Hub, which asks the person and sends them back."""
        answer: RedirectResponse = await self._oauth.hub.authorize_redirect(request, self._app.callback)
        return answer

    async def back(self, request: Request) -> str:
        """The account's name. Raises `StudioError` where the Hub does not vouch for anybody."""
        try:
            token = await self._oauth.hub.authorize_access_token(request)
        except OAuthError as error:
            raise StudioError(f"The Hub did not log you in: {error.description or error.error}", "Try again.") from None
        finally:
            request.session.clear()
        return str(token["userinfo"]["preferred_username"])
