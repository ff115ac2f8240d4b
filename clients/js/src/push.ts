import { tokenOf } from "./token.js";
import type { TokenSource } from "./types.js";

export interface PushOptions {
  /** Where the service is; in a page it may be a path. */
  url: string;
  user: string;
  token?: TokenSource;
  /** What the person calls this device; at most 64 characters. */
  label?: string;
  withCredentials?: boolean;
}

export interface Device {
  device: string;
  kind: string;
  label: string | null;
  created_at: string;
}

/**
 * Have what is for a user reach this browser when no page is open. Call it when the person has asked for that: the
 * browser asks them for permission. Calling it again changes nothing.
 * @param registration of a service worker that calls `handlePush` of `@msgpush/client/push-worker`.
 * @throws Error: the service has it off or refuses it; DOMException NotAllowedError: the person does.
 */
export async function enablePush(registration: ServiceWorkerRegistration, options: PushOptions): Promise<Device> {
  const { webpush } = await ask<{ webpush: { public_key: string } | null }>(options, "GET", "push");
  if (!webpush) throw new Error("the service has Web Push off");
  const key = bytes(webpush.public_key);
  let subscription = await registration.pushManager.getSubscription();
  if (subscription && !equal(new Uint8Array(subscription.options.applicationServerKey!), key)) {
    await subscription.unsubscribe(); // the service has another key now
    subscription = null;
  }
  subscription ??= await registration.pushManager.subscribe({ userVisibleOnly: true, applicationServerKey: key });
  const { label } = options;
  return ask(options, "POST", devices(options), { webpush: subscription.toJSON(), ...(label && { label }) });
}

/** Nothing reaches this browser any longer. */
export async function disablePush(
  registration: ServiceWorkerRegistration,
  options: PushOptions & { device: string },
): Promise<void> {
  await ask(options, "DELETE", `${devices(options)}/${encodeURIComponent(options.device)}`);
  await (await registration.pushManager.getSubscription())?.unsubscribe();
}

const devices = ({ user }: PushOptions): string => `users/${encodeURIComponent(user)}/devices`;

async function ask<Answer>(options: PushOptions, method: string, path: string, body?: object): Promise<Answer> {
  const base = new URL(options.url, globalThis.location?.href).href.replace(/\/*$/, "");
  const shown = await tokenOf(options.token).get();
  const answer = await fetch(`${base}/api/v1/${path}`, {
    method,
    headers: { ...(shown && { Authorization: `Bearer ${shown}` }), ...(body && { "Content-Type": "application/json" }) },
    credentials: options.withCredentials ? "include" : "same-origin",
    ...(body && { body: JSON.stringify(body) }),
  });
  const text = await answer.text();
  if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${text}`);
  return (text ? JSON.parse(text) : undefined) as Answer;
}

function bytes(base64url: string): Uint8Array<ArrayBuffer> {
  const text = atob(base64url.replace(/-/g, "+").replace(/_/g, "/"));
  return Uint8Array.from(text, (character) => character.charCodeAt(0));
}

const equal = (one: Uint8Array, other: Uint8Array): boolean =>
  one.length === other.length && one.every((each, place) => each === other[place]);
