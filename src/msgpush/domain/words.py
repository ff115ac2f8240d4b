"""Words that acknowledge one message for its user, without any other credentials.

One goes with each Web Push, encrypted to the browser, so that its service worker can acknowledge
what was clicked on without a page, which alone has a token. It is a MAC over user, key and its end:
nothing of it is kept."""

import base64
import hashlib
import hmac
import re

LENGTH = 24  # bytes of the MAC
PATTERN = "[0-9]{1,12}[.][A-Za-z0-9_-]{32}"


class Words:
    """Makes words, and checks them.

    Args:
        secret: the same at all instances; only a key that is derived from it is used.
    """

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.digest(secret, b"msgpush acknowledgement word", "sha256")

    def make(self, user: str, key: str, until: int) -> str:
        """The word for a message.

        Args:
            until: seconds since 1970 until which it is good.
        """
        return f"{until}.{self._mac(user, key, until)}"

    def good(self, word: str, user: str, key: str, now: float) -> bool:
        """True for the word of this very message, while it is good."""
        if not re.fullmatch(PATTERN, word):
            return False
        until, _, mac = word.partition(".")
        return hmac.compare_digest(mac, self._mac(user, key, int(until))) and now < int(until)

    def _mac(self, user: str, key: str, until: int) -> str:
        parts = (each.encode(errors="surrogatepass") for each in (user, key))
        said = b"\n".join(b"%d:%b" % (len(each), each) for each in parts)
        mac = hmac.digest(self._key, b"%d\n%b" % (until, said), hashlib.sha256)
        return base64.urlsafe_b64encode(mac[:LENGTH]).decode()
