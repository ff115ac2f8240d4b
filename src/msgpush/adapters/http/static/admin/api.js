// The service's API, as this page asks it: with who is signed in, and with one idea of what can go wrong.

export const BASE = new URL("../", location.href.replace(/[?#].*/, ""));

/** A request that wasn't answered as hoped: `status` is 0 where nothing came at all. */
export class Problem extends Error {
  constructor(status, detail, errors = [], type = "") {
    super(detail);
    Object.assign(this, { status, detail, errors, type });
  }

  /** It is the service's or the way's, not the request's: later it may go well. */
  get passes() {
    return this.status === 0 || this.status >= 500;
  }
}

const PATIENCE = 15_000; // ms: who has not answered by then is away
let ahead = 0; // ms that the service's clock is ahead of this machine's, which may be wrong by hours
/** What time it is at the service, in milliseconds since 1970. */
export const now = () => Date.now() + ahead;

function compare(answer) {
  const told = Date.parse(answer.headers.get("Date"));
  // It has no fractions, and was on its way: a few seconds are no difference.
  if (told) ahead = Math.abs(told - Date.now()) < 5000 ? 0 : told - Date.now();
}

let token = "";
export const useToken = (given) => void (token = given);
export const shownToken = () => token;

const watchers = new Set();
/** Be told how each request went: `(problem | null)`. */
export const onOutcome = (act) => watchers.add(act);

function told(problem) {
  for (const act of watchers) act(problem);
}

/** What isn't JSON, such as a page of a proxy's, says nothing; what broke off is another matter. */
function unreadable(error) {
  if (!(error instanceof SyntaxError)) throw error;
}

/**
 * The answer's JSON; null where it has none.
 * @param {string} path below the service, such as `api/v1/connections`
 * @param {object} [options] `method`, `body` (goes as JSON, or as it is where it is a text), `query`, `signal`; of a
 *   `quiet` request nobody else is told; one that is `anonymous` shows no token
 * @throws {Problem}
 */
export async function ask(path, { method = "GET", body, query, signal, quiet = false, anonymous = false } = {}) {
  const url = new URL(path, BASE);
  for (const [name, value] of Object.entries(query ?? {}))
    if (value !== undefined && value !== null && value !== "") url.searchParams.append(name, value);
  const headers = { Accept: "application/json" };
  if (token && !anonymous) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const text = body === undefined || typeof body === "string" ? body : JSON.stringify(body);
  let problem;
  try {
    const answer = await fetch(url, {
      method,
      headers,
      body: text,
      signal: AbortSignal.any([AbortSignal.timeout(PATIENCE), ...(signal ? [signal] : [])]),
      credentials: "same-origin",
      cache: "no-store",
    });
    compare(answer);
    const read = answer.status === 204 ? null : await answer.json().catch(unreadable);
    if (answer.ok && read !== undefined) {
      if (!quiet) told(null);
      return read;
    }
    problem = new Problem(answer.status, read?.detail ?? answer.statusText, read?.errors, read?.type);
  } catch (error) {
    if (signal?.aborted) throw error;
    problem = new Problem(0, "");
  }
  if (!quiet) told(problem);
  throw problem;
}

/** A name as a part of a path. */
export const part = (name) => encodeURIComponent(name);

/** A passive stream of the service's own client: it looks on, and nothing is used up by it. */
export function listen(channels, { since, types } = {}) {
  return new globalThis.MsgPush(BASE.href, {
    channels,
    passive: true,
    broadcast: false,
    token: token ? () => token : undefined,
    since,
    types,
  });
}
