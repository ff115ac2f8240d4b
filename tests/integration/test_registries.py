"""The registries' contract: at a real etcd, at a gateway and at a Consul agent on sockets."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from msgpush.adapters.registry.ports import Registry
from tests.contracts.registry import Opened, RegistryContract
from tests.support.registries import ConsulAgent, EtcdServer, GatewayServer
from tests.support.service import ServiceProcess

WRONG = "wrong-one"


def opened_http(server: GatewayServer | ConsulAgent) -> Opened:
    def stall() -> None:
        server.stalls = not server.stalls

    return Opened(
        registry=server.adapter(),
        unfit=server.adapter(WRONG),
        records=server.records,
        empty=server.empty,
        kill=server.kill,
        restart=server.restart,
        stall=stall,
    )


class TestGateway(RegistryContract):
    @contextmanager
    def open(self) -> Iterator[Opened]:
        with GatewayServer("a-good-token") as server:
            self.server = server
            yield opened_http(server)

    def another(self, opened: Opened) -> Registry:
        return self.server.adapter()


@pytest.mark.long
class TestConsul(RegistryContract):
    @contextmanager
    def open(self) -> Iterator[Opened]:
        # What it checks must be there.
        with (
            ServiceProcess(ENABLE_AUTH="false", ROOT_PATH="/push") as service,
            ConsulAgent("a-good-token", least_deregister=0.5) as server,
        ):
            self.server, self.port = server, service.port
            yield opened_http(server)

    def another(self, opened: Opened) -> Registry:
        return self.server.adapter()


@pytest.mark.long
class TestEtcd(RegistryContract):
    @contextmanager
    def open(self) -> Iterator[Opened]:
        with EtcdServer("a-good-password") as server:
            self.server = server
            paused = False

            def stall() -> None:
                nonlocal paused
                paused = not paused
                (server.pause if paused else server.resume)()

            yield Opened(
                registry=server.adapter(),
                unfit=server.adapter(WRONG),
                records=server.records,
                empty=server.empty,
                kill=server.kill,
                restart=server.restart,
                stall=stall,
            )

    def another(self, opened: Opened) -> Registry:
        return self.server.adapter()
