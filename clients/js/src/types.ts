/** A message, whole. */
export interface Message<Data = any> {
  id: string;
  timestamp: string;
  type: string;
  service: string;
  source?: string;
  target?: Record<string, string>;
  channels?: string[];
  data: Data;
  metadata: { priority: string; ttl: number; retry_count: number; ack?: object; [more: string]: unknown };
}

/** Something is missing: of one channel, or of all (`channel` is null). */
export interface Gap {
  channel: string | null;
  after: string;
  reason: string;
  detail?: string;
}

/** A stream has begun; `heartbeat` are the seconds after which a silent one is heard of. */
export interface Opened {
  connection: string;
  channels: string[];
  resumed: boolean;
  heartbeat: number;
}

/** A stream has ended. With `reconnect` false no other one follows. */
export interface Closed {
  reason: string;
  reconnect: boolean;
  detail?: string;
}

/** These messages needn't be shown any longer. */
export interface Acknowledged {
  keys: string[];
  state: "acknowledged" | "withdrawn";
}

export type TokenSource = string | (() => string | Promise<string>);

export interface Options {
  /** Listen to what is for this user. */
  user?: string;
  /** Listen to what this service publishes. */
  service?: string;
  channels?: string | readonly string[];
  /** A token or a ticket, or what gives one. It is asked again when that is refused or has ended. */
  token?: TokenSource;
  /** Hear only messages of these types. */
  types?: readonly string[];
  /** Another name of `types`. */
  events?: readonly string[];
  /** Hear only messages of this priority, or a higher one. */
  priority?: string;
  /** Only look on: don't count as a client of the user's own. */
  passive?: boolean;
  /** Hear what is for everybody, too; so it is by default. */
  broadcast?: boolean;
  /** A cursor, or "earliest"; by default from now on. */
  since?: string;
  transport?: "auto" | "eventsource" | "fetch" | "websocket" | Transport;
  /** Send cookies to another origin. */
  withCredentials?: boolean;
  /** The cursor is kept in sessionStorage under this key. It wins over `since`. */
  storage?: string;
  /** All tabs that give the same key share one connection. Make it from who is signed in. */
  session?: string;
}

/** What comes on a stream, however it comes. */
export interface Frame {
  event: string;
  id?: string | undefined;
  data?: any;
  /** Of an answer to a command. */
  ref?: number;
  ok?: any;
  error?: { status: number; detail?: string; title?: string };
  /** Milliseconds that the service wants to be left alone. */
  retry?: number | undefined;
}

/** What a stream is to be opened with. */
export interface Ask {
  base: string;
  channels: readonly string[];
  query: Record<string, string>;
  token: string;
  withCredentials: boolean;
}

/** Why there is no stream any longer. */
export interface Ended {
  reason?: string;
  detail?: string;
  reconnect?: boolean;
  status?: number;
  retry?: number | undefined;
  /** This transport sees how it is answered: a status that isn't here was none. */
  told?: boolean;
}

/** A stream that is open, or about to. After `close` nothing is heard of it. */
export interface Link {
  close(): void;
  send?(text: string): void;
}

export type Transport = (ask: Ask, take: (frame: Frame) => void, ended: (end: Ended) => void) => Link;

/** What a client hears frames from. */
export interface Source {
  /** Listen to these channels from here on. */
  listen(channels: readonly string[]): void;
  /** Ask for something on the connection itself; undefined where that can't be. */
  command?(what: object): Promise<Frame> | undefined;
  /** These keys were acknowledged here. */
  acknowledged?(keys: readonly string[]): void;
  close(): void;
}

/** What a source is made of. */
export interface Setup {
  base: string;
  channels: readonly string[];
  query: Record<string, string>;
  token: Token;
  since: string;
  transport: Transport;
  withCredentials: boolean;
}

/** A token that is renewed when it is of no use any longer. */
export interface Token {
  /** Whether there may be another one. */
  renewable: boolean;
  get(): Promise<string>;
  forget(): void;
}
