// When a client opens the next stream: with a clock of the tests' own, and streams that do as they are told.
import assert from "node:assert/strict";
import { test } from "node:test";
import { MsgPush } from "../dist/index.js";
import { told } from "./support.js";

/** A client whose streams and time are in the test's hands. */
function play(t, options = {}) {
  t.mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"] });
  t.mock.method(Math, "random", () => 1); // the longest pauses
  const page = new EventTarget();
  const window = new EventTarget();
  page.visibilityState = "visible";
  globalThis.document = page;
  for (const name of ["addEventListener", "removeEventListener"]) globalThis[name] = window[name].bind(window);
  const opened = [];
  const transport = (ask, take, ended) => {
    const stream = { ask, take, ended, closed: false, close: () => (stream.closed = true) };
    opened.push(stream);
    return stream;
  };
  const client = new MsgPush("https://push.example/", { channels: ["a"], transport, ...options });
  t.after(() => {
    client.close();
    for (const name of ["document", "addEventListener", "removeEventListener"]) delete globalThis[name];
  });
  const settle = () => new Promise(setImmediate);
  return {
    client,
    opened,
    heard: told(client),
    last: () => opened.at(-1),
    settle,
    page: (name, more) => (page.dispatchEvent(Object.assign(new Event(name), more)), settle()),
    window: (name, more) => (window.dispatchEvent(Object.assign(new Event(name), more)), settle()),
    async pass(milliseconds) {
      for (let left = milliseconds; left > 0; left -= 50) {
        t.mock.timers.tick(Math.min(50, left));
        await settle();
      }
    },
    /** The clock goes on, and nothing else: the computer sleeps. */
    async sleep(milliseconds) {
      t.mock.timers.setTime(Date.now() + milliseconds - 1);
      await settle();
    },
    begin(id = "c1", heartbeat = 30) {
      opened.at(-1).take({ event: "msgpush.open", id, data: { connection: "x", channels: ["a"], resumed: false, heartbeat } });
    },
  };
}

const message = (id, more = {}) => ({
  id, type: "info", service: "s", timestamp: "t", target: { user_id: "u" }, data: { text: id },
  metadata: { priority: "normal", ttl: 1, retry_count: 0, ...more },
});

test("a stream is opened with the channels, and the next one with the cursor", async (t) => {
  const it = play(t, { user: "u", types: ["info", "error"], broadcast: false, since: "c0" });
  await it.settle();
  const { ask } = it.last();
  assert.equal(ask.base, "https://push.example");
  assert.deepEqual(ask.channels, ["a", "user:u"]);
  assert.deepEqual(ask.query, { types: "info,error", broadcast: "false", last_event_id: "c0" });
  it.begin("c0");
  it.last().take({ event: "message", id: "c1", data: message("1") });
  it.last().take({ event: "message", data: message("2") });
  it.last().take({ event: "msgpush.gap", data: { channel: "a", after: "c0", reason: "trimmed" } });
  it.last().ended({});
  await it.pass(250);
  assert.equal(it.last().ask.query.last_event_id, "c1", "what has no id leaves the cursor alone");
});

test("it waits a quarter of a second first, then longer, and never longer than ten", async (t) => {
  const it = play(t);
  await it.settle();
  const begun = Date.now();
  const tries = [];
  while (Date.now() < begun + 300_000) {
    tries.push(Date.now());
    const before = it.opened.length;
    it.last().ended({});
    while (it.opened.length === before) await it.pass(50);
  }
  const waits = tries.slice(1).map((each, place) => each - tries[place]);
  assert.equal(waits[0], 250);
  assert.equal(waits.at(-1), 10_000);
  assert.deepEqual(waits, waits.toSorted((one, other) => one - other));
  assert.ok(tries.filter((each) => each < begun + 8_000).every((each, n) => !n || each - tries[n - 1] <= 1000));
  assert.equal(it.heard.close.length, 1);
});

