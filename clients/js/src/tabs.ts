/*
 * One connection for all tabs.
 *
 * A web lock says who leads: that tab has the connection, listens to the channels of all, and passes on all frames over a
 * BroadcastChannel, numbered. A leader that is closed lets go of the lock, and the next in line goes on at its own cursor.
 * One that hangs gives no answer to a ping: the lock is stolen from it. So it is from one that has no stream and isn't seen,
 * since a browser lets such a tab try only once a minute. The later a leader, the greater its epoch; nobody
 * listens to an earlier one.
 *
 * Each tab keeps a cursor of its own. Where it isn't the leader's, or a number is missing, the tab catches up on a stream
 * of its own until that meets what the leader says. So what a tab hears depends on nobody's good timing. Only a few catch
 * up at a time, or a browser's connections to the server were used up.
 *
 * Where what all want together is refused, they part: each has a connection of its own from then on.
 */

import { Connection } from "./connection.js";
import type { Frame, Message, Opened, Setup, Source } from "./types.js";

const QUIET = 2_000; // after so long a tab asks whether the leader is there
const UNANSWERED = 2_000; // after so long without an answer there is none
const TICK = 500;
const SOON = 20; // tabs that are opened together
const LATER = 2_000; // tabs that are closed, or only reload
const REMEMBERED = 5_000;
const MOST_CHANNELS = 64; // of a stream
const SIDES = 3; // tabs that catch up at a time: a browser has six connections to a server in all
const ENDS = ["disconnected", "revoked", "over", "session"]; // what ends a session, and is no refusal

interface Said {
  kind: "join" | "leave" | "ping" | "lead" | "beat" | "frame" | "done" | "part";
  from: string;
  epoch: number;
  channels?: readonly string[];
  keys?: readonly string[];
  frame?: Frame;
  seq?: number;
  cursor?: string;
  opened?: Opened | undefined;
  hidden?: boolean;
}

/** The share that a tab has in the connection of a session. */
export class Tabs implements Source {
  #setup: Setup;
  #take: (frame: Frame) => void;
  #know: (keys: readonly string[]) => void;
  #id = Math.random().toString(36).slice(2);
  #name: string;
  #session: string;
  #shared: boolean; // whether this page can share at all
  #channel: BroadcastChannel | undefined;
  #sessions: BroadcastChannel | undefined;
  #channels: readonly string[];
  #others = new Map<string, readonly string[]>();
  #cursor: string; // after what this tab has taken
  #had = new Set<string>();

  // What is known of the leader.
  #epoch = 0;
  #seq: number | undefined;
  #position = ""; // its cursor
  #opened: Opened | undefined;
  #pendingShown = false;
  #covered = false; // its stream has all channels of this tab
  #heard = Date.now();
  #pinged = 0;
  #hidden = false; // nobody sees it
  #missed = 0; // since when it has no stream

  #connection: Connection | undefined; // of the leader, or where tabs can't share
  #asked: readonly string[] = []; // its channels
  #change: ReturnType<typeof setTimeout> | undefined;
  #release: (() => void) | undefined; // what the leader ends with
  #waiting: AbortController | undefined; // in line for the lock
  #catching: AbortController | undefined;
  #side: Connection | undefined; // its stream, when it is its turn
  #waits: Frame[] = []; // what the leader has said meanwhile
  #watch: ReturnType<typeof setInterval> | undefined;
  #asleep = false;
  #over = new AbortController();

