"""What providers give to those who send: read and checked, apart from what sends by it."""

from urllib.parse import urlsplit

import msgspec
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey
from msgspec import Struct


class ServiceAccount(Struct, frozen=True):
    """What the file that Google gives for a service account says, as far as it is needed."""

    project_id: str
    client_email: str
    private_key: str
    token_uri: str = "https://oauth2.googleapis.com/token"
    private_key_id: str | None = None

    def __repr__(self) -> str:
        return f"ServiceAccount({self.project_id})"

    @classmethod
    def parse(cls, text: bytes) -> "ServiceAccount":
        """Read such a file.

        Raises:
            ValueError: it is something else; its text continues "it".
        """
        try:
            account = msgspec.json.decode(text, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ValueError(f"is no service account's JSON file: {error}") from None
        if not account.token_uri.startswith("https://") or not urlsplit(account.token_uri).hostname:
            raise ValueError("is no service account's JSON file: its token_uri is no https URL")
        try:
            key = RSAKey.import_key(account.private_key)
        except (JoseError, ValueError, TypeError):
            key = None
        if key is None or not key.is_private:
            raise ValueError(
                "is no service account's JSON file: its private_key can't be read"
            ) from None
        return account

    @property
    def place(self) -> tuple[str, int]:
        """Where its tokens are had."""
        parts = urlsplit(self.token_uri)
        return parts.hostname or "", parts.port or 443


def apns_key(pem: str | bytes) -> ECKey:
    """The key of a file that Apple gives (AuthKey_....p8).

    Raises:
        ValueError: it is something else; its text continues "it".
    """
    try:
        key = ECKey.import_key(pem)
    except (JoseError, ValueError, TypeError):
        key = None
    if key is None or not key.is_private or key.curve_name != "P-256":
        raise ValueError("is no private key on P-256 in PEM, as Apple's AuthKey_....p8 is")
    return key
