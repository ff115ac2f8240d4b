// The browser's own EventSource.
import { gaveUp, names, told, url } from "./print.mjs";

const source = new EventSource(url);
for (const name of names) {
  source.addEventListener(name, (event) => told(event.type, event.lastEventId, event.data));
}
source.addEventListener("error", () => {
  if (source.readyState === EventSource.CLOSED) gaveUp("closed");
});
