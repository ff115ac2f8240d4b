// The real service as a process of a test's own, and what tests ask it.
import { spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { request } from "node:http";
import { createServer, connect } from "node:net";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

export const SECRET = "a secret of the tests, 32 bytes or more";
const PATIENCE = 10_000;
const VENV = fileURLToPath(new URL("../../../.venv/bin/python", import.meta.url));
const PYTHON = process.env.MSGPUSH_PYTHON ?? (existsSync(VENV) ? VENV : "python3");

/** Resolves to what a condition gives once it is true; fails when it isn't in time. */
export async function eventually(condition, milliseconds = PATIENCE) {
  for (const until = Date.now() + milliseconds; Date.now() < until; await sleep(5)) {
    const found = await condition();
    if (found) return found;
  }
  throw new Error(`it has not become true in time: ${condition}`);
}

export class Service {
  /** Start `msgpush serve`; it ends with the test. */
  static async start(test, settings = {}) {
    const service = new Service();
    const environ = { PATH: process.env.PATH, HOME: process.env.HOME, SERVICE_PORT: "0", LOG_FORMAT: "json", ...settings };
    service.process = spawn(PYTHON, ["-m", "msgpush", "serve"], { env: environ, stdio: ["ignore", "ignore", "pipe"] });
    test.after(() => service.kill());
    const lines = createInterface({ input: service.process.stderr });
    service.port = await new Promise((done, fail) => {
      const log = [];
      lines.on("line", (line) => {
        log.push(line);
        if (line.includes('"event":"ready"') || line.includes('"event": "ready"')) done(JSON.parse(line).port);
      });
      service.process.once("exit", () => fail(new Error(`it didn't start: ${log.join("\n")}`)));
    });
    service.url = `http://127.0.0.1:${service.port}`;
    service.headers = settings.JWT_SECRET ? { Authorization: `Bearer ${token("ops", { admin: true, publish: ["*"] })}` } : {};
    return service;
  }

  async kill(signal = "SIGKILL") {
    if (this.process.exitCode !== null || this.process.signalCode) return;
    const ended = new Promise((done) => this.process.once("exit", done));
    this.process.kill(signal);
    await ended;
  }

  /** Over a connection of its own: one that a stream has ended on may be closed in this very moment. */
  async ask(method, path, body) {
    const asked = request(this.url + path, { method, headers: this.headers, agent: false });
    asked.end(body && JSON.stringify(body));
    const [answer] = await once(asked, "response");
    const text = (await answer.setEncoding("utf8").toArray()).join("");
    if (answer.statusCode >= 300) throw new Error(`${answer.statusCode} ${text}`);
    return text ? JSON.parse(text) : undefined;
  }

  publish(message) {
    return this.ask("POST", "/api/v1/messages/send", { type: "info", service: "tests", ...message });
  }

  async connections() {
    return (await this.ask("GET", "/api/v1/connections")).connections;
  }

  disconnect({ id }, reconnect) {
    return this.ask("DELETE", `/api/v1/connections/${id}?reconnect=${reconnect}`);
  }
}

/** A port of its own that leads to the service, until it is cut. */
export class Proxy {
  static async start(test, port, at = 0) {
    const proxy = new Proxy();
    proxy.open = new Set();
    proxy.seen = 0;
    proxy.mute = false; // whether nothing comes through any longer, and nobody is told
    proxy.server = createServer((client) => {
      proxy.seen += 1;
      const service = connect(port, "127.0.0.1");
      proxy.open.add(client);
      client.on("close", () => (service.destroy(), proxy.open.delete(client)));
      service.on("close", () => client.destroy());
      for (const each of [client, service]) each.on("error", () => {});
      client.on("data", (data) => proxy.mute || service.write(data));
      service.on("data", (data) => proxy.mute || client.write(data));
    });
    await new Promise((done) => proxy.server.listen(at, "127.0.0.1", done));
    proxy.port = proxy.server.address().port;
    proxy.url = `http://127.0.0.1:${proxy.port}`;
    test.after(() => proxy.end());
    return proxy;
  }

  /** Cut what is open: cleanly, or with a reset. */
  cut(clean = false) {
    for (const each of this.open) clean ? each.end() : each.resetAndDestroy();
  }

  end() {
    this.cut();
    this.server.close();
  }
}

/** A token for somebody. */
export function token(sub, permissions = {}, lifetime = 600) {
  const now = Math.floor(Date.now() / 1000);
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const text = `${part({ alg: "HS256", typ: "JWT" })}.${part({ sub, iat: now, exp: now + lifetime, msgpush: permissions })}`;
  return `${text}.${createHmac("sha256", SECRET).update(text).digest("base64url")}`;
}

/** All that a client tells, in its order, by name. */
export function told(client) {
  const heard = { message: [], gap: [], open: [], close: [], acknowledged: [], error: [] };
  for (const [name, list] of Object.entries(heard)) client.on(name, (each) => list.push(each));
  heard.texts = () => heard.message.map(({ data }) => data.text);
  return heard;
}
