// npm `reconnecting-eventsource`: the browser's own, opened anew where that one gives up.
import ReconnectingEventSource from "reconnecting-eventsource";

import { endsForGood, gaveUp, names, told, url } from "./print.mjs";

const source = new ReconnectingEventSource(url);
// No `onmessage`: it takes the cursor only from events that have a listener.
for (const name of names) {
  source.addEventListener(name, (event) => {
    told(event.type, event.lastEventId, event.data);
    if (!endsForGood(event.type, event.data)) return;
    source.close(); // by itself it asks for ever
    gaveUp("closed by the program");
  });
}
