import { Connection } from "./connection.js";
import { tokenOf } from "./token.js";
import { auto, eventSource, fetching, webSocket } from "./transports.js";
import type { Acknowledged, Closed, Frame, Gap, Message, Opened, Options, Setup, Source, Transport } from "./types.js";

export type * from "./types.js";

const REMEMBERED = 10_000; // keys of messages that want an acknowledgement
const PATIENCE = 300_000; // of an acknowledgement
const AT_ONCE = 1000; // keys
const TRANSPORTS: Record<string, Transport> = { auto, eventsource: eventSource, fetch: fetching, websocket: webSocket };

/** What a client tells, by name. */
export interface Events {
  message: [message: Message];
  gap: [gap: Gap];
  open: [opened: Opened];
  close: [closed: Closed];
  acknowledged: [acknowledged: Acknowledged];
  error: [error: Error];
}

/** `<service>/<id>`: what a message is acknowledged by. */
export const keyOf = ({ service, id }: Message): string => `${service}/${id}`;

/** Hears messages until `close`: nothing is lost and nothing doubled, or a `gap` says so. */
export class MsgPush {
  #options: Options;
  #setup: Setup;
  #channels: Set<string>;
  #source: Source | undefined;
  #closed = false;
  #heard = new Map<string, Set<(...told: any[]) => void>>();
  #seen = new Set<string>();
  #done = new Set<string>();

  /**
   * @param url where the service is, such as `https://push.example.com`; in a page it may be a path.
   * @throws TypeError: there is nothing to listen to, or no such transport.
   */
  constructor(url: string, options: Options) {
    const { user, service, channels = [], types = options.events, priority, transport = "auto" } = options;
    const named = typeof channels === "string" ? [channels] : [...channels];
    if (user !== undefined) named.push(`user:${user}`);
    if (service !== undefined) named.push(`service:${service}`);
    const open = typeof transport === "string" ? TRANSPORTS[transport] : transport;
    if (!named.length) throw new TypeError("nothing to listen to");
    const needed = { eventsource: "EventSource", websocket: "WebSocket" }[transport as string];
    if (needed && !(needed in globalThis)) throw new TypeError(`there is no ${needed} here`);
    if (!open || (open === webSocket && !globalThis.WebSocket) || (open === eventSource && !globalThis.EventSource))
      throw new TypeError(`no transport ${transport} here`);
    this.#options = options;
    this.#channels = new Set(named);
    this.#setup = {
      base: new URL(url, globalThis.location?.href).href.replace(/\/*$/, ""),
      channels: named,
      query: {
        ...(types && { types: types.join() }),
        ...(priority && { priority }),
        ...(options.passive && { passive: "true" }),
        ...(options.broadcast === false && { broadcast: "false" }),
      },
      token: tokenOf(options.token),
      since: this.#kept() || options.since || "",
      transport: open,
      withCredentials: !!options.withCredentials,
    };
    const take = (frame: Frame) => this.#take(frame);
    if (options.session === undefined) this.#source = new Connection(this.#setup, take);
    else
      void import("./tabs.js").then(({ Tabs }) => {
        const setup = { ...this.#setup, channels: [...this.#channels] };
        if (!this.#closed) this.#source = new Tabs(options.session!, setup, take, (keys) => this.#know(keys));
      });
  }

  /**
   * Hear what is told under a name: that of a message's type, or one of `Events`. The type `error` is `message.error`.
   * @returns what ends it.
   */
  on<Name extends keyof Events>(name: Name, hear: (...told: Events[Name]) => void): () => void;
  on<Data = any>(type: string, hear: (data: Data, message: Message<Data>) => void): () => void;
  on(name: string, hear: (...told: any[]) => void): () => void {
    const all = this.#heard.get(name) ?? new Set();
    this.#heard.set(name, all.add(hear));
    return () => void all.delete(hear);
  }

  /** Listen to these, too, from here on. */
  subscribe(channels: string | readonly string[]): void {
    for (const name of [channels].flat()) this.#channels.add(name);
    this.#source?.listen([...this.#channels]);
  }

  unsubscribe(channels: string | readonly string[]): void {
    for (const name of [channels].flat()) this.#channels.delete(name);
    this.#source?.listen([...this.#channels]);
  }

  /**
   * The user has these messages; once it is done the service knows. They are messages, or keys of messages to `user`.
   * @throws Error: it is refused, or was tried for five minutes.
   */
  async acknowledge(...given: (Message | string)[]): Promise<void> {
    const byUser = new Map<string | undefined, string[]>();
    for (const each of given) {
      const user = (typeof each === "string" ? undefined : each.target?.user_id) ?? this.#options.user;
      const key = typeof each === "string" ? each : keyOf(each);
      byUser.set(user, [...(byUser.get(user) ?? []), key]);
    }
    for (const [user, keys] of byUser)
      for (let start = 0; start < keys.length; start += AT_ONCE) {
        const some = keys.slice(start, start + AT_ONCE);
        await this.#acknowledge(user, some);
        this.#know(some);
        this.#source?.acknowledged?.(some);
      }
  }

  /** Hear nothing any longer. */
  close(): void {
    this.#closed = true;
    this.#source?.close();
    this.#heard.clear();
  }

  async #acknowledge(user: string | undefined, keys: string[]): Promise<void> {
    if (user === undefined) throw new TypeError("whose messages are these? Give `user`, or the messages");
    const until = Date.now() + PATIENCE;
    for (let pause = 250; ; pause = Math.min(10_000, 2 * pause)) {
      const [status, why] = await this.#say(user, keys).catch((error) => [0, String(error)] as const);
      if (status >= 200 && status < 300) return;
      const { token } = this.#setup;
      if (status === 401) token.forget();
      const passes = !status || status >= 500 || [408, 425, 429].includes(status) || (status === 401 && token.renewable);
      if (!passes || Date.now() > until || this.#closed) throw new Error(`not acknowledged: ${status || ""} ${why}`);
      await new Promise((done) => setTimeout(done, pause * (0.5 + Math.random() / 2)));
    }
  }

  /** Acknowledge once, on the connection where it takes commands: the status, and what was said about it. */
  async #say(user: string, keys: string[]): Promise<readonly [number, string]> {
    const answered = await this.#source?.command?.({ acknowledge: keys, user });
    if (answered) return [answered.error?.status ?? 200, answered.error?.detail ?? ""];
    const { base, token, withCredentials } = this.#setup;
    const shown = await token.get();
    const answer = await fetch(`${base}/api/v1/users/${encodeURIComponent(user)}/acknowledgements`, {
      method: "POST",
      body: JSON.stringify({ keys }),
      headers: shown ? { Authorization: `Bearer ${shown}` } : {},
      credentials: withCredentials ? "include" : "same-origin",
      keepalive: keys.length < 100, // a page that is left may say it
    });
    return [answer.status, await answer.text()];
  }

  #take({ event, id, data }: Frame): void {
    if (event === "message") this.#hear(data, id);
    else if (event === "error") this.#tell(event, data);
    else if (event !== "msgpush.heartbeat") this.#tell(event.slice("msgpush.".length), data);
    if (id) this.#keep(id);
  }

