"""`msgpush token`: what it issues is accepted, and what it says of a token is what the service
would say.
"""

import io
import time
from pathlib import Path
from typing import Any

import pytest

from msgpush.entrypoints import cli
from tests.support.tokens import (
    ED448,
    ED25519,
    OTHER_SECRET,
    P256,
    P384,
    P521,
    RSA,
    SECRET,
    KeyServer,
    claims,
    private_pem,
    public_jwk,
    public_pem,
    signed,
    token,
    unsigned,
)

ENVIRON = {"JWT_SECRET": SECRET}


def run(capsys: pytest.CaptureFixture[str], *argv: str, **environ: str) -> tuple[int, str, str]:
    status = cli.run(["token", *argv], environ)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_what_is_issued_is_accepted_and_allows_what_was_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = [
        "--sub",
        "bob",
        "--subscribe",
        "kb:*",
        "--subscribe",
        "imports",
        "--publish",
        "service:a",
        "--users",
        "acme-*",
        "--users",
        "desk",
        "--admin",
    ]
    status, issued, _ = run(capsys, "issue", *asked, "--lifetime", "2h", "--jti", "t1", **ENVIRON)
    assert status == 0
    status, told, _ = run(capsys, "inspect", issued.strip(), **ENVIRON)
    assert status == 0
    lines = told.splitlines()
    assert any(line.startswith("accepted: until 20") for line in lines)
    seconds = next(
        int(line.split(", for ")[1].split()[0]) for line in lines if line.startswith("accepted")
    )
    assert 7_190 <= seconds <= 7_200
    assert "  subject     bob" in lines
    assert "  listens to  broadcast, user:bob, kb:*, imports" in lines
    assert "  publishes   service:a" in lines
    assert "  acts for    bob, acme-*, desk" in lines
    assert "  admin       yes" in lines
    assert '"jti": "t1"' in told


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_a_token_is_read_from_stdin(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(token("bob") + "\n"))
    status, told, _ = run(capsys, "inspect", *arguments, **ENVIRON)
    assert (status, "  publishes   nothing" in told) == (0, True)


def test_what_a_token_says_does_not_speak_to_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, told, _ = run(capsys, "inspect", token("e\x1b[31mvil"), **ENVIRON)
    assert status == 0
    assert "\x1b" not in told
    assert r'  subject     "e\u001b[31mvil"' in told


def test_a_token_within_its_leeway_is_said_to_be_that(capsys: pytest.CaptureFixture[str]) -> None:
    status, told, _ = run(capsys, "inspect", token("bob", lifetime=-5), **ENVIRON)
    assert (status, "and now for as long as JWT_LEEWAY says" in told) == (0, True)


REFUSED = [
    ("x", "the token is no signed JSON Web Token"),
    (
        token("bob", OTHER_SECRET),
        "the token's signature is wrong: it was made with another key, or changed",
    ),
    (unsigned(claims("bob")), 'the token\'s algorithm is "none"; accepted are HS256'),
    (token("bob", lifetime=-900), "the token has expired: its exp is "),
    (
        token("bob", subscribe="*"),
        "the token's claims are wrong: Expected `array`, got `string` - at `$.msgpush.subscribe`",
    ),
    (token("bob", aud="x"), 'the token is for others: its aud is "x", and no JWT_AUDIENCE is set'),
]


@pytest.mark.parametrize(("text", "why"), REFUSED, ids=[why for _, why in REFUSED])
def test_why_a_token_is_refused_is_told(
    capsys: pytest.CaptureFixture[str], text: str, why: str
) -> None:
    status, told, _ = run(capsys, "inspect", text, **ENVIRON)
    assert status == 1
    assert told.splitlines()[-1].startswith(f"refused: {why}")
    # What it says stands before that, so that its issuer can be found.
    assert ('claims:   {"sub": "bob"' in told) == (text != "x")


@pytest.mark.parametrize("key", [RSA, P256, P384, P521, ED25519, ED448], ids=range(6))
def test_a_private_key_issues_what_its_public_key_verifies(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, key: Any
) -> None:
    file = tmp_path / "private.pem"
    file.write_text(private_pem(key))
    status, issued, _ = run(
        capsys, "issue", "--sub", "bob", "--key", str(file), "--kid", "one", JWT_AUDIENCE="msgpush"
    )
    assert status == 0
    environ = {"JWT_AUDIENCE": "msgpush"}
    status, told, _ = run(
        capsys, "inspect", issued.strip(), JWT_PUBLIC_KEY=public_pem(key), **environ
    )
    assert (status, '"kid": "one"' in told, '"aud": "msgpush"' in told) == (0, True, True)
    with KeyServer(public_jwk(key, "one")) as keys:
        assert run(capsys, "inspect", issued.strip(), JWKS_URL=keys.url, **environ)[0] == 0
        keys.keys = (public_jwk(key, "two"),)
        status, told, _ = run(capsys, "inspect", issued.strip(), JWKS_URL=keys.url, **environ)
        assert (status, 'key "one" for' in told) == (1, True)
        keys.status = 500
        status, told, _ = run(capsys, "inspect", issued.strip(), JWKS_URL=keys.url, **environ)
        assert (status, "can't be fetched now: JWKS_URL: the answer's status is 500" in told) == (
            1,
            True,
        )