test("a stream that has lasted begins the pauses anew, and one that hasn't doesn't", async (t) => {
  const it = play(t);
  await it.settle();
  for (const lasts of [100, 100, 100]) {
    it.begin();
    await it.pass(lasts);
    it.last().ended({});
    await it.pass(5000);
  }
  const flapping = it.opened.length;
  it.begin();
  it.last().ended({});
  await it.pass(1000);
  assert.equal(it.opened.length, flapping, "15 seconds of this: 2 seconds of pause");
  await it.pass(4000);
  it.begin();
  await it.pass(3000);
  it.last().ended({});
  await it.pass(250);
  assert.equal(it.opened.length, flapping + 2);
});

test("who is told of an overload comes back when the service wants it, whatever the page does", async (t) => {
  const it = play(t);
  await it.settle();
  it.last().take({ event: "msgpush.close", data: { reason: "overload", reconnect: true }, retry: 12_000 });
  await it.pass(11_900);
  await it.page("visibilitychange");
  await it.window("online");
  assert.equal(it.opened.length, 1);
  await it.pass(500);
  assert.equal(it.opened.length, 2);
  it.last().take({ event: "msgpush.close", data: { reason: "overload", reconnect: true } });
  await it.pass(29_000);
  assert.equal(it.opened.length, 2, "without a word of how long: some 10 to 30 seconds");
  await it.pass(3_000);
  assert.equal(it.opened.length, 3);
});

test("an overload right after the word of a service's end is taken for what it is", async (t) => {
  const it = play(t);
  await it.settle();
  it.begin();
  it.last().take({ event: "msgpush.close", data: { reason: "drain", reconnect: true } });
  await it.pass(250);
  for (let round = 2; round < 10; round++) {
    assert.equal(it.opened.length, round);
    it.last().take({ event: "msgpush.close", data: { reason: "overload", reconnect: true }, retry: 30_000 });
    await it.pass(500);
  }
});

test("a stream that is silent for two and a half heartbeats is replaced, and one that never opens", async (t) => {
  const it = play(t);
  await it.settle();
  await it.pass(17_000);
  assert.equal(it.opened.length, 2, "it has not opened in 15 seconds");
  assert.ok(it.opened[0].closed);
  it.begin("c1", 2);
  for (let beats = 0; beats < 5; beats++) {
    await it.pass(2_000);
    it.last().take({ event: "msgpush.heartbeat", id: "c2", data: {} });
  }
  assert.equal(it.opened.length, 2);
  const silent = it.last();
  await it.pass(7_000);
  assert.equal(it.opened.length, 3);
  silent.take({ event: "message", id: "c9", data: message("late") });
  assert.deepEqual(it.heard.texts(), [], "what a stream says after its end isn't heard");
  assert.equal(it.last().ask.query.last_event_id, "c2");
});

test("a computer that wakes up doesn't trust a stream from before", async (t) => {
  const it = play(t);
  await it.settle();
  it.begin();
  await it.pass(1000);
  await it.sleep(3_600_000);
  await it.pass(1000);
  assert.equal(it.opened.length, 2);
  assert.equal(it.last().ask.query.last_event_id, "c1");
});

test("being online, shown or thawed again ends a pause, and a page that goes leaves its stream", async (t) => {
  const it = play(t);
  await it.settle();
  it.begin();
  await it.page("visibilitychange");
  assert.equal(it.opened.length, 1, "a stream that is alive stays");
  await it.window("online");
  assert.equal(it.opened.length, 2, "but not over another network");
  it.last().ended({});
  await it.page("visibilitychange");
  assert.equal(it.opened.length, 3);
  it.begin();
  for (const [leave, back] of [[it.window, it.window], [it.page, it.page]]) {
    const [away, again] = leave === it.window ? ["pagehide", "pageshow"] : ["freeze", "resume"];
    await leave(away);
    assert.ok(it.last().closed);
    const before = it.opened.length;
    await it.pass(60_000);
    await it.window("online");
    assert.equal(it.opened.length, before);
    await back(again, { persisted: true });
    assert.equal(it.opened.length, before + 1);
    it.begin();
  }
});