  #hear(message: Message, id: string | undefined): void {
    const { ack, retry_count } = message.metadata;
    if (ack) {
      const key = keyOf(message);
      const again = retry_count > 0 || !id;
      if (again && this.#done.has(key))
        // That word may have been lost.
        return void this.acknowledge(message).catch((error) => this.#tell("error", error));
      if (again && this.#seen.has(key)) return;
      remember(this.#seen, key);
    }
    this.#tell("message", message);
    this.#tell(message.type === "error" ? "message.error" : message.type, message.data, message);
  }

  #know(keys: readonly string[]): void {
    for (const key of keys) remember(this.#done, key);
  }

  #tell(name: string, ...told: unknown[]): void {
    if (name === "error" && !this.#heard.get(name)?.size) console.error("msgpush:", ...told);
    for (const hear of [...(this.#heard.get(name) ?? [])])
      try {
        hear(...told);
      } catch (error) {
        // Whoever fails to hear one thing keeps nobody from hearing the next.
        queueMicrotask(() => {
          throw error;
        });
      }
  }

  #kept(): string | null | undefined {
    const { storage } = this.#options;
    try {
      return storage ? sessionStorage.getItem(storage) : null;
    } catch {
      return null; // forbidden, or not there
    }
  }

  #keep(cursor: string): void {
    const { storage } = this.#options;
    try {
      if (storage) sessionStorage.setItem(storage, cursor);
    } catch {
      // As above.
    }
  }
}

function remember(keys: Set<string>, key: string): void {
  keys.add(key);
  if (keys.size > REMEMBERED) keys.delete(keys.values().next().value!);
}