def test_the_keys_of_an_issuer_are_found_by_its_name_and_what_is_wrong_there_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with KeyServer(public_jwk(RSA, "one"), public_jwk(P256, "enc", use="enc")) as keys:
        path = "/.well-known/openid-configuration"
        keys.documents[path] = {"issuer": keys.origin, "jwks_uri": keys.url}
        text = signed(claims("bob", iss=keys.origin), RSA, kid="one")
        assert run(capsys, "inspect", text, JWT_ISSUER=keys.origin)[0] == 0
        other = signed(claims("bob", iss=keys.origin), P256, kid="enc")
        told = run(capsys, "inspect", other, JWT_ISSUER=keys.origin)[1].splitlines()[-1]
        assert (
            'key "enc" for ES256 is not known: in the set of JWT_ISSUER it is for encryption'
            in told
        )
        keys.documents[path] = {"issuer": f"{keys.origin}/", "jwks_uri": keys.url}
        status, told, _ = run(capsys, "inspect", text, JWT_ISSUER=keys.origin)
        assert (status, f"so set JWT_ISSUER={keys.origin}/" in told) == (1, True)
        keys.documents = {"/elsewhere": {}}
        told = run(capsys, "inspect", text, JWT_ISSUER=keys.origin)[1].splitlines()[-1]
        assert (
            f"JWT_ISSUER: its metadata at {keys.origin}{path}: the answer's status is 404" in told
        )


def test_a_token_is_issued_for_the_first_audience_in_the_claim_that_names_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text(SECRET + "\n")
    environ = {"JWT_SECRET_FILE": str(tmp_path / "secret"), "JWT_AUDIENCE": '["push", "api"]'}
    for name, more in (("aud", {}), ("client_id", {"JWT_AUDIENCE_CLAIM": "client_id"})):
        _, issued, _ = run(capsys, "issue", "--sub", "bob", **environ, **more)
        status, told, _ = run(capsys, "inspect", issued.strip(), **environ, **more)
        assert (status, f'"{name}": "push"' in told) == (0, True)


def test_issuer_and_audience_are_the_services(capsys: pytest.CaptureFixture[str]) -> None:
    environ = {**ENVIRON, "JWT_ISSUER": "https://id.example", "JWT_AUDIENCE": "msgpush"}
    _, issued, _ = run(capsys, "issue", "--sub", "bob", **environ)
    assert run(capsys, "inspect", issued.strip(), **environ)[0] == 0
    assert run(capsys, "inspect", issued.strip(), **ENVIRON)[0] == 1


@pytest.mark.parametrize(
    ("argv", "environ", "why"),
    [
        (
            ["issue", "--sub", "bob"],
            {},
            "JWT_SECRET has no value: set it to what the service has, or give a private key",
        ),
        (["issue", "--sub", "bob"], {"JWT_SECRET": "short"}, "JWT_SECRET (its value is not shown)"),
        (["issue", "--sub", "bob", "--key", "/none"], {}, "--key /none: "),
        (["issue", "--sub", "bob", "--key", __file__], {}, "it is no private RSA key"),
        (["issue", "--sub", ""], ENVIRON, "the service would refuse it: the token's sub is empty"),
        (
            ["issue", "--sub", "bob", "--subscribe", "a*b"],
            ENVIRON,
            '"a*b" in msgpush.subscribe is no channel name',
        ),
        (["issue", "--sub", "bob", "--lifetime", "31d"], ENVIRON, "(MAX_TOKEN_LIFETIME)"),
        (["inspect", "x"], {}, "JWT_SECRET has no value"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], argv: list[str], environ: dict[str, str], why: str
) -> None:
    status, out, err = run(capsys, *argv, **environ)
    assert (status, out) == (2, "")
    assert why in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("lifetime", ["", "1w", "-1", "1.5h", "h", "1 h", "٣s"])
def test_a_lifetime_is_a_number_and_a_unit(
    capsys: pytest.CaptureFixture[str], lifetime: str
) -> None:
    status, _, told = run(capsys, "issue", "--sub", "bob", f"--lifetime={lifetime}", **ENVIRON)
    assert status == 2
    assert "is not such as 90s, 15m, 1h or 30d" in told


def test_a_service_that_listens_to_all_or_has_authentication_off_changes_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for environ in ({"SERVICE_HOST": "0.0.0.0"}, {"ENABLE_AUTH": "false"}, {"ENABLE_AUTH": "true"}):
        assert (
            run(
                capsys, "inspect", signed(claims("bob", iat=int(time.time()))), **ENVIRON, **environ
            )[0]
            == 0
        )


def test_what_signing_in_lacks_is_no_matter_of_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    environ = ENVIRON | {"OIDC_ISSUER": "https://id.example.com"}
    assert run(capsys, "issue", "--sub", "bob", **environ)[0] == 0
