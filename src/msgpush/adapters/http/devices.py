"""`/api/v1/push` and `/api/v1/users/{user_id}/devices`: where users can be reached whose pages are
closed."""

import base64
import re
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from msgpush.adapters.http.callers import Authenticator
from msgpush.adapters.http.operation import (
    GUARDED,
    Json,
    Operation,
    content,
    json_answer,
    parameter,
    problem_answer,
)
from msgpush.adapters.http.problems import PushOff
from msgpush.adapters.http.requests import Query, no_field, path_tail, read_object
from msgpush.adapters.http.responses import json_response
from msgpush.adapters.notify.encryption import AUTH, POINT, browser_key
from msgpush.domain.channel import NAME_CHARACTER, USER, encoding_advice, is_channel, no_channel
from msgpush.domain.devices import (
    KINDS,
    MAX_LABEL,
    Address,
    Apns,
    Device,
    Fcm,
    Kind,
    WebPush,
    proof_of,
)
from msgpush.domain.errors import Fault, Invalid, Malformed
from msgpush.domain.grant import Grant
from msgpush.domain.message import format_ms
from msgpush.domain.ports import Devices
from msgpush.domain.quoting import short_repr
from msgpush.domain.service import Push

USERS = "/api/v1/users/"
MAX_BYTES = 16 * 1024
EXAMPLE = '{"webpush": {"endpoint": "https://...", "keys": {"p256dh": "...", "auth": "..."}}}'
SECRET = (22, 512)  # characters: 16 random bytes in base64url, at least
MAX_TOKEN = 4_096


class WebPushKey(Struct, frozen=True):
    """What a browser subscribes with: its `applicationServerKey`."""

    public_key: str


class PushKinds(Struct, frozen=True):
    """How this service can push; `webpush` is null where it doesn't by that."""

    webpush: WebPushKey | None
    fcm: bool
    apns: bool


class RegisteredDevice(Struct, frozen=True):
    """A device of a user; what it is reached by is shown to nobody."""

    device: str
    kind: Kind
    label: str | None
    created_at: str


class DeviceList(Struct, frozen=True):
    """A user's devices, the newest last."""

    devices: list[RegisteredDevice]


class PushRules(Struct, frozen=True):
    """What may be registered.

    Attributes:
        public_key: for Web Push; None: that is off, and so for the others.
        check_endpoint: raises ValueError for an endpoint that nothing is sent to; returns others
            as browsers write them.
        topic: the app's at Apple.
    """

    public_key: str | None = None
    check_endpoint: Callable[[str], str] = str
    fcm: bool = False
    topic: str | None = None

    @property
    def kinds(self) -> PushKinds:
        key = None if self.public_key is None else WebPushKey(self.public_key)
        return PushKinds(key, self.fcm, self.topic is not None)

    def check_on(self, kind: Kind) -> None:
        """Raise `PushOff` where nothing is sent to devices of this kind."""
        on = {
            "webpush": self.public_key is not None,
            "fcm": self.fcm,
            "apns": self.topic is not None,
        }
        if not on[kind]:
            raise PushOff(f"devices of the kind {kind} are not sent to here: it is off")


