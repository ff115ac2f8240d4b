// What the page remembers in this browser: choices of looks for good, a token for as long as the tab is open, if asked to.

const PREFIX = "msgpush.admin.";

function within(storage, act) {
  try {
    return act(globalThis[storage]);
  } catch {
    return null; // forbidden, or full: the page does without
  }
}

export const read = (name) => within("localStorage", (s) => s.getItem(PREFIX + name));
export const write = (name, value) => within("localStorage", (s) => s.setItem(PREFIX + name, value));

export const kept = (name) => within("sessionStorage", (s) => s.getItem(PREFIX + name));
export function keep(name, value) {
  within("sessionStorage", (s) => (value === null ? s.removeItem(PREFIX + name) : s.setItem(PREFIX + name, value)));
}
