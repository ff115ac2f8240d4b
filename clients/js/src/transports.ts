import { eventStream } from "./event-stream.js";
import type { Ask, Frame, Transport } from "./types.js";

const NAMES = ["message", "msgpush.open", "msgpush.heartbeat", "msgpush.gap", "msgpush.acknowledged", "msgpush.close"];

function address({ base, channels, query }: Ask, token: string): string {
  const asked = new URLSearchParams({ events: "none", ...query, ...(token && { token }) });
  return `${base}/sse/stream/${channels.map(encodeURIComponent).join(",")}?${asked}`;
}

/** A browser's own EventSource. It never comes to reconnect by itself: it would take seconds. */
export const eventSource: Transport = (ask, take, ended) => {
  const source = new EventSource(address(ask, ask.token), { withCredentials: ask.withCredentials });
  let last = ask.query.last_event_id;
  for (const event of NAMES)
    source.addEventListener(event, ({ data, lastEventId }: MessageEvent) => {
      // A message without an id has the one of the block before.
      const id = event === "message" && lastEventId === last ? undefined : lastEventId;
      last = lastEventId;
      take({ event, id, data: JSON.parse(data) });
    });
  source.onerror = () => {
    source.close();
    ended({});
  };
  return source;
};

/** Streaming by fetch, which sends the token as a header, and sees how it was answered. */
export const fetching: Transport = (ask, take, ended) => {
  const stopped = new AbortController();
  const read = async () => {
    const answer = await fetch(address(ask, ""), {
      headers: { Accept: "text/event-stream", ...(ask.token && { Authorization: `Bearer ${ask.token}` }) },
      credentials: ask.withCredentials ? "include" : "same-origin",
      cache: "no-store",
      signal: stopped.signal,
    });
    const { status } = answer;
    if (status !== 200) {
      const { detail } = await answer.json().catch(() => ({}));
      const retry = 1000 * Math.min(60, +answer.headers.get("Retry-After")! || 0);
      return ended({ status, detail: `${status} ${detail ?? ""}`, retry, told: true });
    }
    const push = eventStream(take);
    const decoder = new TextDecoder();
    for (const reader = answer.body!.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) return ended({ told: true });
      push(decoder.decode(value, { stream: true }));
    }
  };
  read().catch((error) => ended({ detail: String(error), told: true }));
  return { close: () => stopped.abort() };
};

export const webSocket: Transport = ({ base, channels, query, token }, take, ended) => {
  const asked = new URLSearchParams({ ...query, ...(token && { token }) });
  for (const name of channels) asked.append("channel", name);
  const socket = new WebSocket(`${base.replace(/^http/, "ws")}/ws?${asked}`, "msgpush.v1");
  socket.onmessage = ({ data }) => take(JSON.parse(data) as Frame);
  socket.onclose = ({ code }) => ended({ detail: `WebSocket: code ${code}` });
  return socket;
};

/** Fetch where a token goes along, or there is no EventSource; which has the least to it otherwise. */
export const auto: Transport = (ask, take, ended) =>
  (ask.token || !globalThis.EventSource ? fetching : eventSource)(ask, take, ended);