_USER = parameter("user_id", "The user.", "path", pattern=f"^{NAME_CHARACTER}{{1,195}}$")
_DEVICE = parameter("device", "The device, by its id.", "path")
_LABEL: Json = {"type": "string", "maxLength": MAX_LABEL}
_SECRET: Json = {"type": "string", "minLength": SECRET[0], "maxLength": SECRET[1]}
_REGISTRATION: Json = {
    "oneOf": [
        {
            "type": "object",
            "required": [kind],
            "properties": {kind: schema, "label": _LABEL},
            "additionalProperties": False,
        }
        for kind, schema in (
            (
                "webpush",
                {
                    "description": "A PushSubscription, as its `toJSON()` has it.",
                    "type": "object",
                    "required": ["endpoint", "keys"],
                    "properties": {
                        "endpoint": {"type": "string", "format": "uri"},
                        "keys": {
                            "type": "object",
                            "required": ["p256dh", "auth"],
                            "properties": {
                                "p256dh": {"type": "string"},
                                "auth": {"type": "string"},
                            },
                        },
                    },
                },
            ),
            (
                "fcm",
                {
                    "type": "object",
                    "required": ["token", "secret"],
                    "properties": {"token": {"type": "string"}, "secret": _SECRET},
                    "additionalProperties": False,
                },
            ),
            (
                "apns",
                {
                    "type": "object",
                    "required": ["token", "topic", "secret"],
                    "properties": {
                        "token": {"type": "string", "pattern": "^[0-9a-fA-F]{8,200}$"},
                        "topic": {"type": "string"},
                        "secret": _SECRET,
                    },
                    "additionalProperties": False,
                },
            ),
        )
    ]
}
_TAG = "Receive"
OPERATIONS = (
    Operation(
        "GET",
        "/api/v1/push",
        tag=_TAG,
        id="push",
        summary="How this service can push, and the key that browsers subscribe with",
        answers={200: json_answer("What is on.", PushKinds)},
        problems=(400, 405),
    ),
    Operation(
        "POST",
        USERS + "{user_id}/devices",
        tag=_TAG,
        id="registerDevice",
        summary="Register a device of a user, to be pushed to",
        answers={
            200: json_answer("It was registered before: the same device.", RegisteredDevice),
            201: json_answer("Registered.", RegisteredDevice),
            409: problem_answer(
                409,
                "It is another user's, and this isn't known to that very device; or its kind is"
                " off (`type` `push-off`).",
            ),
        },
        problems=(*GUARDED, 413, 415, 422, 503),
        parameters=[_USER],
        body=content("application/json", _REGISTRATION),
    ),
    Operation(
        "GET",
        USERS + "{user_id}/devices",
        tag=_TAG,
        id="devices",
        summary="The devices of a user",
        answers={200: json_answer("All of them.", DeviceList)},
        problems=(*GUARDED, 503),
        parameters=[_USER],
    ),
    Operation(
        "DELETE",
        USERS + "{user_id}/devices",
        tag=_TAG,
        id="removeDevices",
        summary="Forget all devices of a user",
        answers={204: {"description": "There are none any more."}},
        problems=(*GUARDED, 503),
        parameters=[_USER],
    ),
    Operation(
        "DELETE",
        USERS + "{user_id}/devices/{device}",
        tag=_TAG,
        id="removeDevice",
        summary="Forget a device of a user",
        answers={204: {"description": "There is none of this id any more."}},
        problems=(*GUARDED, 503),
        parameters=[_USER, _DEVICE],
    ),
)


class DevicesApi:
    """Serves users' devices."""

    def __init__(self, push: Push, devices: Devices, auth: Authenticator, rules: PushRules) -> None:
        self._push, self._devices, self._auth, self._rules = push, devices, auth, rules

    async def kinds(self, request: Request) -> Response:
        # A public key, and what anybody can find out: no credentials are asked for.
        Query(request.scope).done()
        return json_response(self._rules.kinds)

    async def devices(self, request: Request) -> Response:
        """Register one, list them, or forget them all."""
        user, grant = await self._user(request, "/devices")
        if request.method == "POST":
            return await self._register(request, user, grant)
        if request.method == "DELETE":
            await self._devices.remove(user)
            return Response(status_code=204)
        (own,) = await self._devices.of([user])
        return json_response(DeviceList([_told(each) for each in own]))

    async def device(self, request: Request) -> Response:
        """Forget one."""
        id = request.path_params["device"]
        user, _ = await self._user(request, f"/devices/{id}")
        await self._devices.remove(user, id)
        return Response(status_code=204)

    async def _register(self, request: Request, user: str, grant: Grant) -> Response:
        given = await read_object(request, MAX_BYTES, EXAMPLE)
        # A body may take long: what comes after a revocation would be left after it.
        self._push.check(grant)
        address, label = read_registration(given, self._rules)
        own = grant.user == user
        device, new = await self._devices.register(
            user, address, label, issued_at=(grant.issued_at or 0.0) if own else None
        )
        return json_response(_told(device), 201 if new else 200)

    async def _user(self, request: Request, suffix: str) -> tuple[str, Grant]:
        """The user whom the path names, and the permissions of the caller, who may act for them."""
        Query(request.scope).done()
        user = path_tail(request.scope, USERS, suffix)
        if not user or not is_channel(USER + user):
            raise Malformed(no_channel(USER + user, encoding_advice(user)))
        # A ticket is for a stream: a device would outlive it.
        grant = await self._auth.authenticate(request.scope)
        grant.check_act(user)
        return user, grant


def _told(device: Device) -> RegisteredDevice:
    return RegisteredDevice(device.id, device.kind, device.label, format_ms(device.created_at))


# What is registered


