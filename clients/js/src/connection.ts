import type { Ended, Frame, Link, Setup, Source } from "./types.js";

const OPENS_IN = 15_000;
const BEATS = 2.5; // so many heartbeats long may a stream be silent
const FIRST_PAUSE = 250;
const LONGEST_PAUSE = 10_000;
const HEALTHY = 2_000; // a stream that lasted so long was one
const TICK = 1_000;
const DRIFT = 5_000; // a clock that jumps by so much has slept

// Who comes back to a service that is about to end is told "overload", and to come back much later.
// So long after the word of its end that is taken for what it is.
const DRAINS_FOR = 60_000;
const DRAIN_PAUSE = 500;

/**
 * One stream after the other, each from where the last one has ended, until the service wants no more, or `close`.
 *
 * All frames go to `take`. An end is a frame `msgpush.close`; of an outage only the first failure is one.
 */
export class Connection implements Source {
  #setup: Setup;
  #take: (frame: Frame) => void;
  #channels: readonly string[];
  #cursor: string;
  #link: Link | undefined;
  #turn = {}; // what is heard of any other turn is late
  #open = false;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #watch: ReturnType<typeof setInterval>;
  #ticked = Date.now();
  #heard = 0;
  #silence = OPENS_IN;
  #openedAt = 0;
  #lostAt = 0;
  #drainedAt = -DRAINS_FOR;
  #told = false;
  #patient = false; // the service has asked for the pause
  #asleep = false;
  #over = new AbortController();
  #asked = new Map<number, (answer: Frame | undefined) => void>();
  #ref = 0;

  constructor(setup: Setup, take: (frame: Frame) => void) {
    this.#setup = setup;
    this.#take = take;
    this.#channels = setup.channels;
    this.#cursor = setup.since;
    this.#watch = setInterval(() => this.#look(), TICK);
    this.#hear(globalThis, "online", () => this.#wake(true));
    this.#hear(globalThis, "pagehide", () => this.#sleep());
    this.#hear(globalThis, "pageshow", () => this.#rise());
    const page = globalThis.document;
    this.#hear(page, "freeze", () => this.#sleep());
    this.#hear(page, "resume", () => this.#rise());
    this.#hear(page, "visibilitychange", () => page.visibilityState === "visible" && this.#wake());
    void this.#connect();
  }

