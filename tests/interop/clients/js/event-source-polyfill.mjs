// npm `event-source-polyfill`: an EventSource with headers, over fetch or XMLHttpRequest.
import { EventSourcePolyfill } from "event-source-polyfill";

import { gaveUp, names, told, url } from "./print.mjs";

const source = new EventSourcePolyfill(url);
for (const name of names) {
  source.addEventListener(name, (event) => told(event.type, event.lastEventId, event.data));
}
source.addEventListener("error", () => {
  if (source.readyState === EventSourcePolyfill.CLOSED) gaveUp("closed");
});
