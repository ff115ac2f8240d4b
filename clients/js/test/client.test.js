// A client in Node.js and the real service.
import assert from "node:assert/strict";
import { test } from "node:test";
import { MsgPush, keyOf } from "../dist/index.js";
import { Proxy, SECRET, Service, eventually, told, token } from "./support.js";

function listen(t, url, options) {
  const client = new MsgPush(url, options);
  t.after(() => client.close());
  return [client, told(client)];
}

test("messages come whole, in order, and by their type", async (t) => {
  const service = await Service.start(t);
  const [client, heard] = listen(t, service.url, { user: "alice", channels: "imports" });
  const progress = [];
  const errors = [];
  client.on("progress", (data, message) => progress.push([data.progress, message.service]));
  client.on("message.error", (data) => errors.push(data.text));
  await eventually(() => heard.open.length);
  assert.deepEqual(heard.open[0].channels, ["broadcast", "imports", "user:alice"]);
  await service.publish({ type: "progress", channels: ["imports"], data: { progress: 65, text: "é\n" } });
  await service.publish({ type: "error", target: { user_id: "alice" }, data: { text: "oh" } });
  await service.publish({ channels: ["exports"], data: { text: "not for us" } });
  await service.ask("POST", "/api/v1/messages/broadcast", { type: "info", service: "tests", data: { text: "all" } });
  await eventually(() => heard.message.length === 3);
  assert.deepEqual(heard.texts(), ["é\n", "oh", "all"]);
  assert.deepEqual(progress, [[65, "tests"]]);
  assert.deepEqual(errors, ["oh"]);
  assert.deepEqual(heard.error, []);
});

test("what ends a subscription to a name ends that one alone, and a handler that throws hinders no other", async (t) => {
  const service = await Service.start(t);
  const [client, heard] = listen(t, service.url, { channels: ["a"] });
  const first = [];
  const thrown = [];
  const uncaught = (error) => thrown.push(error.message);
  process.setUncaughtExceptionCaptureCallback(uncaught);
  t.after(() => process.setUncaughtExceptionCaptureCallback(null));
  const stop = client.on("info", (data) => first.push(data.text));
  client.on("info", () => { throw new Error("mine"); });
  await eventually(() => heard.open.length);
  await service.publish({ channels: ["a"], data: { text: "1" } });
  await eventually(() => heard.message.length === 1);
  stop();
  await service.publish({ channels: ["a"], data: { text: "2" } });
  await eventually(() => heard.message.length === 2);
  assert.deepEqual(first, ["1"]);
  assert.deepEqual(thrown, ["mine", "mine"]);
});

for (const clean of [true, false])
  test(`nothing is lost or doubled by a proxy that cuts ${clean ? "cleanly" : "with a reset"}`, async (t) => {
    const service = await Service.start(t);
    const proxy = await Proxy.start(t, service.port);
    const [, heard] = listen(t, proxy.url, { channels: ["a"] });
    await eventually(() => heard.open.length);
    for (let round = 0; round < 5; round++) {
      await service.publish({ channels: ["a"], data: { text: `${round} before` } });
      proxy.cut(clean);
      await service.publish({ channels: ["a"], data: { text: `${round} after` } });
      await eventually(() => heard.open.length === round + 2);
    }
    await eventually(() => heard.message.length === 10);
    assert.deepEqual(heard.texts(), [0, 1, 2, 3, 4].flatMap((round) => [`${round} before`, `${round} after`]));
    assert.deepEqual(heard.gap, []);
    assert.ok(heard.open.slice(1).every((each) => each.resumed));
    assert.deepEqual(heard.close[0], { reason: "lost", reconnect: true, detail: heard.close[0].detail });
  });

test("a service that comes back after two seconds is heard again within one", async (t) => {
  const first = await Service.start(t);
  const [, heard] = listen(t, first.url, { channels: ["a"] });
  await eventually(() => heard.open.length);
  await first.kill();
  await eventually(() => heard.close.length);
  await new Promise((done) => setTimeout(done, 2000));
  const again = await Service.start(t, { SERVICE_PORT: `${first.port}` });
  await eventually(() => heard.open.length === 2, 1000);
  await eventually(() => heard.gap.length); // the embedded bus forgets
  assert.equal(heard.gap[0].reason, "reset");
  await again.publish({ channels: ["a"], data: { text: "back" } });
  await eventually(() => heard.message.length === 1);
  assert.equal(heard.close.length, 1, "an outage is told once");
});

