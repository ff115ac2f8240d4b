"""`msgpush push`: keys for Web Push, and a push to try whether they do."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

import click

from msgpush.adapters.notify.vapid import new_key, private_text, public_text
from msgpush.adapters.redis.devices import RedisDevices
from msgpush.domain.devices import Device
from msgpush.domain.errors import BusUnavailable
from msgpush.domain.notification import Answer, Notice
from msgpush.domain.quoting import short_repr
from msgpush.entrypoints.notifying import notifying_of
from msgpush.entrypoints.settings import Settings, SettingsError

TTL = 60  # seconds for which a trial waits for a device that is off
WORDS = {
    "sent": "taken",
    "gone": "there is no such device any more: the service forgets it at its next push",
    "later": "not taken now",
    "failed": "never taken",
}


class _Wrong(click.ClickException):
    """Something that was asked for can't be done so; its text says what to change."""

    exit_code = 2


@click.group(
    epilog="""\
\b
Example:
  msgpush push keys >> .env
"""
)
def push() -> None:
    """Make keys for Web Push, or try a push."""


@push.command(
    epilog="""\
\b
Example:
  msgpush push keys --subject mailto:ops@example.com >> .env
"""
)
@click.option(
    "--subject",
    default="mailto:you@example.com",
    show_default=True,
    help="Whom push services write to where something is wrong: mailto: or https.",
)
def keys(subject: str) -> None:
    """Print new keys for Web Push, as variables.

    Keep the private key: with another one every browser has to subscribe anew. Browsers get the
    public key from the service.
    """
    key = new_key()
    try:
        settings = Settings.from_environ(
            {"VAPID_PRIVATE_KEY": private_text(key), "VAPID_SUBJECT": subject}
        )
    except SettingsError as error:
        raise _Wrong(str(error)) from None
    click.echo(f"# The public key, for those who need it elsewhere: {public_text(key)}")
    click.echo(f"VAPID_PRIVATE_KEY={settings.vapid_private_key}")
    click.echo(f"VAPID_SUBJECT={settings.vapid_subject}")


@push.command(
    epilog="""\
\b
Example:
  msgpush push test --user 123
"""
)
@click.option("--user", required=True, help="Whose devices it goes to.")
@click.option("--title", default="msgpush", show_default=True, help="What is shown.")
@click.option("--body", default="This is a trial.", show_default=True, help="Likewise, below.")
@click.pass_obj
def test(environ: Mapping[str, str], *, user: str, title: str, body: str) -> None:
    """Send one to all devices of a user, and say what each provider has answered.

    With the service's own settings from the environment. The exit status is 1 where there is no
    device, or one has not taken it.
    """
    try:
        settings = Settings.from_environ(environ)
        sent = asyncio.run(_send(settings, user, title, body))
    except SettingsError as error:
        raise _Wrong(str(error)) from None
    except BusUnavailable as error:
        raise click.ClickException(str(error)) from None
    for device, answer in sent:
        # A user's own text: nothing in it is to be obeyed by a terminal.
        named = f" ({short_repr(device.label)})" if device.label else ""
        again = f", again in {answer.retry_after:g} s" if answer.retry_after is not None else ""
        click.echo(
            f"{device.kind} {device.id}{named}: {WORDS[answer.outcome]}: {answer.reason}{again}"
        )
    if not sent:
        raise click.ClickException(f"user {user} has no device")
    if any(answer.outcome != "sent" for _, answer in sent):
        raise click.exceptions.Exit(1)


async def _send(
    settings: Settings, user: str, title: str, body: str
) -> Sequence[tuple[Device, Answer]]:
    if settings.redis is None:
        raise _Wrong(
            "without Redis the service alone knows its devices: set REDIS_HOST or REDIS_URL as it"
            ' has them, or publish a message to the user with "metadata": {"push": true}'
        )
    notifying = notifying_of(settings)
    notifiers = {each.kind: each for each in notifying.notifiers}
    if not notifiers:
        raise _Wrong(
            "nothing can be pushed: set VAPID_PRIVATE_KEY (see msgpush push keys), FCM_CREDENTIALS"
            " or APNS_KEY as the service has them"
        )
    # A key of its own: a trial replaces no message.
    notice = Notice(
        user, f"msgpush/trial-{os.urandom(4).hex()}", title, body, own_text=True, ttl=TTL
    )
    async with AsyncExitStack() as opened:
        devices = await opened.enter_async_context(RedisDevices(settings.redis))
        for resource in notifying.resources:
            await opened.enter_async_context(resource)
        (own,) = await devices.of([user])
        off = Answer("later", "this kind is off by these settings")
        answers = [
            await notifiers[each.kind].send(each.address, notice) if each.kind in notifiers else off
            for each in own
        ]
        return list(zip(own, answers, strict=True))
