"""Secrets in files, as Kubernetes, Docker and systemd hand them over."""

LARGEST = 64 * 1024  # bytes; no key nor password comes near


def read_secret(path: str) -> str:
    """The secret that a file holds, without the one line end that editors leave behind it.

    That is `\\n` or `\\r\\n`; other white space belongs to the secret.

    Raises:
        ValueError: there is none; its text says why, and shows nothing of the file.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise ValueError(f"it can't be read: {error.strerror}") from None
    except ValueError:
        raise ValueError("no file has such a name") from None
    if len(raw) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST} bytes")
    if raw.startswith(b"\xef\xbb\xbf"):
        raise ValueError(
            "it begins with a byte order mark, which would be a part of the secret: save it without"
        )
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    secret = text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text
    if not secret:
        raise ValueError("it is empty")
    return secret
