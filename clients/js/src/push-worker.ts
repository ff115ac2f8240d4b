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

interface WorkerEvent extends Event {
  waitUntil(work: Promise<unknown>): void;
  data: { json(): Pushed } | null;
  notification: Notification & { data: Pushed };
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

/** Show what is pushed; open it, and acknowledge it, when it is clicked. Pages of other origins are never opened. */
export function handlePush(worker: Worker = globalThis as unknown as Worker): void {
  worker.addEventListener("push", (event) => {
    const pushed = event.data?.json();
    if (pushed) event.waitUntil(show(worker, pushed));
  });
  worker.addEventListener("notificationclick", (event) => {
    event.notification.close();
    const pushed = event.notification.data;
    event.waitUntil(Promise.allSettled([open(worker, pushed), acknowledge(worker, pushed)]));
  });
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

async function acknowledge(worker: Worker, { key, acknowledge }: Pushed): Promise<void> {
  const address = acknowledge && within(worker, acknowledge.url);
  if (address) await fetch(address, { method: "POST", body: JSON.stringify({ keys: [key], word: acknowledge.word }) });
}

/** The address, if it is one of this origin. */
function within({ location }: Worker, address: string): string | undefined {
  const url = new URL(address, location.href);
  return url.origin === location.origin ? url.href : undefined;
}
