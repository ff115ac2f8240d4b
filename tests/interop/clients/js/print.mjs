// What every program here shares: its argument, and the lines that it prints. In a page the lines wait in an array, which the
// harness takes them from.

const inPage = typeof document !== "undefined";
if (inPage) globalThis.lines = [];

export const url = inPage ? new URLSearchParams(location.search).get("url") : process.argv[2];

// An EventSource hears only the names that it listens to.
export const names = ["message", "progress", "msgpush.open", "msgpush.gap", "msgpush.heartbeat", "msgpush.close"];

function print(value) {
  const line = JSON.stringify(value);
  if (inPage) globalThis.lines.push(line);
  else process.stdout.write(`${line}\n`);
}

export function told(event, id, data) {
  print({ event: event || "message", id: id ?? "", data });
}

export function gaveUp(why) {
  print({ gave_up: String(why) });
}

export function endsForGood(event, data) {
  return event === "msgpush.close" && !JSON.parse(data).reconnect;
}