test("a token is asked for again only when it may be the reason", async (t) => {
  let issued = 0;
  const it = play(t, { token: async () => `t${++issued}` });
  const next = async (end) => {
    if (end.reason) it.last().take({ event: "msgpush.close", data: { reconnect: true, ...end } });
    else it.last().ended(end);
    await it.pass(15_000);
    return it.last().ask.token;
  };
  await it.settle();
  assert.equal(it.last().ask.token, "t1");
  it.begin();
  assert.equal(await next({}), "t1", "it was lost");
  it.begin();
  assert.equal(await next({ reason: "drain" }), "t1");
  it.begin();
  assert.equal(await next({ reason: "expired" }), "t2");
  assert.equal(await next({}), "t3", "it didn't open: a page can't see why");
  assert.equal(await next({ told: true }), "t3", "fetch sees that nobody has answered");
  assert.equal(await next({ status: 503, told: true }), "t3");
  assert.equal(await next({ status: 401, told: true }), "t4");
  assert.equal(await next({ reason: "unauthorized", reconnect: false }), "t5");
});

for (const end of [{ status: 403 }, { status: 400 }, { status: 204 }])
  test(`nothing follows the status ${end.status}`, async (t) => {
    const it = play(t, { token: () => "t" });
    await it.settle();
    it.last().ended(end);
    await it.pass(60_000);
    assert.equal(it.opened.length, 1);
    assert.equal(it.heard.close[0].reconnect, false);
  });

for (const reason of ["disconnected", "revoked", "denied"])
  test(`nothing follows the word that it is ${reason} for good`, async (t) => {
    const it = play(t);
    await it.settle();
    it.begin();
    it.last().take({ event: "msgpush.close", id: "c1~end", data: { reason, reconnect: false } });
    await it.pass(60_000);
    await it.window("online");
    assert.equal(it.opened.length, 1);
    assert.deepEqual(it.heard.close.map(({ reason }) => reason), [reason]);
  });

test("a service that asks for patience by a status gets it", async (t) => {
  const it = play(t);
  await it.settle();
  it.last().ended({ status: 503, retry: 5_000 });
  await it.pass(4_900);
  assert.equal(it.opened.length, 1);
  await it.pass(500);
  assert.equal(it.opened.length, 2);
});

test("what is delivered again is dropped by its key, and acknowledged again if it was", async (t) => {
  const asked = [];
  const it = play(t, { user: "u" });
  t.mock.method(globalThis, "fetch", async (url, { body }) => (asked.push([url, body]), new Response("{}")));
  await it.settle();
  it.begin();
  const say = (id, data) => it.last().take({ event: "message", ...(id && { id }), data });
  say("c2", message("m", { ack: {} }));
  say("c3", message("m", { ack: {}, retry_count: 1 }));
  say("", message("m", { ack: {} }));
  say("", message("n", { ack: {} }));
  say("", message("n", { ack: {} }));
  assert.deepEqual(it.heard.texts(), ["m", "n"]);
  await it.client.acknowledge(it.heard.message[0]);
  const once = ["https://push.example/api/v1/users/u/acknowledgements", '{"keys":["s/m"]}'];
  assert.deepEqual(asked, [once]);
  say("c4", message("m", { ack: {}, retry_count: 2 }));
  await it.settle();
  assert.deepEqual(asked, [once, once]);
  say("c5", message("o"));
  say("c6", message("o"));
  assert.deepEqual(it.heard.texts(), ["m", "n", "o", "o"], "an id may be used again: the cursor doubles nothing");
});

test("a thousand keys go in one request, and one that is refused is an error", async (t) => {
  const sizes = [];
  const it = play(t, { user: "u" });
  const fetched = t.mock.method(globalThis, "fetch", async (_, { body }) => {
    sizes.push(JSON.parse(body).keys.length);
    return new Response("{}");
  });
  await it.client.acknowledge(...Array.from({ length: 2500 }, (_, n) => `s/${n}`));
  assert.deepEqual(sizes, [1000, 1000, 500]);
  fetched.mock.mockImplementation(async () => new Response("no", { status: 403 }));
  await assert.rejects(it.client.acknowledge("s/1"), /403/);
});