test("a service that drains is left, and its successor found within a second", async (t) => {
  const first = await Service.start(t, { DRAIN_SECONDS: "1" });
  const [, heard] = listen(t, first.url, { channels: ["a"] });
  await eventually(() => heard.open.length);
  await first.kill("SIGTERM");
  await Service.start(t, { SERVICE_PORT: `${first.port}` });
  await eventually(() => heard.open.length === 2, 1000);
  assert.equal(heard.close[0].reason, "drain");
});

test("a connection that is closed for good stays so", async (t) => {
  const service = await Service.start(t);
  const [, heard] = listen(t, service.url, { channels: ["a"] });
  await eventually(() => heard.open.length);
  await service.disconnect((await service.connections())[0], true);
  await eventually(() => heard.open.length === 2);
  assert.deepEqual(heard.close, [{ reason: "disconnected", reconnect: true, detail: heard.close[0].detail }]);
  await service.disconnect(await eventually(async () => (await service.connections())[0]), false);
  await eventually(() => heard.close.length === 2);
  assert.equal(heard.close[1].reconnect, false);
});

test("a cursor begins where it says, and is answered with 204 when it is terminal", async (t) => {
  const service = await Service.start(t);
  const { cursor } = await service.publish({ channels: ["a"], data: { text: "1" } });
  await service.publish({ channels: ["a"], data: { text: "2" } });
  const [, after] = listen(t, service.url, { channels: ["a"], since: cursor });
  const [, all] = listen(t, service.url, { channels: ["a"], since: "earliest" });
  const [, over] = listen(t, service.url, { channels: ["a"], since: `${cursor}~end` });
  await eventually(() => after.message.length === 1 && all.message.length === 2 && over.close.length);
  assert.deepEqual(after.texts(), ["2"]);
  assert.deepEqual(over.close, [{ reason: "over", reconnect: false, detail: over.close[0].detail }]);
});

test("only the types that are asked for come", async (t) => {
  const service = await Service.start(t);
  const [, heard] = listen(t, service.url, { channels: ["a"], types: ["success", "error"] });
  await eventually(() => heard.open.length);
  for (const type of ["info", "success", "error"]) await service.publish({ type, channels: ["a"] });
  await eventually(() => heard.message.length === 2);
  assert.deepEqual(heard.message.map(({ type }) => type), ["success", "error"]);
});

test("other channels are listened to from the cursor on, nothing lost in between", async (t) => {
  const service = await Service.start(t);
  const [client, heard] = listen(t, service.url, { channels: ["a"] });
  await eventually(() => heard.open.length);
  client.subscribe(["b", "c"]);
  await service.publish({ channels: ["a"], data: { text: "a" } });
  await service.publish({ channels: ["b"], data: { text: "b" } });
  await eventually(() => heard.message.length === 2);
  client.unsubscribe("a");
  await eventually(async () => (await service.connections()).some((each) => `${each.channels}` === "b,broadcast,c"));
  await service.publish({ channels: ["a"], data: { text: "no" } });
  await service.publish({ channels: ["c"], data: { text: "c" } });
  await eventually(() => heard.message.length === 3);
  assert.deepEqual(heard.texts(), ["a", "b", "c"]);
});

test("a token that ends is renewed, and nothing is lost meanwhile", async (t) => {
  const service = await Service.start(t, { JWT_SECRET: SECRET, JWT_LEEWAY: "0" });
  let issued = 0;
  const fresh = async () => token("alice", {}, issued++ ? 600 : 2);
  const [, heard] = listen(t, service.url, { user: "alice", token: fresh });
  await eventually(() => heard.close.length);
  await service.publish({ target: { user_id: "alice" }, data: { text: "between" } });
  await eventually(() => heard.message.length === 1);
  assert.equal(heard.close[0].reason, "expired");
  assert.equal(issued, 2);
});