  listen(channels: readonly string[]): void {
    const before = this.#channels;
    this.#channels = channels;
    if (!before.length) this.#cursor = ""; // who listens to nothing has no place
    if (!this.#open || !this.#link?.send || !channels.length) return this.#soon(0);
    const tell = (command: string, names: readonly string[]) => {
      if (names.length)
        this.command({ [command]: names })!.then(
          ({ error }) => error && this.#fail(`${command} ${names}: ${error.status} ${error.detail ?? error.title}`),
          () => {}, // the next stream is opened with them
        );
    };
    tell("subscribe", channels.filter((name) => !before.includes(name)));
    tell("unsubscribe", before.filter((name) => !channels.includes(name)));
  }

  command(what: object): Promise<Frame> | undefined {
    if (!this.#open || !this.#link?.send) return;
    const ref = ++this.#ref;
    this.#link.send(JSON.stringify({ ...what, ref }));
    return new Promise((done, fail) =>
      this.#asked.set(ref, (answer) => (answer ? done(answer) : fail(new Error("the connection was lost")))),
    );
  }

  close(): void {
    this.#drop();
    this.#over.abort();
    clearInterval(this.#watch);
  }

  async #connect(): Promise<void> {
    this.#drop();
    if (!this.#channels.length || this.#asleep || this.#over.signal.aborted) return;
    const turn = this.#turn;
    const now = <A>(act: (argument: A) => void) => (argument: A) => {
      if (turn === this.#turn) act(argument);
    };
    const { base, query, token, transport, withCredentials } = this.#setup;
    this.#heard = Date.now();
    this.#silence = OPENS_IN;
    const lost = now((end: Ended) => this.#lost(end));
    try {
      const shown = await token.get();
      if (turn !== this.#turn) return;
      const asked = this.#cursor ? { ...query, last_event_id: this.#cursor } : query;
      const ask = { base, channels: this.#channels, query: asked, token: shown, withCredentials };
      this.#link = transport(ask, now((frame: Frame) => this.#hears(frame)), lost);
    } catch (error) {
      lost({ detail: String(error) });
    }
  }

  #hears(frame: Frame): void {
    this.#heard = Date.now();
    if (frame.ref !== undefined) {
      this.#asked.get(frame.ref)?.(frame);
      this.#asked.delete(frame.ref);
      return;
    }
    if (frame.event === "msgpush.close") return this.#lost({ retry: frame.retry, ...frame.data });
    if (frame.event === "msgpush.open") {
      this.#open = true;
      this.#openedAt = this.#heard;
      this.#told = false;
      this.#silence = Math.max(1000, frame.data.heartbeat * 1000 * BEATS);
    }
    this.#cursor = frame.id || this.#cursor;
    this.#take(frame);
  }

  /** There is no stream any longer: another one follows, unless that makes no sense. */
  #lost({ reason = "lost", detail = "the connection was lost", reconnect = true, status = 0, retry, told }: Ended): void {
    const { token } = this.#setup;
    const now = Date.now();
    const known = this.#open;
    this.#drop();
    // Of most ends a page sees no reason: one that has not opened may have been refused for its token.
    const mayBeRefused = reason === "lost" ? !known && !told : reason !== "drain" && reason !== "overload";
    if (mayBeRefused || status === 401) token.forget();
    if (reason === "unauthorized" || status === 401) reconnect = token.renewable;
    else if ([204, 400, 403].includes(status)) reconnect = false;
    if (status === 204) reason = "over";
    else if (status) this.#fail(detail);
    if (!this.#told || !reconnect) this.#take({ event: "msgpush.close", data: { reason, reconnect, detail } });
    this.#told = true;
    if (!reconnect || this.#over.signal.aborted) return this.close();
    if (!this.#lostAt || (known && now - this.#openedAt > HEALTHY)) this.#lostAt = now;
    if (reason === "drain") this.#drainedAt = now;
    // It grows with the time that it has been away: who was away for long isn't missed for a little longer.
    let pause = Math.min(LONGEST_PAUSE, Math.max(FIRST_PAUSE, (now - this.#lostAt) / 8));
    const draining = now < this.#drainedAt + DRAINS_FOR;
    if (draining) pause = Math.min(pause, Math.max(DRAIN_PAUSE, (now - this.#lostAt) / 20));
    const advice = draining ? 0 : reason === "overload" ? (retry ?? 10_000 + 20_000 * Math.random()) : status && retry;
    this.#patient = !!advice;
    this.#soon((advice || 0) + pause * (0.5 + Math.random() / 2));
  }

  #fail(text: string): void {
    this.#take({ event: "error", data: new Error(text) });
  }

  #soon(milliseconds: number): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => void this.#connect(), milliseconds);
  }

  #drop(): void {
    this.#turn = {};
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#patient = this.#open = false;
    this.#link?.close();
    this.#link = undefined;
    for (const answer of this.#asked.values()) answer(undefined);
    this.#asked.clear();
  }

  #look(): void {
    const now = Date.now();
    const slept = now - this.#ticked > DRIFT;
    this.#ticked = now;
    if (slept) this.#wake();
    else if (!this.#timer && this.#channels.length && !this.#asleep && now - this.#heard > this.#silence)
      this.#lost({ detail: `nothing was heard for ${this.#silence} ms` });
  }

  /** Something has changed for the better: don't wait any longer, and don't trust a stream that is silent. */
  #wake(anyway = false): void {
    if (this.#asleep || this.#patient) return;
    if (anyway || this.#timer || Date.now() - this.#heard > this.#silence / 2) void this.#connect();
  }

  #sleep(): void {
    this.#asleep = true;
    this.#drop();
  }

  #rise(): void {
    if (!this.#asleep) return;
    this.#asleep = false;
    void this.#connect();
  }

  #hear(target: EventTarget | undefined, name: string, act: () => void): void {
    target?.addEventListener?.(name, act, { signal: this.#over.signal });
  }
}
