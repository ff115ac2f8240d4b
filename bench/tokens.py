"""The cost of finding out whose a token is: the first time, and again."""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import NamedTuple

from joserfc import jws
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from msgpush.adapters.auth.keys import Keys, private_key, secret_key
from msgpush.adapters.auth.tokens import Tokens, registry_for

_TOKENS = 2_000
_SECRET = "a secret of the bench, 32 bytes or more"


class TokenCost(NamedTuple):
    """Microseconds of CPU that a token takes."""

    algorithm: str
    first: float
    again: float


def token_costs() -> list[TokenCost]:
    """The costs of tokens by each algorithm, in this process."""
    costs = [_cost("HS256", OctKey.import_key(_SECRET.encode()), Keys([secret_key(_SECRET)]))]
    for key in (
        RSAKey.generate_key(2048),
        ECKey.generate_key("P-256"),
        OKPKey.generate_key("Ed25519"),
    ):
        signing = private_key(key.as_pem(private=True).decode())
        costs.append(_cost(signing.algorithm, signing.key, Keys([signing.verifying])))
    return costs


def _cost(algorithm: str, key: OctKey | RSAKey | ECKey | OKPKey, keys: Keys) -> TokenCost:
    tokens = [_token(algorithm, key, number) for number in range(_TOKENS)]
    reader = Tokens(keys)
    return TokenCost(algorithm, *(asyncio.run(_time(reader, tokens)) for _ in range(2)))


def _token(algorithm: str, key: OctKey | RSAKey | ECKey | OKPKey, number: int) -> str:
    now = int(time.time())
    claims = {
        "sub": f"user{number}",
        "iat": now,
        "exp": now + 600,
        "msgpush": {"subscribe": ["kb:*", "imports"]},
    }
    header = {"alg": algorithm, "typ": "JWT"}
    return jws.serialize_compact(
        header, json.dumps(claims), key, registry=registry_for({algorithm})
    )


async def _time(reader: Tokens, tokens: Sequence[str]) -> float:
    began = time.process_time()
    for token in tokens:
        await reader.read(token)
    return 1e6 * (time.process_time() - began) / len(tokens)