test("a token that is refused is asked for anew, and one that can't be renewed is the end", async (t) => {
  const service = await Service.start(t, { JWT_SECRET: SECRET });
  let issued = 0;
  const [, renewed] = listen(t, service.url, { user: "alice", token: () => (issued++ ? token("alice") : "no token") });
  const [, fixed] = listen(t, service.url, { user: "alice", token: "no token" });
  const [, denied] = listen(t, service.url, { user: "bob", token: () => token("alice") });
  await eventually(() => renewed.open.length && fixed.close.length && denied.close.length);
  assert.equal(issued, 2);
  assert.match(renewed.error[0].message, /401/);
  for (const each of [fixed, denied]) assert.equal(each.close[0].reconnect, false);
  assert.match(denied.error[0].message, /403/);
});

test("a back end that gives no token is asked again", async (t) => {
  const service = await Service.start(t, { JWT_SECRET: SECRET });
  let asked = 0;
  const shaky = async () => { if (asked++ < 2) throw new Error("away"); return token("alice"); };
  const [, heard] = listen(t, service.url, { user: "alice", token: shaky });
  await eventually(() => heard.open.length);
  assert.match(heard.close[0].detail, /away/);
});

test("a stream whose heart stops is replaced", async (t) => {
  const service = await Service.start(t, { HEARTBEAT_INTERVAL: "1" });
  const proxy = await Proxy.start(t, service.port);
  const [, heard] = listen(t, proxy.url, { channels: ["a"] });
  await eventually(() => heard.open.length);
  const seen = proxy.seen;
  proxy.mute = true;
  await service.publish({ channels: ["a"], data: { text: "unheard" } });
  await eventually(() => heard.close.length);
  assert.match(heard.close[0].detail, /nothing was heard/);
  proxy.mute = false;
  await eventually(() => heard.message.length === 1, 30_000);
  assert.ok(proxy.seen > seen);
});

test("an acknowledgement is told, repeated while it fails, and heard of elsewhere", async (t) => {
  const service = await Service.start(t);
  const proxy = await Proxy.start(t, service.port);
  const [client, heard] = listen(t, proxy.url, { user: "alice" });
  const [, other] = listen(t, service.url, { user: "alice" });
  await eventually(() => heard.open.length && other.open.length);
  await service.publish({ id: "m1", target: { user_id: "alice" }, metadata: { ack: true } });
  await eventually(() => heard.message.length);
  proxy.server.close();
  proxy.cut();
  const acknowledged = client.acknowledge(heard.message[0], "tests/unknown");
  await Proxy.start(t, service.port, proxy.port);
  await acknowledged;
  await eventually(() => other.acknowledged.length);
  assert.deepEqual(other.acknowledged, [{ keys: ["tests/m1"], state: "acknowledged" }]);
  assert.equal((await service.ask("GET", "/api/v1/messages/tests/m1/delivery")).state, "acknowledged");
  const [nobody] = listen(t, service.url, { channels: ["a"] });
  await assert.rejects(nobody.acknowledge("x/y"), TypeError);
});

test("what is redelivered is heard once", async (t) => {
  const service = await Service.start(t);
  const [, heard] = listen(t, service.url, { user: "alice" });
  await eventually(() => heard.open.length);
  const raw = await fetch(`${service.url}/sse/user/alice?passive=true`);
  await service.publish({ id: "m1", target: { user_id: "alice" }, metadata: { ack: { deadline: 1 } } });
  let seen = "";
  for await (const piece of raw.body) {
    seen += Buffer.from(piece);
    if (seen.includes('"retry_count":1')) break;
  }
  await service.publish({ target: { user_id: "alice" }, data: { text: "after" } });
  await eventually(() => heard.texts().includes("after"));
  assert.deepEqual(heard.message.map(keyOf).filter((key) => key === "tests/m1"), ["tests/m1"]);
});

test("a client that is closed leaves nothing behind", async (t) => {
  const service = await Service.start(t);
  const [client, heard] = listen(t, service.url, { channels: ["a"] });
  await eventually(() => heard.open.length);
  client.close();
  await eventually(async () => !(await service.connections()).length);
});

test("nothing to listen to, and a transport that there is none, are told at once", () => {
  assert.throws(() => new MsgPush("http://127.0.0.1", {}), TypeError);
  assert.throws(() => new MsgPush("http://127.0.0.1", { user: "a", transport: "pigeon" }), TypeError);
});