def read_registration(given: Mapping[str, Any], rules: PushRules) -> tuple[Address, str | None]:
    """The address and the label that a request gives.

    Raises:
        Invalid: something is wrong with it, and where.
        PushOff: nothing is sent to such devices here.
    """
    for name in given:
        if name not in (*KINDS, "label"):
            raise no_field(name, "a device: it has webpush, fcm or apns, and label")
    named = [kind for kind in KINDS if given.get(kind) is not None]
    if len(named) != 1:
        raise Invalid(Fault("", "it must have one of webpush, fcm and apns"))
    (kind,) = named
    rules.check_on(kind)
    label = given.get("label")
    if label is not None and not (isinstance(label, str) and len(label) <= MAX_LABEL):
        told = f"{short_repr(label)} is not allowed: text of at most {MAX_LABEL} characters"
        raise Invalid(Fault("/label", told))
    fields = given[kind]
    if not isinstance(fields, dict):
        raise Invalid(Fault(f"/{kind}", "it must be an object"))
    return _READERS[kind](fields, rules), label or None


def _web_push(fields: Mapping[str, Any], rules: PushRules) -> Address:
    # Whatever else a browser says of a subscription isn't needed: its fields are for it to choose.
    endpoint = _text("/webpush/endpoint", fields.get("endpoint"), "an https URL")
    try:
        endpoint = rules.check_endpoint(endpoint)
    except ValueError as error:
        raise Invalid(Fault("/webpush/endpoint", f"it {error}")) from None
    keys = fields.get("keys")
    if not isinstance(keys, dict):
        raise Invalid(Fault("/webpush/keys", "it must be an object with p256dh and auth"))
    p256dh, auth = (
        _bytes(f"/webpush/keys/{name}", keys.get(name), size)
        for name, size in (("p256dh", POINT), ("auth", AUTH))
    )
    try:
        browser_key(p256dh)
    except ValueError as error:
        raise Invalid(Fault("/webpush/keys/p256dh", str(error))) from None
    return WebPush(endpoint, p256dh, auth)


def _fcm(fields: Mapping[str, Any], rules: PushRules) -> Address:
    _known("fcm", fields, "token", "secret")
    token = _text("/fcm/token", fields.get("token"), "the app's registration token")
    if not re.fullmatch(f"[!-~]{{1,{MAX_TOKEN}}}", token):
        raise Invalid(Fault("/fcm/token", "it is no registration token"))
    return Fcm(token, _proof("fcm", fields))


def _apns(fields: Mapping[str, Any], rules: PushRules) -> Address:
    _known("apns", fields, "token", "topic", "secret")
    token = _text("/apns/token", fields.get("token"), "the device token")
    if not re.fullmatch("[0-9a-fA-F]{8,200}", token):
        raise Invalid(Fault("/apns/token", "it must be the device token, in hexadecimal digits"))
    topic = _text("/apns/topic", fields.get("topic"), "the app's bundle id")
    if topic != rules.topic:
        told = f"{short_repr(topic)} is not allowed: {short_repr(rules.topic)} is sent to here"
        raise Invalid(Fault("/apns/topic", told))
    return Apns(token.lower(), topic, _proof("apns", fields))


_READERS: Mapping[Kind, Callable[[Mapping[str, Any], PushRules], Address]] = {
    "webpush": _web_push,
    "fcm": _fcm,
    "apns": _apns,
}


def _known(kind: str, fields: Mapping[str, Any], *names: str) -> None:
    for name in fields:
        if name not in names:
            told = f"{short_repr(name)} is no field of it: it has {', '.join(names)}"
            raise Invalid(Fault(f"/{kind}", told))


def _text(pointer: str, value: object, what: str) -> str:
    # What is given isn't told: it may be a secret in the wrong place.
    if not isinstance(value, str) or not value:
        raise Invalid(Fault(pointer, f"it must be {what}"))
    return value


def _bytes(pointer: str, value: object, size: int) -> bytes:
    rule = f"it must be {size} bytes in base64url"
    text = _text(pointer, value, rule.removeprefix("it must be ")).rstrip("=")
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
    except ValueError:
        raise Invalid(Fault(pointer, rule)) from None
    if len(raw) != size:
        raise Invalid(Fault(pointer, rule))
    return raw


def _proof(kind: str, fields: Mapping[str, Any]) -> bytes:
    least, most = SECRET
    rule = f"{least} to {most} characters: 16 random bytes or more that the app keeps, as text"
    secret = _text(f"/{kind}/secret", fields.get("secret"), rule)
    if not least <= len(secret) <= most:
        raise Invalid(Fault(f"/{kind}/secret", f"it must be {rule}"))
    return proof_of(secret.encode(errors="surrogatepass"))
