// Web Push: a registration that stands in for the browser's, and a small service that has the API of devices.
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { test } from "node:test";
import { handlePush } from "../dist/push-worker.js";
import { disablePush, enablePush } from "../dist/push.js";

const KEY = Buffer.from("a public key: 65 bytes in real life?").toString("base64url");

async function service(t, answers) {
  const asked = [];
  const server = createServer(async (request, response) => {
    const body = (await request.setEncoding("utf8").toArray()).join("");
    asked.push([request.method, request.url, request.headers.authorization, body && JSON.parse(body)]);
    const [status, answer] = answers[`${request.method} ${request.url}`] ?? [404, {}];
    response.writeHead(status).end(status === 204 ? undefined : JSON.stringify(answer));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => (server.closeAllConnections(), server.close()));
  return [`http://127.0.0.1:${server.address().port}`, asked];
}

function registration(key) {
  const made = [];
  const subscription = (applicationServerKey) => ({
    options: { applicationServerKey: Uint8Array.from(applicationServerKey).buffer },
    toJSON: () => ({ endpoint: "https://push.example/1", keys: { p256dh: "p", auth: "a" } }),
    unsubscribe: async () => ((current = null), made.push("unsubscribed")),
  });
  let current = key ? subscription(key) : null;
  const pushManager = {
    getSubscription: async () => current,
    subscribe: async (how) => (made.push(how), (current = subscription(how.applicationServerKey))),
  };
  return [{ pushManager }, made];
}

const device = { device: "d1", kind: "webpush", label: "desk", created_at: "2026-01-01T00:00:00.000Z" };
const on = {
  "GET /api/v1/push": [200, { webpush: { public_key: KEY }, fcm: false, apns: false }],
  "POST /api/v1/users/a%2Fb/devices": [201, device],
  "DELETE /api/v1/users/a%2Fb/devices/d1": [204],
};

test("a browser is enlisted with the service's key, once, and signed off again", async (t) => {
  const [url, asked] = await service(t, on);
  const [worker, made] = registration();
  const options = { url, user: "a/b", token: async () => "t", label: "desk" };
  assert.deepEqual(await enablePush(worker, options), device);
  assert.equal(made[0].userVisibleOnly, true);
  assert.equal(Buffer.from(made[0].applicationServerKey).toString("base64url"), KEY);
  const webpush = { endpoint: "https://push.example/1", keys: { p256dh: "p", auth: "a" } };
  assert.deepEqual(asked[1].slice(2), ["Bearer t", { webpush, label: "desk" }]);
  await enablePush(worker, options);
  assert.equal(made.length, 1, "it keeps its subscription");
  await disablePush(worker, { ...options, device: "d1" });
  assert.equal(made.at(-1), "unsubscribed");
  assert.deepEqual(asked.at(-1).slice(0, 2), ["DELETE", "/api/v1/users/a%2Fb/devices/d1"]);
});

test("a subscription to another key is replaced", async (t) => {
  const [url] = await service(t, on);
  const [worker, made] = registration(Buffer.from("an old key"));
  await enablePush(worker, { url, user: "a/b" });
  assert.equal(made[0], "unsubscribed");
  assert.equal(made.length, 2);
});

test("a service that has it off, or refuses, is told", async (t) => {
  const [off] = await service(t, { "GET /api/v1/push": [200, { webpush: null, fcm: false, apns: false }] });
  const [worker] = registration();
  await assert.rejects(enablePush(worker, { url: off, user: "a/b" }), /off/);
  const [url] = await service(t, { ...on, "POST /api/v1/users/a%2Fb/devices": [409, { detail: "of another user" }] });
  await assert.rejects(enablePush(worker, { url, user: "a/b" }), /409.*of another user/);
});

/** The service worker's side of a browser. */
function scope(origin, ...open) {
  return worker(origin, {}, ...open);
}

function worker(origin, options, ...open) {
  const acts = {};
  const did = [];
  const page = (url) => ({ url, focus: async () => did.push(["focus", url]) });
  const pushManager = { subscribe: async (how) => did.push(["subscribe", how]) };
  handlePush(options, {
    location: new URL(`${origin}/worker.js`),
    registration: { showNotification: async (title, options) => did.push(["show", title, options]), pushManager },
    clients: { matchAll: async () => open.map(page), openWindow: async (url) => did.push(["open", url]) },
    addEventListener: (name, act) => (acts[name] = act),
  });
  const happen = async (name, event) => {
    const works = [];
    acts[name]({ ...event, waitUntil: (work) => works.push(work) });
    await Promise.all(works);
    return did;
  };
  return {
    push: (pushed) => happen("push", { data: { json: () => pushed } }),
    change: (event) => happen("pushsubscriptionchange", event),
    click: (data) => happen("notificationclick", { notification: { data, close: () => did.push(["closed"]) } }),
  };
}

test("what is pushed is shown, under one tag for the same thing", async () => {
  const pushed = { key: "s/1", title: "Hello", body: "You", icon: "/icon.svg" };
  const [[, title, options]] = await scope("https://page.example").push(pushed);
  assert.equal(title, "Hello");
  assert.deepEqual(options, { body: "You", icon: "https://page.example/icon.svg", tag: "s/1", data: pushed });
});

test("a click opens a page of the worker's own origin alone, or shows the one that is open, and acknowledges", async (t) => {
  const [url, asked] = await service(t, { "POST /api/v1/users/u/acknowledgements": [200, {}] });
  const acknowledge = { url: "/api/v1/users/u/acknowledgements", word: "w" };
  const one = await scope(url).click({ key: "s/1", url: "/orders/7", acknowledge });
  assert.deepEqual(one, [["closed"], ["open", `${url}/orders/7`]]);
  assert.deepEqual(asked[0][3], { keys: ["s/1"], word: "w" });
  const shown = await scope(url, `${url}/orders/7`).click({ key: "s/1", url: "/orders/7" });
  assert.deepEqual(shown.at(-1), ["focus", `${url}/orders/7`]);
  assert.deepEqual(await scope(url).click({ key: "s/1", url: "https://elsewhere.example/" }), [["closed"]]);
});

test("an address that is none, or leads elsewhere, is neither opened nor shown, and keeps nothing from being shown", async () => {
  const origin = "https://page.example";
  const { push, click } = scope(origin);
  for (const url of [
    ...["javascript:alert(1)", "data:text/html,x", `blob:${origin}/1`, "file:///etc/passwd", "about:blank"],
    ...["//evil.example/", "/\\evil.example/", "\\\\evil.example", "/\t/evil.example", " //evil.example"],
    ...["https://evil.example/", "https://page.example@evil.example/", "https://page.example.evil.example/"],
    ...["http://page.example/", "https://page.example:8443/", "https://[", "https://", "https://%"],
  ]) {
    const did = (await push({ key: "s/1", title: "Hello", icon: url })).splice(0);
    assert.deepEqual(did, [["show", "Hello", { tag: "s/1", data: { key: "s/1", title: "Hello", icon: url } }]], url);
    assert.deepEqual((await click({ key: "s/1", url })).splice(0), [["closed"]], url);
  }
});

test("a service elsewhere, or below a path, is told by the word that came along, and by nothing else", async (t) => {
  const [url, asked] = await service(t, { "POST /push/api/v1/users/u/acknowledgements": [200, {}] });
  const acknowledge = { url: "https://evil.example/api/v1/users/u/acknowledgements", word: "w" };
  await worker("https://page.example", { url: `${url}/push/` }).click({ key: "s/1", acknowledge });
  assert.deepEqual(asked, [["POST", "/push/api/v1/users/u/acknowledgements", undefined, { keys: ["s/1"], word: "w" }]]);
});

test("a subscription that the browser replaces is taken, and registered where it is said how", async () => {
  const renewed = [];
  const renew = async (registration) => renewed.push(typeof registration.pushManager.subscribe);
  const oldSubscription = { options: { applicationServerKey: KEY } };
  const ended = await worker("https://page.example", { renew }).change({ oldSubscription });
  assert.deepEqual(ended, [["subscribe", { userVisibleOnly: true, applicationServerKey: KEY }]]);
  const replaced = await worker("https://page.example", { renew }).change({ oldSubscription, newSubscription: {} });
  assert.deepEqual([replaced, renewed], [[], ["function", "function"]]);
  assert.deepEqual(await scope("https://page.example").change({}), []);
});