test("changes of channels in one go open one stream, and none is open where there is nothing to hear", async (t) => {
  const it = play(t);
  await it.settle();
  it.begin();
  it.client.subscribe("b");
  it.client.subscribe(["c", "b"]);
  it.client.unsubscribe("a");
  await it.pass(10);
  assert.equal(it.opened.length, 2);
  assert.deepEqual(it.last().ask.channels, ["b", "c"]);
  assert.equal(it.last().ask.query.last_event_id, "c1");
  it.client.unsubscribe(["b", "c"]);
  await it.pass(60_000);
  assert.equal(it.opened.length, 2);
  assert.ok(it.last().closed);
  it.client.subscribe("d");
  await it.pass(10);
  assert.deepEqual(it.last().ask.channels, ["d"]);
  assert.equal(it.last().ask.query.last_event_id, undefined, "from here on, and not from when there was nothing");
});

test("a transport that isn't there is told at once, and what nobody listens for goes to the console", async (t) => {
  assert.throws(() => new MsgPush("http://x", { user: "u", transport: "eventsource" }), /no EventSource here/);
  const said = t.mock.method(console, "error", () => {});
  const transport = (_, __, ended) => (queueMicrotask(() => ended({ status: 403, detail: "403 not yours" })), { close() {} });
  const client = new MsgPush("http://x", { user: "u", transport });
  await new Promise(setImmediate);
  assert.match(String(said.mock.calls[0].arguments[1]), /403 not yours/);
  client.close();
});

test("a WebSocket is told of other channels, and takes acknowledgements", async (t) => {
  const it = play(t, { user: "u" });
  t.mock.method(globalThis, "fetch", async () => { throw new Error("no network"); });
  await it.settle();
  const sent = [];
  it.last().send = (text) => sent.push(JSON.parse(text));
  it.begin();
  it.client.subscribe("b");
  it.client.unsubscribe("a");
  assert.deepEqual(sent, [{ subscribe: ["b"], ref: 1 }, { unsubscribe: ["a"], ref: 2 }]);
  it.last().take({ ref: 1, error: { status: 403, detail: "not b" } });
  await it.settle();
  assert.match(it.heard.error[0].message, /subscribe b: 403 not b/);
  const done = it.client.acknowledge("s/m");
  await it.settle();
  assert.deepEqual(sent[2], { acknowledge: ["s/m"], user: "u", ref: 3 });
  it.last().ended({}); // before the answer: it is said again
  await it.pass(300);
  it.last().send = (text) => sent.push(JSON.parse(text));
  it.begin();
  await it.pass(1000);
  assert.deepEqual(sent[3], { acknowledge: ["s/m"], user: "u", ref: 4 });
  it.last().take({ ref: 4, ok: { acknowledged: [], unknown: ["s/m"] } });
  await done;
});

test("the text of a stream may come in any pieces, with any end of line", async (t) => {
  const blocks = [
    ": a comment\r\nretry: 2000\r\nevent: msgpush.open\r\nid: c1\r\ndata: {\"connection\":\"x\",\"channels\":[],\"heartbeat\":30}\r\n\r\n",
    `id: c2\rdata: ${JSON.stringify(message("ü€😀"))}\r\r`,
    `data:${JSON.stringify(message("two")).replace('"data"', '\ndata:"data"')}\nid: c3\n\n`,
    "data\nevent: unheard of\n\n".replace("data\n", "data: 1\n"),
  ];
  const bytes = new TextEncoder().encode(blocks.join(""));
  for (const size of [1, 2, 3, 7, bytes.length]) {
    const pieces = Array.from({ length: Math.ceil(bytes.length / size) }, (_, n) => bytes.slice(n * size, (n + 1) * size));
    const fetched = t.mock.method(globalThis, "fetch", async () => new Response(ReadableStream.from(pieces)));
    const client = new MsgPush("https://push.example", { channels: ["a"], transport: "fetch" });
    const heard = told(client);
    while (heard.message.length < 2) await new Promise(setImmediate);
    assert.deepEqual(heard.texts(), ["ü€😀", "two"]);
    client.close();
    fetched.mock.restore();
  }
});
