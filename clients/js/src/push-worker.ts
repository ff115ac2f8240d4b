// The part of a service worker that shows what is pushed, and opens it.

interface Pushed {
  key: string;
  title: string;
  body?: string;
  url?: string;
  icon?: string;
  collapse?: string;
  /** What acknowledges this key alone, without a page. */
  acknowledge?: { url: string; word: string };
}

export interface PushWorkerOptions {
  /** Where the service is, if it isn't at the root of the worker's own origin: the same as in the page. */
  url?: string;
  /**
   * Registers this browser again, when its subscription was replaced while no page was open: call `enablePush` with a
   * token that a worker can get. Without it the next page that calls `enablePush` does.
   */
  renew?: (registration: ServiceWorkerRegistration) => Promise<unknown>;
}

interface WorkerEvent extends Event {
  waitUntil(work: Promise<unknown>): void;
  data: { json(): Pushed } | null;
  notification: Notification & { data: Pushed };
  oldSubscription?: PushSubscription | null;
  newSubscription?: PushSubscription | null;
}

interface Worker {
  registration: ServiceWorkerRegistration;
  location: Location;
  clients: {
    matchAll(which: object): Promise<{ url: string; focus(): Promise<unknown> }[]>;
    openWindow(url: string): Promise<unknown>;
  };
  addEventListener(name: string, act: (event: WorkerEvent) => void): void;
}

/**
 * Show what is pushed; open it, and acknowledge it, when it is clicked. Pages of other origins are never opened.
 * A subscription that the browser replaces is taken, and registered where `renew` says how.
 */
export function handlePush(options: PushWorkerOptions = {}, worker: Worker = globalThis as unknown as Worker): void {
  worker.addEventListener("push", (event) => {
    const pushed = event.data?.json();
    if (pushed) event.waitUntil(show(worker, pushed));
  });
  worker.addEventListener("notificationclick", (event) => {
    event.notification.close();
    const pushed = event.notification.data;
    event.waitUntil(Promise.allSettled([open(worker, pushed), acknowledge(worker, pushed, options.url)]));
  });
  worker.addEventListener("pushsubscriptionchange", (event) => event.waitUntil(renew(worker, event, options)));
}

function show(worker: Worker, pushed: Pushed): Promise<void> {
  const { key, title, body, icon, collapse } = pushed;
  const own = icon && within(worker, icon);
  return worker.registration.showNotification(title, {
    tag: collapse ?? key, // the same thing pushed twice is shown once
    data: pushed,
    ...(body && { body }),
    ...(own && { icon: own }),
  });
}

async function open(worker: Worker, { url }: Pushed): Promise<void> {
  const wanted = url && within(worker, url);
  if (!wanted) return;
  const pages = await worker.clients.matchAll({ type: "window", includeUncontrolled: true });
  const page = pages.find((each) => each.url === wanted);
  await (page ? page.focus() : worker.clients.openWindow(wanted));
}

async function acknowledge(worker: Worker, { key, acknowledge }: Pushed, url = "/"): Promise<void> {
  if (!acknowledge) return;
  // Only a path is taken from what was pushed: where the service is, this worker's own page says.
  const base = new URL(url, worker.location.href).href.replace(/\/*$/, "");
  const { pathname } = new URL(acknowledge.url, worker.location.href);
  const body = JSON.stringify({ keys: [key], word: acknowledge.word });
  // The word is enough: no cookie goes along, and no page of the service's has to be asked first.
  await fetch(base + pathname, { method: "POST", body, credentials: "omit", keepalive: true });
}

/** The browser has replaced the subscription, or ended it: take a new one to the same key. */
async function renew({ registration }: Worker, event: WorkerEvent, options: PushWorkerOptions): Promise<void> {
  const key = event.oldSubscription?.options.applicationServerKey;
  if (!event.newSubscription && key)
    await registration.pushManager.subscribe({ userVisibleOnly: true, applicationServerKey: key });
  await options.renew?.(registration);
}

/** The address, if it is one of this origin. */
function within({ location }: Worker, address: string): string | undefined {
  try {
    const url = new URL(address, location.href);
    // A blob: has the origin of whoever made it.
    return url.origin === location.origin && url.protocol === location.protocol ? url.href : undefined;
  } catch {
    return undefined; // no address: what it came with is shown all the same
  }
}