  constructor(
    session: string,
    setup: Setup,
    take: (frame: Frame) => void,
    know: (keys: readonly string[]) => void = () => {},
  ) {
    this.#setup = setup;
    this.#take = take;
    this.#know = know;
    this.#channels = setup.channels;
    this.#cursor = setup.since === "latest" ? "" : setup.since;
    this.#session = session;
    // Only tabs that want the same of each message can share.
    this.#name = JSON.stringify([this.#origin(), session, setup.query]);
    this.#shared = !!globalThis.navigator?.locks && !!globalThis.BroadcastChannel;
    if (!this.#shared) {
      if (globalThis.BroadcastChannel) this.#tune(true); // who is signed in counts all the same
      this.#connection = new Connection(setup, take); // such as a page that isn't served over TLS
      return;
    }
    this.#tune(true);
    this.#watch = setInterval(() => this.#look(), TICK);
    const hear = (target: EventTarget | undefined, name: string, act: () => void) =>
      target?.addEventListener(name, act, { signal: this.#over.signal });
    const page = globalThis.document;
    hear(globalThis, "pagehide", () => {
      this.#sleep();
      this.#detune();
    });
    hear(globalThis, "pageshow", () => this.#rise());
    hear(page, "freeze", () => this.#sleep());
    hear(page, "resume", () => this.#rise());
    hear(page, "visibilitychange", () => this.#look());
    this.#join();
  }

  listen(channels: readonly string[]): void {
    this.#channels = channels;
    if (!this.#shared) return this.#connection?.listen(channels);
    this.#covered = this.#covers(this.#opened);
    this.#say("join", { channels });
    this.#changed();
  }

  acknowledged(keys: readonly string[]): void {
    this.#say("done", { keys });
  }

  close(): void {
    this.#sleep();
    this.#over.abort();
    clearInterval(this.#watch);
    this.#detune();
    this.#connection?.close();
  }

  #origin(): string {
    return `msgpush ${this.#setup.base}`;
  }

  #tune(begins: boolean): void {
    this.#channel = new BroadcastChannel(this.#name);
    this.#channel.onmessage = ({ data }: MessageEvent<Said>) => this.#hears(data);
    this.#sessions = new BroadcastChannel(this.#origin());
    this.#sessions.onmessage = ({ data }: MessageEvent<{ session: string; begins: boolean }>) => {
      if (data.session === this.#session || this.#over.signal.aborted) return;
      // Somebody else is signed in now: nothing is shared with them, and nothing goes on behind their back.
      if (data.begins) this.#end("session");
      else this.#sessions?.postMessage({ session: this.#session, begins: true });
    };
    this.#sessions.postMessage({ session: this.#session, begins });
  }

  /** A browser doesn't keep a page for its way back to which somebody speaks. */
  #detune(): void {
    this.#channel?.close();
    this.#sessions?.close();
    this.#channel = this.#sessions = undefined;
  }

  #say(kind: Said["kind"], more: Partial<Said> = {}): void {
    if (!this.#asleep && !this.#over.signal.aborted)
      this.#channel?.postMessage({ kind, from: this.#id, epoch: this.#epoch, ...more } satisfies Said);
  }

  // Who leads

  #join(): void {
    if (!this.#shared) return;
    this.#heard = Date.now();
    this.#pinged = 0;
    this.#seq = undefined;
    this.#say("join", { channels: this.#channels });
    this.#queue();
  }

  #queue(): void {
    this.#waiting = new AbortController();
    this.#hold({ signal: this.#waiting.signal });
  }

  #hold(how: LockOptions): void {
    navigator.locks
      .request(this.#name, how, () => {
        this.#waiting = undefined;
        return new Promise<void>((release) => this.#lead(release));
      })
      .catch(() => how.signal?.aborted || this.#stepDown()); // it was stolen
  }

  #steal(): void {
    this.#pinged = 0;
    this.#heard = this.#missed = Date.now();
    this.#waiting?.abort();
    this.#waiting = undefined;
    this.#hold({ steal: true });
  }

  #lead(release: () => void): void {
    if (this.#asleep || this.#over.signal.aborted) return release();
    this.#epoch = Math.max(this.#epoch + 1, Date.now());
    this.#seq = 0;
    this.#opened = undefined;
    this.#release = release;
    this.#abandon();
    this.#say("lead");
    this.#open();
  }

  #stepDown(): void {
    if (!this.#release) return;
    this.#retire();
    if (!this.#asleep && !this.#over.signal.aborted) this.#join();
  }

  #retire(): void {
    clearTimeout(this.#change);
    this.#change = undefined;
    if (!this.#shared) return;
    this.#connection?.close();
    this.#connection = undefined;
    this.#release?.();
    this.#release = undefined;
  }

  #look(): void {
    const now = Date.now();
    if (this.#release || this.#asleep || !this.#shared) return;
    if (this.#hidden && !hidden() && !this.#opened && now - this.#missed > QUIET) return this.#steal();
    if (now - this.#heard < QUIET) return;
    if (!this.#pinged) {
      this.#pinged = now;
      this.#say("ping");
    } else if (now - this.#pinged > UNANSWERED) this.#steal();
  }

  #sleep(): void {
    this.#say("leave");
    this.#asleep = true;
    this.#waiting?.abort();
    this.#waiting = undefined;
    this.#abandon();
    this.#retire();
  }

  #rise(): void {
    if (!this.#asleep) return;
    this.#asleep = false;
    this.#detune();
    this.#tune(false); // who has come back doesn't know yet who is signed in
    this.#join();
  }

  #end(reason: string): void {
    this.#take({ event: "msgpush.close", data: { reason, reconnect: false } });
    this.close();
  }

  // The connection of the leader

  #union(): string[] {
    return [...new Set([...this.#channels, ...[...this.#others.values()].flat()])].sort();
  }

  #open(): void {
    this.#change = undefined;
    this.#connection?.close();
    this.#asked = this.#union();
    if (this.#asked.length > MOST_CHANNELS) {
      this.#say("part");
      return this.#part();
    }
    this.#connection = new Connection({ ...this.#setup, channels: this.#asked, since: this.#cursor }, (frame) => {
      if (!this.#release) return;
      this.#say("frame", { seq: ++this.#seq!, frame, hidden: hidden() });
      this.#receive(frame);
    });
  }

  /** The channels that all tabs want may be others now. */
  #changed(): void {
    if (!this.#release) return;
    const union = this.#union();
    const grown = union.some((name) => !this.#asked.includes(name));
    clearTimeout(this.#change);
    this.#change = undefined;
    if (grown || union.length < this.#asked.length)
      this.#change = setTimeout(() => this.#open(), grown ? SOON : LATER);
  }

  // What other tabs say

  #hears(said: Said): void {
    const { kind, from, epoch } = said;
    if (this.#asleep) return;
    if (kind === "join") this.#others.set(from, said.channels!);
    if (kind === "leave") this.#others.delete(from);
    if (kind === "done") this.#know(said.keys!);
    if (!this.#shared) return;
    if (kind === "part") return this.#part();
    if (kind === "lead" || kind === "beat" || kind === "frame") return this.#follow(said);
    if (!this.#release) return;
    if (kind !== "done") this.#beat();
    this.#changed();
    if (epoch > this.#epoch) this.#stepDown(); // somebody has heard of a later leader
  }

  #beat(): void {
    this.#say("beat", { seq: this.#seq!, cursor: this.#cursor, opened: this.#opened, hidden: hidden() });
  }

  #follow({ kind, epoch, seq, frame, cursor, opened, hidden }: Said): void {
    if (epoch < this.#epoch) return;
    if (epoch > this.#epoch) {
      this.#epoch = epoch;
      this.#seq = undefined;
      if (this.#release) return this.#stepDown();
    }
    this.#heard = Date.now();
    this.#pinged = 0;
    this.#hidden = hidden ?? false;
    if (kind === "lead") this.#say("join", { channels: this.#channels });
    if (kind === "beat" && seq !== this.#seq) this.#adopt(seq!, cursor!, opened);
    if (kind !== "frame") return;
    const begins = frame!.event === "msgpush.open";
    if (begins || seq === (this.#seq ?? NaN) + 1) {
      this.#seq = seq;
      this.#receive(frame!);
    } else {
      this.#seq = undefined; // some are missing: the answer says where the leader is
      this.#say("join", { channels: this.#channels });
    }
  }

  /** Follow a leader from where it is. */
  #adopt(seq: number, cursor: string, opened: Opened | undefined): void {
    this.#seq = seq;
    if (!this.#pendingShown) {
      this.#pendingShown = true;
      this.#showPending().catch(() => {}); // the next delivery brings them
    }
    this.#position = cursor;
    if (opened) this.#receive({ event: "msgpush.open", id: cursor, data: opened });
  }

  // What this tab takes

  /** A frame of the leader's stream. */
  #receive(frame: Frame): void {
    const { event, id, data } = frame;
    this.#position = id ?? this.#position;
    if (event === "msgpush.open") {
      this.#opened = data;
      this.#covered = this.#covers(data);
      if (this.#covered && this.#cursor && this.#cursor !== id && !this.#catching) this.#catchUp();
    }
    if (event === "msgpush.close") {
      this.#opened = undefined;
      this.#missed = Date.now();
      if (!data.reconnect) return ENDS.includes(data.reason) ? this.#end(data.reason) : this.#part();
    }
    if (this.#catching) this.#waits.push(frame);
    else this.#deliver(frame);
  }

  #deliver(frame: Frame): void {
    const { event, id, data } = frame;
    if (id && this.#covered) this.#cursor = id;
    if (event === "message" ? this.#wants(data, id) : event !== "msgpush.gap" || this.#concerns(data.channel))
      this.#take(frame);
    else if (id) this.#take({ event: "msgpush.heartbeat", id });
  }

  #catchUp(): void {
    const catching = (this.#catching = new AbortController());
    const { signal } = catching;
    navigator.locks
      .request(`${this.#name} catching up ${Math.floor(Math.random() * SIDES)}`, { signal }, () => {
        if (signal.aborted) return;
        this.#side = this.#aside();
        return new Promise<void>((done) => signal.addEventListener("abort", () => done()));
      })
      .catch(() => {}); // it isn't wanted any longer
  }

  /** A stream from where this tab is, until it meets what the leader says. */
  #aside(): Connection {
    const setup = { ...this.#setup, channels: this.#channels, since: this.#cursor };
    return new Connection(setup, (frame) => {
      const { event, id, data } = frame;
      if (id) this.#cursor = id;
      if (event === "message" ? this.#wants(data, id) : event === "msgpush.gap") this.#take(frame);
      const beat = event === "msgpush.heartbeat";
      const met = this.#waits
        .map((each) => (beat ? each.id === id : event === "message" && each.event === event && same(each.data, data)))
        .lastIndexOf(true);
      const over = event === "msgpush.close" && !data.reconnect;
      if (((met >= 0 || beat) && this.#covered) || over) this.#caughtUp(met);
    });
  }

  /** Go on with what the leader has said after the frame of this number. */
  #caughtUp(met: number): void {
    const waited = this.#waits.slice(met + 1);
    this.#abandon();
    for (const frame of waited) this.#deliver(frame);
  }

  #abandon(): void {
    this.#side?.close();
    this.#side = undefined;
    this.#catching?.abort();
    this.#catching = undefined;
    this.#waits = [];
  }

  /** What all tabs want together is refused: each asks for what it wants itself, and hears why. */
  #part(): void {
    this.#abandon();
    this.#waiting?.abort();
    this.#waiting = undefined;
    this.#retire();
    this.#shared = false;
    clearInterval(this.#watch);
    const setup = { ...this.#setup, channels: this.#channels, since: this.#cursor };
    this.#connection = new Connection(setup, (frame) => this.#take(frame));
  }

  /** What waits for an acknowledgement is shown to a stream as it opens. A tab that follows opens none: it asks. */
  async #showPending(): Promise<void> {
    const { base, token, withCredentials, query } = this.#setup;
    if (query.passive || query.priority) return;
    for (const name of this.#channels.filter((each) => each.startsWith("user:"))) {
      const shown = await token.get();
      const answer = await fetch(`${base}/api/v1/users/${encodeURIComponent(name.slice("user:".length))}/pending`, {
        headers: shown ? { Authorization: `Bearer ${shown}` } : {},
        credentials: withCredentials ? "include" : "same-origin",
      });
      const { messages } = answer.ok ? await answer.json() : { messages: [] };
      for (const data of messages as Message[])
        if (!this.#over.signal.aborted && (!query.types || query.types.split(",").includes(data.type)))
          this.#take({ event: "message", data });
    }
  }

  #covers(opened: Opened | undefined): boolean {
    return !!opened && this.#channels.every((name) => opened.channels.includes(name));
  }

  #concerns(channel: string | null): boolean {
    return !channel || channel === "broadcast" || this.#channels.includes(channel);
  }

  /** Whether a message is for this tab, and hasn't come before. */
  #wants(message: Message, id: string | undefined): boolean {
    const routed = [
      `service:${message.service}`,
      ...(message.channels ?? []),
      ...Object.entries(message.target ?? {}).map(([kind, value]) => `${kind.replace(/_id$/, "")}:${value}`),
    ];
    const mine = routed.some((name) => this.#channels.includes(name));
    // What nobody has asked for is for everybody.
    if (!mine && (message.target || routed.some((name) => this.#opened?.channels.includes(name)))) return false;
    if (message.metadata.ack && (message.metadata.retry_count > 0 || !id)) return true; // the client knows what it has
    const name = nameOf(message);
    if (this.#had.has(name)) return false;
    this.#had.add(name);
    if (this.#had.size > REMEMBERED) this.#had.delete(this.#had.values().next().value!);
    return true;
  }
}

const hidden = (): boolean => globalThis.document?.visibilityState === "hidden";
const nameOf = ({ service, id, timestamp }: Message): string => `${service}/${id} ${timestamp}`;
const same = (one: Message, other: Message): boolean => nameOf(one) === nameOf(other);
