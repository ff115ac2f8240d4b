"""Tokens, and the CPU that it takes to find out whose one is: the first time, and again."""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import NamedTuple

from joserfc import jws
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from bench.load import CHANNEL
from msgpush.adapters.auth.keys import Keys, private_key, secret_key
from msgpush.adapters.auth.tokens import Tokens, registry_for

Key = OctKey | RSAKey | ECKey | OKPKey

_TOKENS = 2_000
SECRET = "a secret of the bench, 32 bytes or more"


class TokenCost(NamedTuple):
    """Microseconds of CPU that a token takes."""

    algorithm: str
    first: float
    again: float


def token_costs() -> list[TokenCost]:
    """The costs of tokens by each algorithm, in this process."""
    costs = [_cost("HS256", OctKey.import_key(SECRET), Keys([secret_key(SECRET)]))]
    for key in (
        RSAKey.generate_key(2048),
        ECKey.generate_key("P-256"),
        OKPKey.generate_key("Ed25519"),
    ):
        signing = private_key(key.as_pem(private=True).decode())
        costs.append(_cost(signing.algorithm, signing.key, Keys([signing.verifying])))
    return costs


def publisher_token() -> str:
    """An HS256 token by `SECRET`, of one who may publish what the load client sends."""
    permissions = {"publish": [CHANNEL, "service:bench"]}
    return _token("HS256", OctKey.import_key(SECRET), "publisher", permissions)


def _cost(algorithm: str, key: Key, keys: Keys) -> TokenCost:
    permissions = {"subscribe": ["kb:*", "imports"]}
    tokens = [_token(algorithm, key, f"user{n}", permissions) for n in range(_TOKENS)]
    reader = Tokens(keys)
    return TokenCost(algorithm, *(asyncio.run(_time(reader, tokens)) for _ in range(2)))


def _token(algorithm: str, key: Key, subject: str, permissions: dict[str, list[str]]) -> str:
    now = int(time.time())
    claims = {"sub": subject, "iat": now, "exp": now + 600, "msgpush": permissions}
    header = {"alg": algorithm, "typ": "JWT"}
    return jws.serialize_compact(
        header, json.dumps(claims), key, registry=registry_for({algorithm})
    )


async def _time(reader: Tokens, tokens: Sequence[str]) -> float:
    began = time.process_time()
    for token in tokens:
        await reader.read(token)
    return 1e6 * (time.process_time() - began) / len(tokens)
